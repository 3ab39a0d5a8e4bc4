"""Keeps this instance's share of the partitions: renews, acquires, gives back; the plan itself is `delivery.shares`.

Time is kept on two clocks. The database's decides who may acquire a lease. Here a lease is good until its time to live
after the renewal was *sent*, by the monotonic clock, which is never later: a slow answer or a freeze shortens it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

from dispatcher.delivery.shares import Plan, View, decide
from dispatcher.errors import UnavailableError
from dispatcher.model import PARTITION_COUNT, Instance, Lease
from dispatcher.store import instances, leases
from dispatcher.store.database import Database

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """`poll_s`: how often the fleet is looked at. `release_timeout_s`: how long a partition may take to come to rest
    and to be written."""

    lease_ttl_s: float = 15.0
    lease_send_margin_s: float = 1.0
    poll_s: float = 1.0
    release_timeout_s: float = 10.0

    @property
    def renew_s(self) -> float:
        return self.lease_ttl_s / 3


class LeaseEvents(Protocol):
    """What the engine is told. All but `on_release` run inside the keeper's round and must not block."""

    def on_acquired(self, partition: int, epoch: int) -> None:
        """The partition is ours under this epoch: load its lanes."""

    async def on_release(self, partition: int) -> None:
        """Stop sending for the partition, drain, checkpoint; the lease is given back when this returns."""

    def on_lost(self, partition: int) -> None:
        """The partition is another's, or may be: its lanes die with their epoch."""

    def on_reset(self) -> None:
        """The database went back in time: drop all lanes and all that is not flushed; nothing is held any more."""


class LeaseChange(enum.StrEnum):
    """What became of a lease, from this instance's view; the words are those of the metric."""

    ACQUIRED = "acquired"
    RELEASED = "released"
    LOST = "lost"


@dataclass(slots=True)
class Held:
    """One lease of ours: `valid_until` is monotonic seconds, `renewals` the database's count when last seen."""

    epoch: int
    valid_until: float
    renewals: int


def went_back(held: Mapping[int, Held], renewed: Iterable[Lease]) -> bool:
    """Whether the database forgot a renewal that it had confirmed: each renewal counts one up from at least ours."""
    return any(lease.renewals <= held[lease.partition].renewals for lease in renewed if lease.partition in held)


