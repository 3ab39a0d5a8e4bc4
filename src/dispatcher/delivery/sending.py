"""The send loop: starts attempts while caps, leases and flushes allow, and draws the conclusion of each.

    take ──> attempt ──> succeeded ──────────────> next row may go; the flush makes it durable
                   ├──> the egress proxy failed ─> the same row again, with as many attempts left as before
                   └──> failed ──> retry due at … ─> the same row again
                             └──> exhausted ──> dead letter ──committed──> next row may go
                                            └─> halt ──committed──> what waits for it waits for an operator
                                                  └──void──> the lane goes with its lease

The conclusion is drawn only for a lane that is still current: an attempt that outlived its lease is a fact, recorded,
and decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from dispatcher.clocks import SYSTEM_CLOCKS, Clocks
from dispatcher.delivery.attempt import Attempter, AttemptResult
from dispatcher.delivery.board import Board
from dispatcher.delivery.conclusions import Conclusions
from dispatcher.delivery.decide import DecisionWriter, Verdict
from dispatcher.delivery.endings import dead_letter, halt
from dispatcher.delivery.endpoint import EndpointRuntime
from dispatcher.delivery.flush import Flusher
from dispatcher.delivery.keeping import Disabling
from dispatcher.delivery.lane import Lane
from dispatcher.delivery.retry import Exhausted, Retry
from dispatcher.delivery.slots import SETTLED
from dispatcher.model import EndpointKey, Halt, OutboxRow, Outcome
from dispatcher.policy import ExhaustionPolicy
from dispatcher.telemetry import Instruments

log = logging.getLogger(__name__)


ANSWER_GRACE_S = 0.05
"""An answer may be on the way from the socket to us when all is cancelled: so long it is waited for."""


@dataclass(frozen=True, slots=True)
class SendingOptions:
    """`flush_stall_s`: no attempt starts once an acknowledgement has waited so long for its flush."""

    flush_stall_s: float
    gate_check_s: float = 0.05


@dataclass(slots=True, eq=False)
class _Flight:
    """A row that was taken to be sent, with what was true of its endpoint then: the lane may go meanwhile."""

    lane: Lane
    row: OutboxRow
    runtime: EndpointRuntime
    url_index: int
    ended: asyncio.Event | None = None
    """Set at its end; there only where somebody waits for it."""

    def end(self) -> asyncio.Event:
        if self.ended is None:
            self.ended = asyncio.Event()
        return self.ended


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a delivery: a dead letter on its way into the database, or else a halt that is yet to be put there."""

    verdict: asyncio.Future[Verdict] | None = None
    halt: Halt | None = None


