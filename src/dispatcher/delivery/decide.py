"""Decisions and halts on their way into the database: fenced, grouped, and acted upon only once committed.

submit ─▶ waiting ─(at once)─▶ batch ─fence + INSERT─▶ COMMITTED
                                 │  partition no longer held under that epoch ─▶ VOID
                                 │  the database refuses the row itself ───────▶ REFUSED
                                 └─ database away: tried again (idempotent) for as long as the lease lasts
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from dispatcher.delivery.backoff import Backoff
from dispatcher.delivery.bisect import write_bisected
from dispatcher.delivery.exchange import bounded_error
from dispatcher.errors import UnavailableError
from dispatcher.model import DeadLetter, Decision, Halt

_log = logging.getLogger(__name__)


class Verdict(enum.Enum):
    """What became of a decision.

    COMMITTED: it stands. VOID: not known to stand, since the partition was lost; its lane must go. REFUSED: the
    database won't have this row whatever happens; the delivery stays undecided and its lane must stop.
    """

    COMMITTED = "COMMITTED"
    VOID = "VOID"
    REFUSED = "REFUSED"


@dataclass(frozen=True, slots=True)
class DecisionLimits:
    """Bounds of one transaction and the pauses between tries."""

    batch_max: int = 500
    retry_min_s: float = 0.05
    retry_max_s: float = 1.0


@dataclass(slots=True, eq=False)
class _Request:
    decision: Decision | Halt
    letter: DeadLetter | None
    epoch: int
    answer: asyncio.Future[Verdict]


class DecisionWriter:
    """Commits decisions under the epoch they were taken in. `run` is the task; all is for one event loop.

    `commit(epochs, decisions, dead_letters, halts)` is `store.decisions.commit` bound to the database: it returns the
    partitions that were still held. `held(partition)` is the epoch this instance holds now, None where it holds none.
    """

    def __init__(
        self,
        commit: Callable[
            [Mapping[int, int], Sequence[Decision], Sequence[DeadLetter], Sequence[Halt]], Awaitable[set[int]]
        ],
        held: Callable[[int], int | None],
        limits: DecisionLimits,
    ) -> None:
        self._commit, self._held, self._limits = commit, held, limits
        self._backoff = Backoff(limits.retry_min_s, limits.retry_max_s)
        self._waiting: list[_Request] = []
        self._batch: list[_Request] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, decision: Decision, letter: DeadLetter | None, epoch: int) -> asyncio.Future[Verdict]:
        """Ask for `decision`, taken by a lane of `epoch`; whoever awaits the answer may be cancelled, it goes on.

        A row waits for its answer, so there is at most one decision for each row in flight here: that bounds the queue.
        """
        return self._submit(decision, letter, epoch)

    def submit_halt(self, halt: Halt, epoch: int) -> asyncio.Future[Verdict]:
        """Ask for `halt` as for a decision."""
        return self._submit(halt, None, epoch)

    def _submit(self, decision: Decision | Halt, letter: DeadLetter | None, epoch: int) -> asyncio.Future[Verdict]:
        request = _Request(decision, letter, epoch, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._idle.clear()
        self._wake.set()
        return request.answer

    def __len__(self) -> int:
        """Decisions that have no verdict yet."""
        return len(self._waiting) + len(self._batch)

    def reset(self) -> int:
        """Declare everything undecided VOID (a database that lost commits: leases and lanes go as well)."""
        forgotten = self._batch + self._waiting
        self._waiting, self._batch = [], []
        for request in forgotten:
            _answer(request, Verdict.VOID)
        self._idle.set()
        return len(forgotten)

    async def drain(self, timeout_s: float) -> int:
        """Wait until every decision has its verdict, at most `timeout_s`; returns how many have none."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("decisions left uncommitted will be taken anew", extra={"decisions": len(self)})
        return len(self)

    async def run(self) -> None:
        """Commit for ever; cancel it after `drain`."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                self._batch = self._waiting[: self._limits.batch_max]
                del self._waiting[: len(self._batch)]
                await self._settle_batch()
            self._idle.set()

    async def _settle_batch(self) -> None:
        """Bring the batch to its verdicts, however long the database is away while its leases last."""
        while self._batch:
            self._void_lost()
            try:
                await self._write(self._batch)
            except UnavailableError as error:
                _log.warning("decisions wait for the database", extra={"decisions": len(self), "error": str(error)})
                await asyncio.sleep(self._backoff.next_s())
            else:
                self._backoff.reset()
                self._batch = [request for request in self._batch if not request.answer.done()]

    def _void_lost(self) -> None:
        """A decision of another epoch than the present one is void; no need to ask the database."""
        kept = []
        for request in self._batch:
            if self._held(request.decision.key.partition) == request.epoch:
                kept.append(request)
            else:
                _answer(request, Verdict.VOID)
        self._batch = kept

    async def _write(self, requests: Sequence[_Request]) -> None:
        """One try over all of them; a refused row is found by halving and answered alone."""
        if not requests:
            return
        written = await write_bisected(self._commit_part, requests)
        for part, held in written.parts:
            for request in part:
                _answer(request, Verdict.COMMITTED if request.decision.key.partition in held else Verdict.VOID)
        for request, error in written.refused:
            _log_refused(request.decision, error)
            _answer(request, Verdict.REFUSED)

    async def _commit_part(self, part: Sequence[_Request]) -> set[int]:
        """After `_void_lost` every request of a partition carries the same, present epoch."""
        epochs = {request.decision.key.partition: request.epoch for request in part}
        letters = [request.letter for request in part if request.letter is not None]
        decisions = [request.decision for request in part if isinstance(request.decision, Decision)]
        halts = [request.decision for request in part if isinstance(request.decision, Halt)]
        return await self._commit(epochs, decisions, letters, halts)


def _answer(request: _Request, verdict: Verdict) -> None:
    """The waiter may be gone (cancelled), or `reset` may have spoken while the database did: the first word stands."""
    if not request.answer.done():
        request.answer.set_result(verdict)


def _log_refused(decision: Decision | Halt, error: Exception) -> None:
    _log.error(
        "a decision is refused by the database; its delivery stays undecided",
        extra={
            "tenant": str(decision.key.tenant_id),
            "endpoint": str(decision.key.endpoint_id),
            "sequence": decision.seq,
            "event_id": decision.event_id,
            "kind": decision.kind.name if isinstance(decision, Decision) else "HALT",
            "error": bounded_error(repr(error)),
        },
    )