class LeaseKeeper:
    """Holds the share of one instance. `describe` gives its heartbeat, without `draining` and `partitions`.

    serving ──drain()──> draining: everything is given back, nothing is taken, heartbeats go on
        └──────stop()──────> stopping: the same, and `run` returns when all is given back
    """

    def __init__(
        self,
        db: Database,
        settings: LeaseSettings,
        events: LeaseEvents,
        describe: Callable[[], Instance],
        clock: Callable[[], float] = time.monotonic,
        *,
        count: Callable[[LeaseChange, int], None] = lambda _change, _count: None,
    ) -> None:
        """`count` is told of leases acquired, released and lost."""
        self._db = db
        self._count = count
        self._settings = settings
        self._events = events
        self._describe = describe
        self._clock = clock
        self._held: dict[int, Held] = {}
        self._releases: dict[int, asyncio.Task[None]] = {}
        self._owners: dict[int, UUID] = {}
        self._renew_due = -1.0
        self._next_expiry_s: float | None = None
        self.live_count = 1
        """Instances alive at the last look, this one included."""
        self._draining = False
        self._stopping = False
        self._handed_over = asyncio.Event()
        self._wake = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None

    @functools.cached_property
    def instance_id(self) -> UUID:
        """Under which leases are held; asked for once there is something to describe."""
        return self._describe().instance_id

    # What the engine asks.

    def held(self, partition: int) -> int | None:
        """The epoch under which the partition is ours; None when it is not, or is being given back."""
        lease = self._held.get(partition)
        return None if lease is None or partition in self._releases else lease.epoch

    def epoch(self, partition: int) -> int | None:
        """The same, but for one that is being given back, too: what is decided about it is still ours to write."""
        lease = self._held.get(partition)
        return None if lease is None else lease.epoch

    @property
    def epochs(self) -> dict[int, int]:
        """All partitions that are ours by epoch, those being given back included."""
        return {partition: lease.epoch for partition, lease in self._held.items()}

    def may_send(self, partition: int, now: float) -> bool:
        """Whether a request may start now (monotonic seconds): ours, staying, and with the margin left."""
        lease = self._held.get(partition)
        return (
            lease is not None
            and partition not in self._releases
            and not self._db.is_replaced
            and now < lease.valid_until - self._settings.lease_send_margin_s
        )

    def sendable_until(self) -> float:
        """Until when (monotonic seconds) requests may start for whatever is held: the first lease to run out counts.

        A renewal and an acquisition only move it on, so a value read earlier stays a safe bound.
        """
        if self._db.is_replaced:
            return 0.0
        until = min((lease.valid_until for lease in self._held.values()), default=0.0)
        return until - self._settings.lease_send_margin_s

    def owner_of(self, partition: int) -> UUID | None:
        """Who held the partition at the last look at the fleet."""
        return self._owners.get(partition)

    # The loop.

    async def run(self) -> None:
        """Work until stopped or cancelled. While the database is away nothing is acquired and validity runs out."""
        async with asyncio.TaskGroup() as self._group:
            while self._held or not self._stopping:
                try:
                    await self._round()
                except UnavailableError as error:
                    log.warning("the lease round failed", extra={"error": str(error)})
                if self._draining and not self._held and not self._releases:
                    self._handed_over.set()
                await self._pause()
        with contextlib.suppress(UnavailableError):
            await instances.remove(self._db, self.instance_id)

    def drain(self) -> None:
        """Begin to give everything back, for good: others take it, nothing comes to us any more. Idempotent."""
        self._draining = True
        self._renew_due = -1.0
        self._wake.set()

    def stop(self) -> None:
        """`drain`, and `run` returns when all is given back."""
        self._stopping = True
        self.drain()

    async def handed_over(self) -> None:
        """Return once nothing is held any more after `drain`, in the database neither. The caller bounds it."""
        await self._handed_over.wait()

    @property
    def is_draining(self) -> bool:
        """Whether everything is being given back, or has been."""
        return self._draining

    async def _round(self) -> None:
        """One look at the fleet, with renewal and heartbeat when they are due. Raises `UnavailableError`."""
        if self._clock() >= self._renew_due or self._db.is_replaced:
            await self._heed_timeline()
            await self._renew()
        plan = decide(await self._view())
        self._begin_releases(plan)
        await self._acquire(plan)

    async def _pause(self) -> None:
        """Sleep until the next look, sooner where another's lease runs out sooner."""
        pause_s = min(self._settings.poll_s, max(0.0, self._renew_due - self._clock()) or self._settings.poll_s)
        if self._next_expiry_s is not None:
            pause_s = min(pause_s, self._next_expiry_s + 0.01)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        self._wake.clear()

    async def _heed_timeline(self) -> None:
        """Start afresh on another timeline than that of the leases held. It becomes that of the fence only then: what
        was decided before is void."""
        timeline = await leases.timeline(self._db)
        if not self._db.is_on(timeline):
            await self._reset("the database's timeline has changed")
        self._db.begin_on(timeline)

    async def _renew(self) -> None:
        await instances.heartbeat(self._db, replace(self._describe(), draining=self._draining))
        sent = self._clock()
        asked = self.epochs
        renewed = await leases.renew(self._db, self.instance_id, asked, self._settings.lease_ttl_s)
        self._renew_due = sent + self._settings.renew_s
        if went_back(self._held, renewed):
            await self._reset("the database has forgotten a renewal")
            return
        for lease in renewed:
            if lease.partition in self._held:
                self._note(lease, sent)
        for partition in asked.keys() - {lease.partition for lease in renewed}:
            self._lose(partition)

    async def _view(self) -> View:
        live = await instances.live(self._db, self._settings.lease_ttl_s)
        owners = await leases.read_owners(self._db)
        self._owners = {partition: owner for partition, (owner, _) in owners.items()}
        self.live_count = len(live) + (self.instance_id not in {instance.instance_id for instance in live})
        sharing = {instance.instance_id for instance in live if not instance.draining} - {self.instance_id}
        if not self._draining:
            sharing.add(self.instance_id)
        # Of live owners too: one that has just died still counts as alive, and its leases run out between two looks.
        foreign = [remaining_s for owner, remaining_s in owners.values() if owner != self.instance_id]
        self._next_expiry_s = min(foreign, default=None)
        return View(
            me=self.instance_id,
            live=frozenset(sharing),
            owners={partition: owner for partition, (owner, _) in owners.items() if 0 <= partition < PARTITION_COUNT},
            releasing=frozenset(self._releases),
        )

    async def _acquire(self, plan: Plan) -> None:
        wanted = [
            partition for partition in plan.acquire if partition not in self._held and partition not in self._releases
        ]
        if not wanted or self._draining:
            return
        sent = self._clock()
        taken = await leases.acquire(self._db, self.instance_id, len(wanted), self._settings.lease_ttl_s, wanted)
        for lease in taken:
            self._note(lease, sent)
            self._events.on_acquired(lease.partition, lease.epoch)
        self._count(LeaseChange.ACQUIRED, len(taken))

    def _note(self, lease: Lease, sent: float) -> None:
        self._held[lease.partition] = Held(lease.epoch, sent + self._settings.lease_ttl_s, lease.renewals)

    def _lose(self, partition: int) -> None:
        if self._held.pop(partition, None) is not None:
            self._count(LeaseChange.LOST, 1)
            self._events.on_lost(partition)

    async def _reset(self, reason: str) -> None:
        """Start afresh: what we hold, and what the database says we hold, is dropped and acquired under new epochs."""
        log.warning("all leases are dropped", extra={"reason": reason})
        self._count(LeaseChange.LOST, len(self._held))
        self._held.clear()
        for task in self._releases.values():
            task.cancel()
        self._events.on_reset()
        await leases.release_all(self._db, self.instance_id)

    # Giving back.

    def _begin_releases(self, plan: Plan) -> None:
        for partition in plan.release:
            if self._group is not None and partition in self._held and partition not in self._releases:
                task = self._group.create_task(self._release(partition), name=f"release partition {partition}")
                self._releases[partition] = task

    async def _release(self, partition: int) -> None:
        """Drain one partition, then give it back. The lease is renewed meanwhile; a loss or reset ends the matter."""
        epoch = self._held[partition].epoch
        try:
            await self._bring_to_rest(partition, epoch)
            await self._give_back(partition, epoch)
        finally:
            self._releases.pop(partition, None)
        self._wake.set()

    async def _bring_to_rest(self, partition: int, epoch: int) -> None:
        try:
            async with asyncio.timeout(self._settings.release_timeout_s):
                await self._events.on_release(partition)
        except TimeoutError:
            log.warning("a partition did not drain in time", extra={"partition": partition})
            self._events.on_lost(partition)
        finally:
            lease = self._held.get(partition)
            if lease is not None and lease.epoch == epoch:
                del self._held[partition]
                self._count(LeaseChange.RELEASED, 1)

    async def _give_back(self, partition: int, epoch: int) -> None:
        try:
            await leases.release(self._db, self.instance_id, {partition: epoch})
        except UnavailableError as error:
            log.warning("a lease could not be given back, it will expire", extra={"error": str(error)})
