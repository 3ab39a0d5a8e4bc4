"""What delivery reads of the simulated database; see `store`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from dispatcher.model import (
    EndpointKey,
    OutboxRow,
    Payload,
)
from dispatcher.store.backlog import EndpointPosition, PayloadKey, RowsWanted
from dispatcher.store.runtime import Changes, EndpointRuntimeRow
from tests.support.sim.database import SimDatabase
from tests.support.sim.world import StoredRow, World


def _position(world: World, key: EndpointKey) -> EndpointPosition:
    cursor = world.cursors[key]
    has_held = bool(world.parked[key] or world.halts[key])
    return EndpointPosition(key, cursor.seq, cursor.time, max(cursor.seq, world.highest(key)), has_held)


async def load_partition(db: SimDatabase, partition: int) -> list[EndpointPosition]:
    world = db.world
    keys = [key for key in sorted(world.endpoints) if key.partition == partition]
    return await world.ask(db.process, lambda: [_position(world, key) for key in keys])


async def load_positions(db: SimDatabase, keys: Sequence[EndpointKey]) -> list[EndpointPosition]:
    world, asked = db.world, list(keys)
    return await world.ask(db.process, lambda: [_position(world, key) for key in asked])


def row_of(world: World, stored: StoredRow, *, facts: bool = True) -> OutboxRow:
    """The row as it is read, with what is on record about it, or without."""
    row = OutboxRow(
        key=stored.key,
        seq=stored.seq,
        time=world.time_of(stored.at),
        event_id=stored.event_id,
        event_time=world.time_of(stored.at),
        type="order.paid",
        ordering_key=stored.ordering_key,
        revision=stored.revision,
        data_bytes=len(stored.data),
    )
    if facts:
        row.settled = world.is_settled(stored)
        row.parked = stored.seq in world.parked[stored.key]
        made = [a for a in world.attempts[stored.key, stored.seq] if a.event_id == stored.event_id]
        if made:
            row.attempts = max(a.number for a in made)
            row.first_attempt_time = min(a.start_time for a in made)
            row.last_attempt_time = max(a.start_time + timedelta(seconds=a.duration_s) for a in made)
    return row


async def fetch_rows(db: SimDatabase, wants: Sequence[RowsWanted]) -> list[OutboxRow]:
    world, asked = db.world, list(wants)

    def action() -> list[OutboxRow]:
        return [
            row_of(world, stored, facts=not want.fresh)
            for want in asked
            for stored in world.rows_above(want.key, want.after_seq)[: want.limit]
        ]

    return await world.ask(db.process, action) if asked else []


async def fetch_payloads(db: SimDatabase, wanted: Sequence[PayloadKey]) -> dict[PayloadKey, Payload]:
    world, asked = db.world, set(wanted)

    def action() -> dict[PayloadKey, Payload]:
        found = {}
        for rows in world.outbox.values():
            for row in rows:
                name = (row.key.tenant_id, row.event_id, world.time_of(row.at))
                if name in asked:
                    found[name] = Payload(row.data, "application/json", None)
        return found

    return await world.ask(db.process, action) if asked else {}


async def sweep(
    db: SimDatabase, since: datetime, partitions: Sequence[int]
) -> tuple[datetime, list[tuple[EndpointKey, int]]]:
    world, asked = db.world, set(partitions)

    def action() -> tuple[datetime, list[tuple[EndpointKey, int]]]:
        found = [
            (key, rows[-1].seq)
            for key, rows in sorted(world.outbox.items())
            if rows and key.partition in asked and world.time_of(rows[-1].at) >= since
        ]
        return world.now(), found

    return await world.ask(db.process, action)


async def load_runtime(db: SimDatabase, keys: Sequence[EndpointKey]) -> list[EndpointRuntimeRow]:
    world, asked = db.world, list(keys)

    def one(key: EndpointKey) -> EndpointRuntimeRow:
        endpoint = world.endpoints[key]
        return EndpointRuntimeRow(
            key=key,
            tenant_name="acme",
            name=endpoint.name,
            state=endpoint.state,
            revision=endpoint.revision,
            revisions=dict(endpoint.revisions),
            signing_keys=(endpoint.signing_key,),
            update_time=world.time_of(endpoint.updated_at),
            delete_time=None,
            failing_since=endpoint.failing_since,
            exhausted_heads=endpoint.exhausted_heads,
            trouble=endpoint.trouble,
        )

    return await world.ask(db.process, lambda: [one(key) for key in asked])


async def changes_since(db: SimDatabase, partitions: Sequence[int], since: datetime) -> Changes:
    world, asked = db.world, set(partitions)

    def action() -> Changes:
        changed = {
            key: world.time_of(endpoint.updated_at)
            for key, endpoint in world.endpoints.items()
            if key.partition in asked and world.time_of(endpoint.updated_at) >= since
        }
        return Changes(world.now(), changed, {})

    return await world.ask(db.process, action)
