"""Lane, retry policy and circuits together, in all three modes and across restarts, against a model of lists.

The model has no queue, no timer and no order: at every step it asks its records which deliveries may start and to which
URL, and what is started must be one of them; nothing may start only where it says so too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import initialize

from dispatcher.delivery.admission import Admission, AdmissionPolicy
from dispatcher.delivery.circuit import BUCKETS, CircuitPolicy
from dispatcher.delivery.held import HeldHalt
from dispatcher.delivery.lane import Lane, LaneLimits, ModeSettings
from dispatcher.delivery.rate import ThrottlePolicy
from dispatcher.delivery.retry import Exhausted, next_step, rest_s
from dispatcher.model import Cursor, OrderingMode, OutboxRow, Outcome
from dispatcher.policy import ExponentialBackoff, RetryPolicy
from tests.support.acting import ActingMachine, Choose, quickly
from tests.support.lanes import BY_KEY, KEY, ORDERED, START_TIME, payload_of, row, row_time

RETRY = RetryPolicy(ExponentialBackoff(1, 8, 2), attempts_max=4, age_max_s=30)
DRAW = 0.5
CIRCUIT = CircuitPolicy(failure_ratio=0.5, window_s=20, attempts_min=3, open_s=6)
URLS = ("http://first/", "http://second/")
# A floor that no tick reaches: here a 503 holds the endpoint, and slows nothing down.
ADMISSION = AdmissionPolicy(URLS, circuit=CIRCUIT, throttle=ThrottlePolicy(floor_per_s=1e9))
IN_FLIGHT_MAX = 3
TICK = 1 / 64  # exact both in binary and in microseconds: no rounding can tell the two apart


def wall(now: float) -> datetime:
    return START_TIME + timedelta(seconds=now)


@dataclass
class Try:
    begin: float
    end: float
    failed: bool
    on_record: bool = False


@dataclass
class Known:
    """All that the model knows of a delivery. `end` is DELIVERED, DEAD or HALTED."""

    key: str | None
    tries: list[Try] = field(default_factory=list)
    begun: float | None = None
    due: float = 0.0
    end: str = ""

    @property
    def is_done(self) -> bool:
        return self.end in ("DELIVERED", "DEAD")

    def due_by_record(self) -> float:
        if not self.tries:
            return 0.0
        wait = DRAW * min(8, 2 ** (len(self.tries) - 1))
        return min(self.tries[-1].end + wait, self.tries[0].begin + 30)


@dataclass
class ModelCircuit:
    results: list[tuple[int, bool]] = field(default_factory=list)
    probe_at: float | None = None
    is_probing: bool = False

    def lets(self, now: float) -> bool:
        return self.probe_at is None or self.probe_at <= now

    def begin(self, now: float) -> None:
        if self.probe_at is not None:
            self.probe_at, self.is_probing = now + CIRCUIT.open_s, True

    def ended(self, now: float, *, failed: bool) -> None:
        if self.probe_at is not None:
            if self.is_probing and failed:
                self.probe_at, self.is_probing = now + CIRCUIT.open_s, False
            elif self.is_probing:
                self.results, self.probe_at, self.is_probing = [], None, False
            return
        bucket = int(now * BUCKETS / CIRCUIT.window_s)
        self.results.append((bucket, failed))
        recent = [failure for at, failure in self.results if at > bucket - BUCKETS]
        if failed and len(recent) >= CIRCUIT.attempts_min and sum(recent) >= CIRCUIT.failure_ratio * len(recent):
            self.probe_at = now + CIRCUIT.open_s


class EndpointMachine(ActingMachine):
    ACTIONS: ClassVar[Mapping[str, int]] = {
        "publish": 8,
        "start": 25,
        "answer": 20,
        "flush": 8,
        "checkpoint": 3,
        "restart": 1,
        "operate": 2,
        "time_passes": 20,
    }

    @initialize(mode=st.sampled_from(OrderingMode))
    def begin(self, mode: OrderingMode) -> None:
        self.mode, self.now, self.cursor, self.epoch = mode, 0.0, 0, 0
        self.known: list[Known] = []
        self.restart()

    # --- the model ---

    def may_start(self) -> dict[int, int]:
        """Each sequence that may start now, with the URL it must go to."""
        url = next((index for index, circuit in enumerate(self.circuits) if circuit.lets(self.now)), None)
        in_flight = sum(known.begun is not None for known in self.known)
        if url is None or self.now < self.hold_until or in_flight >= IN_FLIGHT_MAX:
            return {}
        return {seq: url for seq, known in enumerate(self.known, 1) if self.is_next(seq, known)}

    def is_next(self, seq: int, known: Known) -> bool:
        if known.end or known.begun is not None or known.due > self.now:
            return False
        lower = [other for other in self.known[: seq - 1] if not other.is_done]
        if self.mode is ORDERED:
            return not lower
        return self.mode is not BY_KEY or all(other.key != known.key for other in lower)

    # --- what happens, to both ---

    def publish(self, choose: Choose) -> None:
        self.known.append(Known(choose([None, "a", "b"])))
        self.lane.offer(row(len(self.known), ordering_key=self.known[-1].key))

    def start(self, _: Choose | None = None) -> None:
        self.now += TICK
        allowed = self.may_start()
        for want in self.lane.wants_payloads(self.now):
            self.lane.attach(want, payload_of(want))
        started = self.lane.start(self.now)
        assert (started is None) == (not allowed), f"{started and started.seq} of {allowed} at {self.now}"
        if started is None:
            return
        assert started.seq in allowed
        assert self.admission.begin(self.now, started.time) == allowed[started.seq]
        self.circuits[allowed[started.seq]].begin(self.now)
        self.known[started.seq - 1].begun = self.now
        self.sending.append((started, allowed[started.seq]))

    def answer(self, choose: Choose) -> None:
        if self.sending:
            sent, url = self.sending.pop(choose(range(len(self.sending))))
            self.end(sent, url, choose(["2xx", "500", "500", "503"]), choose(["DEAD", "HALTED"]))

    def end(self, sent: OutboxRow, url: int, answer: str, policy: str) -> None:
        known, failed = self.known[sent.seq - 1], answer != "2xx"
        hold_s = 3.0 if answer == "503" else None
        assert known.begun is not None
        known.tries.append(Try(known.begun, self.now, failed))
        known.begun = None
        sent.attempts += 1
        sent.first_attempt_time = sent.first_attempt_time or wall(known.tries[-1].begin)
        status_code = 503 if hold_s else 500
        self.admission.ended(self.now, URLS[url], failed=failed, status_code=status_code, hold_s=hold_s)
        self.circuits[url].ended(self.now, failed=failed)
        self.hold_until = max(self.hold_until, self.now + (hold_s or 0.0)) if failed else self.hold_until
        if not failed:
            known.end = "DELIVERED"
            self.lane.succeeded(sent.seq)
            return
        self.retry_or_end(sent, known, hold_s, policy)

    def retry_or_end(self, sent: OutboxRow, known: Known, hold_s: float | None, policy: str) -> None:
        age_s = self.now - known.tries[0].begin
        step = next_step(
            RETRY,
            attempt_number=sent.attempts,
            age_s=age_s,
            outcome=Outcome.HTTP_ERROR,
            status_code=500,
            retry_after_s=hold_s,
            draw=DRAW,
        )
        is_last = len(known.tries) >= 4 or age_s >= 30
        assert isinstance(step, Exhausted) == is_last
        if isinstance(step, Exhausted):
            known.end = policy
            assert self.lane.deciding(sent.seq)
            (self.lane.halted if policy == "HALTED" else self.lane.decided)(sent.seq)
            return
        wait_s = max(DRAW * min(8, 2 ** (len(known.tries) - 1)), hold_s or 0.0)
        known.due = self.now + min(wait_s, 30 - age_s)
        assert abs(self.now + step.delay_s - known.due) < 1e-9
        self.lane.failed(sent.seq, known.due)

    def flush(self, _: Choose) -> None:
        for seq, known in enumerate(self.known, 1):
            for made in known.tries:
                made.on_record = True
            if known.end == "DELIVERED":
                self.lane.flushed(seq)

    def checkpoint(self, _: Choose) -> None:
        self.cursor = self.lane.settled_through

    def restart(self, _: Choose | None = None) -> None:
        """Killed: what is in flight or not flushed is forgotten; decisions and halts are on record."""
        for known in self.known:
            known.tries = [made for made in known.tries if made.on_record]
            known.begun = None
            if known.end == "DELIVERED" and (not known.tries or known.tries[-1].failed):
                known.end = ""
            known.due = known.due_by_record()
        self.sending: list[tuple[OutboxRow, int]] = []
        self.circuits = [ModelCircuit(), ModelCircuit()]
        self.hold_until = 0.0
        self.admission = Admission(ADMISSION)
        self.admission.configure(ADMISSION, self.now)
        self.epoch += 1
        self.take_over()

    def take_over(self) -> None:
        halts = [seq for seq, known in enumerate(self.known, 1) if known.end == "HALTED"]
        cursor = Cursor(KEY, self.cursor, row_time(self.cursor))
        self.lane = Lane(KEY, self.epoch, cursor, LaneLimits(10_000, 10**6), len(self.known), needs_held=bool(halts))
        self.lane.gate = self.admission
        if halts:
            self.lane.hold([], [HeldHalt(self.read(seq), self.mode) for seq in halts])
        self.lane.configure({1: ModeSettings(self.mode, IN_FLIGHT_MAX)}, self.resume)
        self.lane.loaded([self.read(seq) for seq in range(self.cursor + 1, len(self.known) + 1)], reached_end=True)

    def read(self, seq: int) -> OutboxRow:
        known = self.known[seq - 1]
        made = row(seq, ordering_key=known.key, settled=known.is_done)
        made.attempts = len(known.tries)
        if known.tries:
            made.first_attempt_time, made.last_attempt_time = wall(known.tries[0].begin), wall(known.tries[-1].end)
        return made

    def resume(self, tried: OutboxRow) -> float:
        assert tried.first_attempt_time is not None
        assert tried.last_attempt_time is not None
        since_s = (wall(self.now) - tried.last_attempt_time).total_seconds()
        age_s = (wall(self.now) - tried.first_attempt_time).total_seconds()
        return self.now + rest_s(RETRY, attempt_number=tried.attempts, since_s=since_s, age_s=age_s, draw=DRAW)

    def operate(self, choose: Choose) -> None:
        """RetryDelivery or SkipDelivery on something halted."""
        halted = [seq for seq, known in enumerate(self.known, 1) if known.end == "HALTED"]
        if not halted:
            return
        seq = choose(halted)
        if choose([True, False]):
            self.known[seq - 1].end, self.known[seq - 1].due = "", self.now
            assert self.lane.claim(seq)
            self.lane.retry_now(seq, self.now)
        else:
            self.known[seq - 1].end = "DEAD"
            assert self.lane.deciding(seq)
            self.lane.decided(seq)

    def time_passes(self, choose: Choose) -> None:
        self.now += choose([0.5, 1.0, 4.0])

    def teardown(self) -> None:
        """The receiver is well and halts are retried: all is done in the end, in bounded time."""
        if not hasattr(self, "known"):
            return
        self.restart()
        for seq, known in enumerate(self.known, 1):
            if known.end == "HALTED":
                known.end, known.due = "", self.now
                assert self.lane.claim(seq)
                self.lane.retry_now(seq, self.now)
        for _ in range(4 * len(self.known) + 100):
            self.start()
            for sent, url in self.sending:
                self.end(sent, url, "2xx", "DEAD")
            self.sending = []
            self.now += 0.5
        assert all(known.is_done for known in self.known)


TestDeliveriesStartWhenTheModelSaysSo = EndpointMachine.TestCase
TestDeliveriesStartWhenTheModelSaysSo.settings = quickly(max_examples=150)
