"""A process's way to the simulated database, its leases and its heartbeat there; see `store`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from dispatcher.model import (
    Instance,
    Lease,
)
from dispatcher.store.database import DatabaseOptions
from tests.support.sim.loop import Process
from tests.support.sim.world import World


class SimDatabase:
    """A process's way to the database: stands where a `Database` would."""

    def __init__(self, world: World, process: Process, *, pooled: bool) -> None:
        self.world = world
        self.process = process
        self.options = DatabaseOptions("sim", pooled=pooled)
        self.timeline = 0
        self.is_replaced = False

    def is_on(self, _timeline: int) -> bool:
        """It is never replaced."""
        return True

    def begin_on(self, timeline: int) -> None:
        self.timeline = timeline

    async def ended(self, tasks: Collection[asyncio.Task[Any]]) -> None:
        """It always says when a statement is cancelled."""
        await asyncio.wait(tasks)

    async def fetchval(self, _sql: str, *_arguments: Any) -> Any:
        """The only value that is asked for by statement is the database's time."""
        return await self.world.ask(self.process, self.world.now)


def _lease(world: World, partition: int) -> Lease:
    lease = world.leases[partition]
    return Lease(partition, lease.epoch, lease.owner, world.time_of(lease.expires_at), lease.renewals)


async def renew(db: SimDatabase, instance_id: UUID, held: Mapping[int, int], ttl_s: float) -> list[Lease]:
    world, asked = db.world, dict(held)

    def action() -> list[Lease]:
        renewed = []
        for partition, epoch in asked.items():
            lease = world.leases[partition]
            if lease.epoch == epoch and lease.owner == instance_id:
                lease.expires_at, lease.renewals = world.loop.time() + ttl_s, lease.renewals + 1
                renewed.append(_lease(world, partition))
        return renewed

    return await world.ask(db.process, action) if asked else []


async def acquire(
    db: SimDatabase, instance_id: UUID, want: int, ttl_s: float, among: Sequence[int] | None = None
) -> list[Lease]:
    world = db.world
    wanted = list(range(world.partitions) if among is None else among)

    def action() -> list[Lease]:
        now, taken = world.loop.time(), []
        for partition in wanted:
            lease = world.leases[partition]
            if lease.expires_at <= now and len(taken) < want:
                if lease.owner is not None:
                    world.sometimes["takeover"] += 1
                lease.epoch, lease.owner, lease.renewals = lease.epoch + 1, instance_id, lease.renewals + 1
                lease.expires_at, lease.acquired_at = now + ttl_s, now
                taken.append(_lease(world, partition))
        return taken

    return await world.ask(db.process, action)


async def release(db: SimDatabase, instance_id: UUID, held: Mapping[int, int]) -> None:
    world, asked = db.world, dict(held)

    def action() -> None:
        for partition, epoch in asked.items():
            lease = world.leases[partition]
            if lease.epoch == epoch and lease.owner == instance_id:
                lease.owner, lease.expires_at = None, world.loop.time()

    await world.ask(db.process, action)


async def release_all(db: SimDatabase, instance_id: UUID) -> None:
    held = {partition: lease.epoch for partition, lease in db.world.leases.items() if lease.owner == instance_id}
    await release(db, instance_id, held)


async def read_owners(db: SimDatabase) -> dict[int, tuple[UUID, float]]:
    world = db.world

    def action() -> dict[int, tuple[UUID, float]]:
        now = world.loop.time()
        return {
            partition: (lease.owner, lease.expires_at - now)
            for partition, lease in world.leases.items()
            if lease.owner is not None and lease.expires_at > now
        }

    return await world.ask(db.process, action)


async def timeline(db: SimDatabase) -> int:
    return await db.world.ask(db.process, lambda: 1)


async def heartbeat(db: SimDatabase, instance: Instance) -> None:
    world = db.world

    def action() -> None:
        world.instances[instance.instance_id] = instance
        world.heartbeats[instance.instance_id] = world.loop.time()

    await world.ask(db.process, action)


async def live(db: SimDatabase, ttl_s: float) -> list[Instance]:
    world = db.world

    def action() -> list[Instance]:
        since = world.loop.time() - ttl_s
        return [instance for name, instance in world.instances.items() if world.heartbeats[name] > since]

    return await world.ask(db.process, action)


async def remove(db: SimDatabase, instance_id: UUID) -> None:
    await db.world.ask(db.process, lambda: db.world.instances.pop(instance_id, None))
