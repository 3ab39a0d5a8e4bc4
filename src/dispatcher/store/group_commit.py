"""Group commit: whatever arrives while a call of publish() is in flight forms the next batch.

Where some requests wait already as a call ends, the callers whom it answers are likely to be back soon: the next batch
waits for them, a moment and no longer. A batch costs as much CPU as three requests, and a database that commits fast
would else get a batch for every few. A single caller, or a slow one, never waits.

Two writers, each with a connection of its own: one for ordinary requests, one for large ones, so that a fan-out of
100,000 rows does not delay a single event. The requests of one stream keep to one writer while any is pending.

A request's way:

    submit ──> queued ──> in a batch ──> accepted | stale | id reused | chain broken
      │          │            ├─ the server refused the batch ──> bisected, until the bad request stands alone
      │          │            └─ the reply was lost ──> settled by pg_xact_status, else COMMIT_UNKNOWN
      │          └─ its deadline leaves no time to commit, or its caller is gone ──> dropped, nothing written
      └─ the queue is full ──> OverloadedError
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from dispatcher.errors import (
    CommitUnknownError,
    DeadlineTooShortError,
    DispatcherError,
    OverloadedError,
    UnavailableError,
)
from dispatcher.store.database import Database
from dispatcher.store.handoff import HandOff
from dispatcher.store.publish import PublishRequest, PublishResult, RequestResult, Verdict, committed_rows
from dispatcher.store.writer import BatchRefusedError, PublishWriter
from dispatcher.telemetry import Instruments

log = logging.getLogger(__name__)

OVERLOAD_RETRY_S = 0.1
_chain_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class GroupCommitLimits:
    """Bounds of the queue (events and bytes, both writers together) and of a batch.

    A batch that is not half full gathers for `gather_s` at most, where at least `gather_requests_min` wait as the one
    before it ends, and until `gather_requests_max` do.
    """

    queue_events_max: int = 20_000
    queue_bytes_max: int = 256 * 1024 * 1024
    batch_events_max: int = 500
    batch_rows_max: int = 20_000
    batch_bytes_max: int = 8 * 1024 * 1024
    large_rows_min: int = 5_000
    large_bytes_min: int = 2 * 1024 * 1024
    gather_s: float = 0.003
    gather_requests_min: int = 4
    gather_requests_max: int = 64
    commit_min_s: float = 0.05
    lock_timeout_s: float = 2.0
    publish_timeout_s: float = 20.0
    settle_timeout_s: float = 5.0


@dataclass(slots=True, eq=False)
class Chain:
    """The requests of one stream: committed in order, and none after one that was refused."""

    number: int = field(default_factory=lambda: next(_chain_numbers) % 2**31)
    broken: bool = False
    pending: int = 0
    writer: int = 0


@dataclass(slots=True, eq=False)
class _Item:
    request: PublishRequest
    future: asyncio.Future[RequestResult]
    deadline: float | None
    chain: Chain | None
    rows: int
    bytes: int

    def resolve(self, outcome: RequestResult | DispatcherError) -> None:
        refused = isinstance(outcome, DispatcherError) or outcome.verdict is not Verdict.ACCEPTED
        if self.chain is not None:
            self.chain.broken |= refused
        if self.future.done():
            return
        if isinstance(outcome, DispatcherError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


@dataclass(slots=True, eq=False)
class _Queue:
    """What waits for one writer. `enough`: so many requests end its gathering."""

    items: deque[_Item] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    enough: int = 0
    is_enough: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, item: _Item) -> None:
        self.items.append(item)
        self.arrived.set()
        if len(self.items) >= self.enough:
            self.is_enough.set()


class GroupCommit:
    """Durable publishing for the whole process. `run` until cancelled; `submit` from any task of the loop."""

    def __init__(
        self,
        database: Database,
        limits: GroupCommitLimits,
        handoff: HandOff,
        instruments: Instruments | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._handoff = handoff
        self._instruments = instruments or Instruments.silent()
        self._clock = clock
        self._queues = (_Queue(), _Queue())
        self._writers = tuple(
            PublishWriter(
                database,
                lock_timeout_s=limits.lock_timeout_s,
                timeout_s=limits.publish_timeout_s,
                settle_timeout_s=limits.settle_timeout_s,
            )
            for _ in self._queues
        )
        self._idle = asyncio.Event()
        self._idle.set()
        self.queued_events = 0
        self.queued_bytes = 0
        self._pending = 0
        self._instruments.publish_queue_events.follow(lambda: self.queued_events)
        self._instruments.publish_queue_bytes.follow(lambda: self.queued_bytes)

    async def submit(
        self, request: PublishRequest, *, deadline: float | None = None, chain: Chain | None = None
    ) -> RequestResult:
        """Commit one request. `deadline` is on the monotonic clock.

        Returns once the outcome is durable. Raises OverloadedError (nothing written), DeadlineTooShortError (nothing
        written), UnavailableError (nothing written), CommitUnknownError.
        """
        return await self.enqueue(request, deadline=deadline, chain=chain)

    def enqueue(
        self, request: PublishRequest, *, deadline: float | None = None, chain: Chain | None = None
    ) -> asyncio.Future[RequestResult]:
        """`submit` without the wait: the place in the queue is taken when this returns."""
        item = _Item(
            request, asyncio.get_running_loop().create_future(), deadline, chain, request.row_count, request.byte_count
        )
        self._check_room(item)
        writer = self._choose_writer(item)
        if chain is not None:
            chain.writer = writer
            chain.pending += 1
        self._queues[writer].put(item)
        self._count(item, 1)
        return item.future

    def _check_room(self, item: _Item) -> None:
        events, size = len(item.request.events), item.bytes
        limits = self._limits
        if self.queued_events and (
            self.queued_events + events > limits.queue_events_max or self.queued_bytes + size > limits.queue_bytes_max
        ):
            raise OverloadedError("the publish queue is full", retry_after_s=OVERLOAD_RETRY_S)

    def _choose_writer(self, item: _Item) -> int:
        if item.chain is not None and item.chain.pending:
            return item.chain.writer
        return int(item.rows >= self._limits.large_rows_min or item.bytes >= self._limits.large_bytes_min)

    def _count(self, item: _Item, sign: int) -> None:
        self.queued_events += sign * len(item.request.events)
        self.queued_bytes += sign * item.bytes
        self._pending += sign
        if self._pending:
            self._idle.clear()
        else:
            self._idle.set()

    async def run(self) -> None:
        """Both writers, until cancelled. An unexpected error ends the service: it is a bug."""
        try:
            async with asyncio.TaskGroup() as group:
                for writer in range(len(self._queues)):
                    group.create_task(self._write_batches(writer), name=f"publish-writer-{writer}")
        finally:
            for writer_connection in self._writers:
                writer_connection.terminate()
            for item in itertools.chain(*(queue.items for queue in self._queues)):
                item.resolve(UnavailableError("the service is stopping", reason="DRAINING"))

    async def drained(self) -> None:
        """Wait until all that was submitted has been answered. The caller bounds it."""
        await self._idle.wait()

    async def _write_batches(self, writer: int) -> None:
        queue = self._queues[writer]
        while True:
            await queue.arrived.wait()
            queue.arrived.clear()
            while queue.items:
                batch = take_batch(queue.items, self._limits)
                try:
                    kept = self._drop_hopeless(batch)
                    for part in by_tenant(kept) if self._writers[writer].takes_one_tenant else (kept,):
                        await self._write(writer, part)
                finally:
                    for item in batch:
                        self._finish(item)
                await self._gather(queue, len(batch))

    async def _gather(self, queue: _Queue, answered: int) -> None:
        """Wait a moment for callers who have just been answered: once all of them are back, nobody else is awaited."""
        limits, waiting = self._limits, len(queue.items)
        few, many = limits.gather_requests_min, limits.gather_requests_max
        if not limits.gather_s or not few <= waiting < many or _fills_half_a_batch(queue.items, limits):
            return
        queue.enough = min(waiting + answered, many)
        queue.is_enough.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.gather_s):
                await queue.is_enough.wait()

    def _finish(self, item: _Item) -> None:
        if item.chain is not None:
            item.chain.pending -= 1
        # A resolved one keeps its outcome: to resolve it again would break its stream.
        if not item.future.done():
            item.resolve(UnavailableError("the service is stopping", reason="DRAINING"))
        self._count(item, -1)

    def _drop_hopeless(self, batch: Sequence[_Item]) -> list[_Item]:
        latest = self._clock() + self._limits.commit_min_s
        kept = []
        for item in batch:
            if item.future.done():
                if item.chain is not None:
                    item.chain.broken = True
            elif item.deadline is not None and item.deadline < latest:
                item.resolve(DeadlineTooShortError("the deadline leaves no time to commit; nothing was written"))
            else:
                kept.append(item)
        return kept

    async def _write(self, writer: int, batch: Sequence[_Item]) -> None:
        """Write a batch; one that the server refuses is halved, so that a bad request never fails its neighbours."""
        kept = []
        for item in batch:
            if item.chain is not None and item.chain.broken:
                item.resolve(RequestResult(Verdict.CHAIN_BROKEN))
            else:
                kept.append(item)
        if not kept:
            return
        try:
            await self._write_once(writer, kept)
        except BatchRefusedError as error:
            if len(kept) == 1:
                kept[0].resolve(_refusal(error.cause))
                return
            middle = len(kept) // 2
            await self._write(writer, kept[:middle])
            await self._write(writer, kept[middle:])

    async def _write_once(self, writer: int, batch: Sequence[_Item]) -> None:
        requests = [item.request for item in batch]
        started = self._clock()
        try:
            outcome = await self._writers[writer].write(requests)
        except BatchRefusedError:
            raise
        except DispatcherError as error:
            self._measure(batch, "unknown" if isinstance(error, CommitUnknownError) else "failed", started)
            for item in batch:
                item.resolve(error)
            return
        except BaseException:  # cancelled, or a bug that ends the service: neither says that nothing was written
            for item in batch:
                item.resolve(CommitUnknownError("the service stopped while the event was being stored"))
            raise
        self._measure(batch, "committed", started)
        for item, result in zip(batch, outcome.results, strict=True):
            self._count_events(result)
            item.resolve(result)
        if outcome.reply is not None:
            self._hand_off(requests, outcome.reply)

    def _hand_off(self, requests: Sequence[PublishRequest], reply: PublishResult) -> None:
        rows, others = committed_rows(requests, reply, self._handoff.owns)
        if rows:
            self._handoff.offer(rows)
        if others:
            self._handoff.hint(others)

    def _measure(self, batch: Sequence[_Item], result: str, started: float) -> None:
        self._instruments.commit(
            events=sum(len(item.request.events) for item in batch),
            rows=sum(item.rows for item in batch),
            duration_s=self._clock() - started,
            result=result,
        )

    def _count_events(self, result: RequestResult) -> None:
        duplicates = sum(event.duplicate for event in result.events)
        if duplicates:
            self._instruments.events_published(duplicates, "duplicate")
        if len(result.events) > duplicates:
            self._instruments.events_published(len(result.events) - duplicates, "stored")


def _refusal(cause: asyncpg.PostgresError) -> DispatcherError:
    if isinstance(cause, asyncpg.LockNotAvailableError | asyncpg.QueryCanceledError | asyncpg.DeadlockDetectedError):
        return OverloadedError(
            "the endpoints are locked by another session; nothing was written",
            retry_after_s=OVERLOAD_RETRY_S,
            reason="ENDPOINTS_LOCKED",
        )
    if isinstance(cause, asyncpg.InsufficientResourcesError):
        return OverloadedError("the database is out of resources", retry_after_s=1.0, reason="DATABASE_EXHAUSTED")
    log.error("publish was refused by the database", exc_info=cause)
    return DispatcherError("the event could not be stored")


def _fills_half_a_batch(items: Iterable[_Item], limits: GroupCommitLimits) -> bool:
    return (
        2 * sum(len(item.request.events) for item in items) >= limits.batch_events_max
        or 2 * sum(item.rows for item in items) >= limits.batch_rows_max
        or 2 * sum(item.bytes for item in items) >= limits.batch_bytes_max
    )


def take_batch(queue: deque[_Item], limits: GroupCommitLimits) -> list[_Item]:
    """The next batch in arrival order: one request or more, within the limits, no id and no tenant version twice.

    A request that conflicts with the batch ends it, since order is kept.
    """
    batch: list[_Item] = []
    keys = _BatchKeys()
    events = rows = size = 0
    while queue:
        item = queue[0]
        events, rows, size = events + len(item.request.events), rows + item.rows, size + item.bytes
        full = events > limits.batch_events_max or rows > limits.batch_rows_max or size > limits.batch_bytes_max
        if batch and (full or not keys.fits(item.request)):
            break
        keys.add(item.request)
        batch.append(queue.popleft())
    return batch


def by_tenant(batch: Sequence[_Item]) -> list[list[_Item]]:
    """The batch in parts of one tenant each, none of a stream before what it sent earlier: of one whose requests go to
    several tenants, later ones come into later parts."""
    parts: list[list[_Item]] = []
    earliest: dict[int, int] = {}
    for item in batch:
        chain, tenant = item.request.chain, item.request.tenant_id
        first = earliest.get(chain, 0) if chain else 0
        number = next((n for n in range(first, len(parts)) if parts[n][0].request.tenant_id == tenant), len(parts))
        if number == len(parts):
            parts.append([])
        parts[number].append(item)
        if chain:
            earliest[chain] = number
    return parts


@dataclass(slots=True)
class _BatchKeys:
    """What a batch may hold only once: a caller's event id, and a tenant under two routing versions."""

    ids: set[tuple[UUID, str]] = field(default_factory=set)
    versions: dict[UUID, UUID] = field(default_factory=dict)

    def fits(self, request: PublishRequest) -> bool:
        if self.versions.get(request.tenant_id, request.version) != request.version:
            return False
        return not any((request.tenant_id, e.event_id) in self.ids for e in request.events if e.digest is not None)

    def add(self, request: PublishRequest) -> None:
        self.versions[request.tenant_id] = request.version
        self.ids.update((request.tenant_id, e.event_id) for e in request.events if e.digest is not None)
