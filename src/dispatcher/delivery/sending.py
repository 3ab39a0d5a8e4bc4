"""The send loop: starts attempts while caps, leases and flushes allow, and draws the conclusion of each.

    take ──> attempt ──> succeeded ──────────────> next row may go; the flush makes it durable
                   └──> failed ──> retry due at … ─> the same row again
                             └──> exhausted ──> decision ──committed──> next row may go
                                                        └──void──> the lane goes with its lease

The conclusion is drawn only for a lane that is still current: an attempt that outlived its lease is a fact, recorded,
and decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from dispatcher.delivery.attempt import Attempter, AttemptResult
from dispatcher.delivery.board import Board
from dispatcher.delivery.decide import DecisionWriter, Verdict
from dispatcher.delivery.endpoint import EndpointRuntime
from dispatcher.delivery.flush import Flusher
from dispatcher.delivery.lane import Lane
from dispatcher.delivery.retry import Exhausted, Retry, RetryPolicy, next_step, parse_retry_after
from dispatcher.delivery.slots import SETTLED
from dispatcher.model import DeadLetter, Decision, DecisionKind, EndpointKey, OutboxRow
from dispatcher.telemetry import Instruments

log = logging.getLogger(__name__)

ACTOR = "dispatcher"


@dataclass(frozen=True, slots=True)
class SendingOptions:
    """`flush_stall_s`: no attempt starts once an acknowledgement has waited so long for its flush."""

    retry: RetryPolicy
    flush_stall_s: float
    gate_check_s: float = 0.05


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
        *,
        clock: Callable[[], float] = time.monotonic,
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
        self._clock = clock
        self._random = chance or random.Random()  # noqa: S311 -- jitter, no secret
        self._in_flight: dict[asyncio.Task[None], EndpointKey] = {}
        self._finished = asyncio.Event()
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
        """Wait until no attempt to an endpoint that `concerns` names is in flight. The caller bounds it."""
        while any(map(concerns, self._in_flight.values())):
            self._finished.clear()
            await self._finished.wait()

    async def run(self) -> None:
        """Send for ever. Cancelled, it cancels what is in flight; an answer that has come is still recorded."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._board.ready.clear()
                blocked = self._start_all(tasks)
                await self._wait(blocked=blocked)

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
        if self._stopping:
            return False
        while True:
            now = self._clock()
            if not self._gate_is_open(now):
                return True
            taken = self._scheduler.take(now)
            if taken is None:
                return False
            lane, row = taken
            # Now, while the lane is known to be configured: the task may begin after it has gone.
            task = tasks.create_task(self._deliver(lane, row, self._board.runtimes[lane.key]), name="attempt")
            self._in_flight[task] = lane.key
            task.add_done_callback(self._forget)

    def _gate_is_open(self, now: float) -> bool:
        """Leases are renewed all together, so the first to run out stands for all."""
        if now >= self._leases_until:
            self._leases_until = self._sendable_until()
        return (
            now < self._leases_until
            and not self._flusher.is_full
            and self._flusher.oldest_wait_s(now) <= self._options.flush_stall_s
        )

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]
        self._finished.set()

    async def _deliver(self, lane: Lane, row: OutboxRow, runtime: EndpointRuntime) -> None:
        started = self._clock()
        verdict = result = None
        try:
            result = await self._attempter.attempt(runtime, row, row.attempts + 1, lane.epoch)
            if self._board.is_current(lane):
                verdict = self._conclude(lane, row, result)
        finally:
            failed = result is None or not result.is_success
            self._scheduler.finished(lane, failed=failed, duration_s=self._clock() - started)
            self._board.ready.set()
        if verdict is not None:
            await self._settle(lane, row, verdict)

    def _conclude(self, lane: Lane, row: OutboxRow, result: AttemptResult) -> asyncio.Future[Verdict] | None:
        """Tell the lane what came of its row; where it is exhausted, the decision that is being committed."""
        row.attempts += 1
        row.first_attempt_time = row.first_attempt_time or result.attempt.start_time
        if result.is_success:
            self.delivered_total += 1
            lane.succeeded(row.seq)
            self._board.feed(lane)
            return None
        step = self._next_step(row, result)
        if isinstance(step, Retry):
            lane.failed(row.seq, self._clock() + step.delay_s)
        elif lane.deciding(row.seq):
            return self._decisions.submit(*_dead_letter(row, result, step), lane.epoch)
        if lane.state_of(row.seq) is SETTLED:
            self._board.settled(lane)  # a former owner's success is on record
        return None

    def _next_step(self, row: OutboxRow, result: AttemptResult) -> Retry | Exhausted:
        now = datetime.now(UTC)
        first = row.first_attempt_time or now
        return next_step(
            self._options.retry,
            attempt_number=row.attempts,
            age_s=max(0.0, (now - first).total_seconds()),
            outcome=result.attempt.outcome,
            retry_after_s=None if result.retry_after is None else parse_retry_after(result.retry_after, now),
            draw=self._random.random(),
        )

    async def _settle(self, lane: Lane, row: OutboxRow, verdict: asyncio.Future[Verdict]) -> None:
        """The next row waits until the decision is known to be committed.

        A void one goes with its lane. After a refused one, already logged, the lane stays where it is: going on would
        pass over an event that nothing is on record about.
        """
        if await verdict is not Verdict.COMMITTED or not self._board.is_current(lane):
            return
        log.warning(
            "a delivery is dead-lettered",
            extra={"tenant": str(row.key.tenant_id), "endpoint": str(row.key.endpoint_id), "sequence": row.seq},
        )
        self._instruments.settled("dead_lettered")
        lane.decided(row.seq)
        self._board.settled(lane)


def _dead_letter(row: OutboxRow, result: AttemptResult, step: Exhausted) -> tuple[Decision, DeadLetter]:
    attempt = result.attempt
    decision = Decision(
        key=row.key,
        seq=row.seq,
        event_id=row.event_id,
        event_time=row.event_time,
        kind=DecisionKind.DEAD_LETTER,
        reason=step.reason,
        actor=ACTOR,
    )
    letter = DeadLetter(
        key=row.key,
        seq=row.seq,
        event_id=row.event_id,
        event_time=row.event_time,
        type=row.type,
        ordering_key=row.ordering_key,
        attempts=row.attempts,
        last_outcome=attempt.outcome,
        last_status_code=attempt.status_code,
        last_error=attempt.error,
    )
    return decision, letter
