"""Attempts on their way into the database: facts, which need no fence and may be appended by anyone.

    add ─▶ pending ─(flush_interval_s or attempts_max)─▶ batch ─COPY─▶ committed ─▶ on_flushed
                                                          │
                                  database away: kept, appended again (idempotent) after a pause
                                  a row refused: found by halving, sanitised, at last dropped with noise

One batch is being written while the next one forms. A success counts for its lane only once `on_flushed` names it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from dispatcher.delivery.backoff import Backoff
from dispatcher.delivery.bisect import Written, write_bisected
from dispatcher.delivery.exchange import bounded_error
from dispatcher.errors import UnavailableError
from dispatcher.model import Attempt
from dispatcher.telemetry import Instruments

Append = Callable[[Sequence[Attempt]], Awaitable[None]]
"""`store.attempts.append` or `append_again`, bound to the database."""

DURATION_MAX_S = 86_400.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FlushLimits:
    """Bounds of the buffer and the pauses between tries.

    `buffer_max` is where `is_full` turns: whoever starts attempts must stop. What is in flight then is still taken, so
    the buffer holds at most `buffer_max` plus the attempts in flight. A lone row that the database refuses for reasons
    of its own is dropped after `refused_tries_max` tries.
    """

    interval_s: float = 0.05
    attempts_max: int = 1000
    buffer_max: int = 10_000
    retry_min_s: float = 0.05
    retry_max_s: float = 1.0
    refused_tries_max: int = 5


@dataclass(slots=True)
class _Batch:
    """What is being written, and since when (monotonic seconds) its oldest attempt has waited."""

    attempts: Sequence[Attempt]
    oldest_at: float


class Flusher:
    """The bounded buffer and the task that empties it. `run` is the task; everything else is for the same loop.

    `on_flushed` names attempts that are committed, `on_dropped` those that never will be: their lane must be read
    anew, else it waits for ever (an acknowledgement dropped so means that its delivery is repeated).
    """

    def __init__(
        self,
        append: Append,
        append_again: Append,
        *,
        on_flushed: Callable[[Sequence[Attempt]], None],
        on_dropped: Callable[[Sequence[Attempt]], None],
        instruments: Instruments,
        limits: FlushLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._append, self._append_again = append, append_again
        self._on_flushed, self._on_dropped = on_flushed, on_dropped
        self._instruments = instruments
        self._limits = limits
        self._clock = clock
        self._backoff = Backoff(limits.retry_min_s, limits.retry_max_s)
        self._pending: list[tuple[float, Attempt]] = []
        self._batch: _Batch | None = None
        self._wake = asyncio.Event()
        self._added = 0
        self._done = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._draining = False

    def add(self, attempt: Attempt) -> None:
        """Take one attempt; never refuses, since what has happened must be recorded. See `is_full`."""
        self._pending.append((self._clock(), attempt))
        self._added += 1
        waiting = len(self._pending)
        if waiting == 1 or waiting == self._limits.attempts_max:
            self._wake.set()

    def __len__(self) -> int:
        """Attempts not yet known to be committed."""
        return len(self._pending) + (len(self._batch.attempts) if self._batch else 0)

    @property
    def is_full(self) -> bool:
        """No further attempt may start."""
        return len(self) >= self._limits.buffer_max

    def lets_start(self, now: float, wait_max_s: float) -> bool:
        """Whether another attempt may start: there is room, and no attempt has waited too long for its commit."""
        pending, batch = self._pending, self._batch
        if batch is None:
            return not pending or (now - pending[0][0] <= wait_max_s and len(pending) < self._limits.buffer_max)
        return now - batch.oldest_at <= wait_max_s and not self.is_full

    def oldest_wait_s(self, now: float) -> float:
        """How long the oldest attempt has waited for its commit, 0.0 if none waits. `now` is monotonic."""
        if self._batch is not None:
            return max(0.0, now - self._batch.oldest_at)
        return max(0.0, now - self._pending[0][0]) if self._pending else 0.0

    def reset(self) -> int:
        """Forget everything unflushed, the batch being written included; returns how many attempts that were.

        For a database that lost commits: what was acknowledged before then must not settle rows written since.
        """
        forgotten = len(self)
        self._pending.clear()
        self._batch = None
        self._finish(forgotten)
        return forgotten

    async def flushed(self) -> None:
        """Wait until every attempt added so far is committed, dropped or forgotten; what comes later doesn't matter.

        The caller bounds it: a database that is away makes it wait.
        """
        if self._done == self._added:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append((self._added, waiter))
        await waiter

    async def drain(self, timeout_s: float) -> int:
        """Flush at once until nothing waits, for at most `timeout_s`; returns how many attempts are left unflushed.

        `run` must be running. From then on nothing waits for the interval any more.
        """
        self._draining = True
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                while len(self):
                    await self.flushed()
        except TimeoutError:
            _log.warning("attempts left unflushed will be repeated", extra={"attempts": len(self)})
        return len(self)

    async def run(self) -> None:
        """Flush for ever; cancel it after `drain`."""
        while True:
            await self._gather()
            await self._flush(self._take())

    async def _gather(self) -> None:
        """Wait until a batch is due: it is large enough, its oldest has waited long enough, or nobody may wait."""
        limits = self._limits
        while True:
            self._wake.clear()
            waiting = len(self._pending)
            if waiting >= limits.attempts_max or (waiting and self._draining):
                return
            due_in_s = self._pending[0][0] + limits.interval_s - self._clock() if waiting else None
            if due_in_s is not None and due_in_s <= 0:
                return
            try:
                async with asyncio.timeout(due_in_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _take(self) -> _Batch:
        taken = self._pending[: self._limits.attempts_max]
        del self._pending[: len(taken)]
        self._batch = _Batch([attempt for _, attempt in taken], taken[0][0])
        return self._batch

    async def _flush(self, batch: _Batch) -> None:
        """Write one batch, however long the database is away. Ends early, without a word, after `reset`."""
        tries, first = 0, True
        while batch is self._batch:
            started_at = self._clock()
            written = await self._try(batch.attempts, first=first)
            first = False
            if batch is not self._batch:
                return
            if written is not None and self._settle(written, tries, self._clock() - started_at):
                return
            tries += written is not None
            await asyncio.sleep(self._backoff.next_s())

    async def _try(self, attempts: Sequence[Attempt], *, first: bool) -> Written[Attempt, None] | None:
        """One try: COPY, then row by row where rows are to blame. None: the database is away, the outcome unknown."""
        try:
            if first:
                try:
                    await self._append(attempts)
                except UnavailableError:
                    raise
                except Exception as error:  # noqa: BLE001 - the driver's errors are known to store alone
                    _log.warning("a flush was refused; its rows are tried apart", extra={"error": repr(error)})
                else:
                    return Written([(attempts, None)])
            return await self._write_apart(attempts)
        except UnavailableError as error:
            _log.warning("a flush waits for the database", extra={"attempts": len(attempts), "error": str(error)})
            return None

    async def _write_apart(self, attempts: Sequence[Attempt]) -> Written[Attempt, None]:
        """Append what can be appended; whatever is refused gets a second chance without its free text."""
        written = await write_bisected(self._append_again, attempts)
        if not written.refused:
            return written
        again = await write_bisected(self._append_again, [sanitised(attempt) for attempt, _ in written.refused])
        return Written(written.parts + again.parts, again.refused)

    def _settle(self, written: Written[Attempt, None], tries: int, duration_s: float) -> bool:
        """Tell whom it concerns; False if the batch must be tried again as it is.

        Where nothing of a batch could be written the rows are hardly to blame: it is kept, so that its wait stops the
        sending. A lone row gets a few tries, lest it stop everything for ever.
        """
        refused = [attempt for attempt, _ in written.refused]
        if refused and not written.parts and (len(refused) > 1 or tries + 1 < self._limits.refused_tries_max):
            _log.error("no row of a flush is accepted", extra={"attempts": len(refused), "error": _first(written)})
            return False
        self._backoff.reset()
        self._batch = None
        flushed = [attempt for part, _ in written.parts for attempt in part]
        self._instruments.flushed(len(flushed), duration_s)
        if flushed:
            self._on_flushed(flushed)
        if refused:
            self._drop(refused, _first(written))
        self._finish(len(flushed) + len(refused))
        return True

    def _finish(self, count: int) -> None:
        """`count` more attempts, in the order they were added, wait for nothing any more."""
        self._done += count
        still_waiting = []
        for target, waiter in self._waiters:
            if target <= self._done and not waiter.done():
                waiter.set_result(None)
            elif not waiter.done():
                still_waiting.append((target, waiter))
        self._waiters = still_waiting

    def _drop(self, refused: Sequence[Attempt], error: str) -> None:
        self._instruments.flush_dropped(len(refused))
        for attempt in refused:
            _log.error(
                "an attempt cannot be recorded and is dropped; its delivery will be repeated",
                extra={
                    "tenant": str(attempt.key.tenant_id),
                    "endpoint": str(attempt.key.endpoint_id),
                    "sequence": attempt.seq,
                    "event_id": attempt.event_id,
                    "outcome": attempt.outcome.name,
                    "error": error,
                },
            )
        self._on_dropped(refused)


def sanitised(attempt: Attempt) -> Attempt:
    """The same fact without what a hostile receiver could have put in: no excerpt, plain bounded text, sane numbers."""
    status = attempt.status_code
    return dataclasses.replace(
        attempt,
        duration_s=min(max(attempt.duration_s, 0.0), DURATION_MAX_S),
        status_code=status if status is not None and 0 <= status <= 999 else None,
        error=None if attempt.error is None else bounded_error(attempt.error),
        response_excerpt=None,
    )


def _first(written: Written[Attempt, None]) -> str:
    """The first refusal's class and text, bounded: a driver's message may quote the row."""
    return bounded_error(repr(written.refused[0][1]))
