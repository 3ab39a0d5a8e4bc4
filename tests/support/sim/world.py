"""The simulated database: what is committed, leases by its clock, and what may go wrong between it and a process.

Every statement group of `dispatcher.store` that delivery uses is one action here, done at one instant, as a transaction
is. Its effect is durable at once. (A planted bug has some that are not: a crash takes those back as long as nothing
durable has followed, as with synchronous_commit off.)
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from dispatcher.errors import UnavailableError
from dispatcher.model import (
    Attempt,
    Command,
    Cursor,
    Decision,
    EndpointKey,
    EndpointSettings,
    EndpointState,
    Halt,
    Instance,
    OrderingMode,
    Outcome,
    SealedSigningKey,
)
from tests.support.sim.loop import Process, SimLoop

START = datetime(2026, 1, 1, tzinfo=UTC)
UNREACHABLE_S = 1.5
"""After so long a process takes a database that does not answer for away."""


@dataclass(slots=True)
class StoredLease:
    epoch: int = 0
    owner: UUID | None = None
    expires_at: float = 0.0
    renewals: int = 0
    acquired_at: float = 0.0


@dataclass(slots=True)
class StoredRow:
    """One delivery: a row of the outbox, with its event."""

    key: EndpointKey
    seq: int
    at: float
    event_id: str
    ordering_key: str | None
    revision: int
    data: bytes


@dataclass(slots=True)
class StoredParked:
    row: StoredRow
    mode: OrderingMode
    due_at: float


@dataclass(slots=True)
class StoredEndpoint:
    key: EndpointKey
    name: str
    revisions: dict[int, EndpointSettings]
    signing_key: SealedSigningKey
    state: EndpointState = EndpointState.ACTIVE
    updated_at: float = 0.0
    exhausted_heads: int = 0
    failing_since: datetime | None = None
    trouble: str | None = None

    @property
    def revision(self) -> int:
        return max(self.revisions)

    def mode_of(self, row: StoredRow) -> OrderingMode:
        return self.revisions[row.revision].ordering_mode


class BrokenPromiseError(AssertionError):
    """Something happened that must never happen."""


@dataclass(slots=True)
class World:
    """All that is outside of the processes. `sometimes` counts what a run has shown."""

    loop: SimLoop
    chance: random.Random
    partitions: int
    leases: dict[int, StoredLease] = field(default_factory=dict)
    instances: dict[UUID, Instance] = field(default_factory=dict)
    heartbeats: dict[UUID, float] = field(default_factory=dict)
    endpoints: dict[EndpointKey, StoredEndpoint] = field(default_factory=dict)
    outbox: dict[EndpointKey, list[StoredRow]] = field(default_factory=lambda: defaultdict(list))
    attempts: dict[tuple[EndpointKey, int], list[Attempt]] = field(default_factory=lambda: defaultdict(list))
    decisions: dict[tuple[EndpointKey, int], Decision] = field(default_factory=dict)
    decided_at: dict[tuple[EndpointKey, int], float] = field(default_factory=dict)
    parked: dict[EndpointKey, dict[int, StoredParked]] = field(default_factory=lambda: defaultdict(dict))
    halts: dict[EndpointKey, dict[int, Halt]] = field(default_factory=lambda: defaultdict(dict))
    cursors: dict[EndpointKey, Cursor] = field(default_factory=dict)
    commands: list[Command] = field(default_factory=list)
    results: dict[UUID, Mapping[str, Any]] = field(default_factory=dict)
    published: dict[str, bool] = field(default_factory=dict)
    volatile: list[Callable[[], None]] = field(default_factory=list)
    is_up: bool = True
    generation: int = 0
    slow_s: float = 0.0
    loses_replies: float = 0.0
    settled_at: dict[tuple[EndpointKey, int], float] = field(default_factory=dict)
    """When a row's first success or its decision came on record."""
    cut_off: set[Process] = field(default_factory=set)
    listeners: dict[UUID, Callable[[str], None]] = field(default_factory=dict)
    loses_hints: float = 0.0
    sometimes: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.leases = {partition: StoredLease() for partition in range(self.partitions)}

    def now(self) -> datetime:
        """The database's clock."""
        return START + timedelta(seconds=self.loop.time())

    def time_of(self, at: float) -> datetime:
        return START + timedelta(seconds=at)

    # -- statements ------------------------------------------------------------------------------------------------

    def ask(self, process: Process, action: Callable[[], Any], *, durable: bool = True) -> asyncio.Future[Any]:
        """Send a transaction to the database; the answer comes after a while, or is lost, before or after it."""
        answer: asyncio.Future[Any] = self.loop.create_future()
        if process in self.cut_off or not self.is_up:
            delay_s = UNREACHABLE_S if process in self.cut_off else self._latency_s()
            self.loop.at(delay_s, lambda: _fail(answer, "unreachable"))
            return answer
        self.loop.at(self._latency_s(), lambda: self._arrive(process, action, answer, durable=durable))
        return answer

    def _latency_s(self) -> float:
        return self.chance.expovariate(1 / 0.002) + self.slow_s * self.chance.random()

    def _arrive(
        self, process: Process, action: Callable[[], Any], answer: asyncio.Future[Any], *, durable: bool
    ) -> None:
        if not self.is_up:
            _fail(answer, "down")
            return
        try:
            result = action()
        except BrokenPromiseError:
            raise
        except Exception as error:  # noqa: BLE001 -- what a statement raises is its answer
            self._answer(process, answer, None, error)
            return
        if durable:
            self.volatile.clear()
        self._answer(process, answer, result, None)

    def _answer(self, process: Process, answer: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        generation = self.generation
        is_lost = self.chance.random() < self.loses_replies
        if is_lost:
            self.sometimes["lost reply"] += 1

        def come() -> None:
            if is_lost or generation != self.generation or process in self.cut_off:
                _fail(answer, "the connection broke")
            elif error is not None and not answer.done():
                answer.set_exception(error)
            elif not answer.done():
                answer.set_result(result)

        self.loop.at(self._latency_s() + (UNREACHABLE_S if is_lost else 0.0), come)

    def crash(self, down_s: float) -> None:
        """The server dies: what was not durable is gone, all connections too; it is back after `down_s`."""
        if not self.is_up:
            return
        self.sometimes["database crash"] += 1
        if self.volatile:
            self.sometimes["lost acknowledgement"] += 1
        for undo in reversed(self.volatile):
            undo()
        self.volatile.clear()
        self.is_up = False
        self.generation += 1
        self.listeners.clear()
        self.loop.at(down_s, self._come_up)

    def _come_up(self) -> None:
        self.is_up = True

    # -- facts -----------------------------------------------------------------------------------------------------

    def held(self, epochs: Mapping[int, int]) -> set[int]:
        """The fence: those of the partitions that still are at these epochs."""
        found = {partition for partition, epoch in epochs.items() if self.leases[partition].epoch == epoch}
        if len(found) < len(epochs):
            self.sometimes["fenced"] += 1
        return found

    def named(self, name: str) -> EndpointKey:
        """The endpoint of that name."""
        return next(key for key, endpoint in self.endpoints.items() if endpoint.name == name)

    def has_success(self, row: StoredRow) -> bool:
        return any(
            a.outcome is Outcome.SUCCEEDED and a.event_id == row.event_id for a in self.attempts[row.key, row.seq]
        )

    def is_settled(self, row: StoredRow) -> bool:
        """Whether a success or a decision is on record."""
        return (row.key, row.seq) in self.decisions or self.has_success(row)

    def rows_above(self, key: EndpointKey, seq: int) -> list[StoredRow]:
        return self.outbox[key][seq:]

    def highest(self, key: EndpointKey) -> int:
        return len(self.outbox[key])

    def check_watermark(self, key: EndpointKey) -> None:
        """Nothing at or below a cursor is pending, unless it is parked."""
        for row in self.outbox[key][: self.cursors[key].seq]:
            if not self.is_settled(row) and row.seq not in self.parked[key]:
                raise BrokenPromiseError(
                    f"{self.endpoints[key].name}: the cursor is at {self.cursors[key].seq}, {row.seq} is pending"
                )

    def check_start(self, key: EndpointKey, seq: int, process: Process, instance_id: UUID) -> None:
        """A request may start only under a lease in force, and not for what was on record as done when that began.

        A process that is frozen between its look at the lease and the start is forgiven: no clock can help it.
        """
        lease, now = self.leases[key.partition], self.loop.time()
        if lease.owner != instance_id or lease.expires_at <= now:
            self.sometimes["late start"] += 1
            if process.thawed_at != now:
                raise BrokenPromiseError(f"{process.name} starts {self.endpoints[key].name}/{seq} without a lease")
        elif self.settled_at.get((key, seq), now) < lease.acquired_at:
            raise BrokenPromiseError(
                f"{process.name} starts {self.endpoints[key].name}/{seq}, on record as done before its lease began"
            )

    # -- what callers and operators do -------------------------------------------------------------------------------

    def publish(self, event_id: str, ordering_key: str | None, data: bytes) -> list[StoredRow]:
        """One event to every endpoint; the rows, none for an event that was published before."""
        if event_id in self.published:
            self.sometimes["duplicate publish"] += 1
            return []
        self.published[event_id] = True
        rows = []
        for key, endpoint in sorted(self.endpoints.items()):
            row = StoredRow(
                key,
                self.highest(key) + 1,
                self.loop.time(),
                event_id,
                ordering_key,
                endpoint.revision,
                data,
            )
            self.outbox[key].append(row)
            rows.append(row)
        return rows

    def change(self, key: EndpointKey, **settings: Any) -> None:
        """A new revision of an endpoint."""
        endpoint = self.endpoints[key]
        endpoint.revisions[endpoint.revision + 1] = replace(endpoint.revisions[endpoint.revision], **settings)
        endpoint.updated_at = self.loop.time()

    def set_state(self, key: EndpointKey, state: EndpointState) -> None:
        self.endpoints[key].state = state
        self.endpoints[key].updated_at = self.loop.time()


def _fail(answer: asyncio.Future[Any], why: str) -> None:
    if not answer.done():
        answer.set_exception(UnavailableError(f"the database does not answer ({why})"))