class SendLoop:
    """`run` is the task, and the parent of the attempts in flight."""

    def __init__(
        self,
        board: Board,
        attempter: Attempter,
        flusher: Flusher,
        decisions: DecisionWriter,
        sendable_until: Callable[[], float],
        options: SendingOptions,
        instruments: Instruments,
        disable: Callable[[Disabling], None],
        *,
        clocks: Clocks = SYSTEM_CLOCKS,
        chance: random.Random | None = None,
    ) -> None:
        self._board = board
        self._scheduler = board.scheduler
        self._attempter = attempter
        self._flusher = flusher
        self._decisions = decisions
        self._sendable_until = sendable_until
        self._leases_until = 0.0
        self._options = options
        self._instruments = instruments
        self._clock = clocks.monotonic
        self._conclusions = Conclusions(board, disable, clocks=clocks, chance=chance)
        self._in_flight: dict[_Flight, EndpointKey] = {}
        self._senders: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.delivered_total = 0

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def stop_starting(self) -> None:
        """Shutdown: nothing new starts anywhere."""
        self._stopping = True

    def is_sending_to(self, key: EndpointKey) -> bool:
        """Whether an attempt to the endpoint is in flight."""
        return key in self._in_flight.values()

    async def quiesced(self, concerns: Callable[[EndpointKey], bool]) -> None:
        """Wait until no attempt to an endpoint that `concerns` names is in flight. The caller bounds it.

        An attempt ends with its conclusion: its acknowledgement is with the flusher, its decision has a verdict.
        """
        # One by one: a drain waits for every partition at once, and no end of an attempt may wake them all.
        while ends := [flight.end() for flight, key in self._in_flight.items() if concerns(key)]:
            for end in ends:
                await end.wait()

    async def run(self) -> None:
        """Send for ever. Cancelled, it cancels what is in flight; an answer that has come is still recorded."""
        async with asyncio.TaskGroup() as tasks:
            try:
                while True:
                    self._board.ready.clear()
                    blocked = self._start_all(tasks)
                    await self._wait(blocked=blocked)
            except asyncio.CancelledError:
                self._stopping = True
                if self._senders:
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.wait(self._senders, timeout=ANSWER_GRACE_S)
                raise

    async def _wait(self, *, blocked: bool) -> None:
        """Until a lane is ready or a retry is due; behind a closed gate, until it is to be tried again."""
        due = None if self._stopping else self._scheduler.next_due()
        timeout = None if due is None else max(0.0, due - self._clock())
        if blocked:
            timeout = self._options.gate_check_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._board.ready.wait()
        if blocked:
            await asyncio.sleep(self._options.gate_check_s)

    def _start_all(self, tasks: asyncio.TaskGroup) -> bool:
        """Start all that may start. True: the gate is closed, by a flush that waits or a lease that runs out."""
        while not self._stopping:
            now = self._clock()
            if not self._gate_is_open(now):
                return True
            flight = self._take(now)
            if flight is None:
                return False
            sender = tasks.create_task(self._send(flight), name="sender")
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        return False

    def _take(self, now: float) -> _Flight | None:
        taken = self._scheduler.take(now)
        if taken is None:
            return None
        lane, row = taken
        standing = self._board.admissions.get(lane.key)
        url_index = 0 if standing is None else standing.admission.begin(now, row.time)
        flight = _Flight(lane, row, self._board.runtimes[lane.key], url_index)
        self._in_flight[flight] = lane.key
        return flight

    async def _send(self, first: _Flight) -> None:
        """One attempt after the other, as long as there is something to start: a task for each would cost more than
        all that is decided about it."""
        flight: _Flight | None = first
        while flight is not None:
            try:
                await self._deliver(flight)
            finally:
                del self._in_flight[flight]
                if flight.ended is not None:
                    flight.ended.set()
            flight = None
            now = self._clock()
            if not self._stopping and self._gate_is_open(now):
                flight = self._take(now)
            if flight is None or self._scheduler.has_ready:
                self._board.ready.set()  # nothing to start just now, or more than one sender's work: see in the loop

    def _gate_is_open(self, now: float) -> bool:
        """Leases are renewed all together, so the first to run out stands for all."""
        if now >= self._leases_until:
            self._leases_until = self._sendable_until()
        return now < self._leases_until and self._flusher.lets_start(now, self._options.flush_stall_s)

    async def _deliver(self, flight: _Flight) -> None:
        lane, row, runtime = flight.lane, flight.row, flight.runtime
        started = self._clock()
        ending = result = None
        try:
            result = await self._attempter.attempt(runtime, row, row.attempts + 1, lane.epoch, flight.url_index)
            if not lane.is_closed:
                ending = self._conclude(lane, row, result, runtime)
        finally:
            failed = result is None or not result.is_success
            self._scheduler.finished(lane, failed=failed, duration_s=self._clock() - started)
        if ending is not None:
            self._board.ready.set()
            await self._settle(lane, row, ending)

    def _conclude(self, lane: Lane, row: OutboxRow, result: AttemptResult, runtime: EndpointRuntime) -> Ending | None:
        """Tell the lane what came of its row; where it is exhausted, the decision or halt that is being committed."""
        if result.attempt.outcome is Outcome.EGRESS_PROXY_FAILED:
            self._try_again(lane, row, self._conclusions.proxy_failed(row.key))
            return None
        row.attempts += 1
        row.first_attempt_time = row.first_attempt_time or result.attempt.start_time
        hold_s = self._conclusions.note(runtime, row, result)
        if result.is_success:
            self.delivered_total += 1
            lane.succeeded(row.seq)
            self._board.feed(lane)
            return None
        step = self._conclusions.next_step(runtime, row, result, hold_s)
        if isinstance(step, Retry):
            self._try_again(lane, row, step.delay_s)
        elif lane.deciding(row.seq):
            self._conclusions.exhausted(runtime, row, lane.epoch)
            return self._end(lane, row, result, step, runtime)
        else:
            self._settle_if_done(lane, row)
        return None

    def _try_again(self, lane: Lane, row: OutboxRow, delay_s: float) -> None:
        lane.failed(row.seq, self._clock() + delay_s)
        self._board.feed(lane)
        self._settle_if_done(lane, row)

    def _settle_if_done(self, lane: Lane, row: OutboxRow) -> None:
        if lane.state_of(row.seq) is SETTLED:
            self._board.settled(lane)  # a former owner's success is on record

    def _end(
        self, lane: Lane, row: OutboxRow, result: AttemptResult, step: Exhausted, runtime: EndpointRuntime
    ) -> Ending:
        match runtime.settings.exhaustion:
            case ExhaustionPolicy.DEAD_LETTER:
                verdict = self._decisions.submit(*dead_letter(row, result, step), lane.epoch)
                return Ending(verdict)
            case ExhaustionPolicy.HALT:
                mode = runtime.revisions.get(row.revision, runtime.settings).ordering_mode
                return Ending(halt=halt(row, mode, result, step))
            case _:
                assert_never(runtime.settings.exhaustion)

    async def _settle(self, lane: Lane, row: OutboxRow, ending: Ending) -> None:
        """The next row waits until the decision is known to be committed.

        A void one goes with its lane. After a refused one, already logged, the lane stays where it is: going on would
        pass over an event that nothing is on record about.
        """
        if await self._verdict(lane, ending) is not Verdict.COMMITTED or not self._board.is_current(lane):
            return
        what = {"tenant": str(row.key.tenant_id), "endpoint": str(row.key.endpoint_id), "sequence": row.seq}
        if ending.halt is not None:
            log.warning("an endpoint is halted at a delivery", extra=what)
            lane.halted(row.seq)
            self._conclusions.halted(row.key)
        else:
            log.warning("a delivery is dead-lettered", extra=what)
            self._instruments.settled("dead_lettered")
            lane.decided(row.seq)
        self._board.settled(lane)

    async def _verdict(self, lane: Lane, ending: Ending) -> Verdict:
        """A halt follows its last attempt, so that who reads of it finds what came back, whatever crashes meanwhile."""
        if ending.halt is not None:
            await self._flusher.flushed()
            return await self._decisions.submit_halt(ending.halt, lane.epoch)
        assert ending.verdict is not None  # noqa: S101 -- one of the two is there
        return await ending.verdict
