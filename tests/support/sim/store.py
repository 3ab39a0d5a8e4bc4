"""`dispatcher.store` as delivery calls it, done in the simulated world. `installed()` puts it in place.

Each function has the name, the parameters and the meaning of the one it stands for. What a function does in one
transaction is one action.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from unittest import mock
from uuid import UUID

from dispatcher.delivery import aside
from dispatcher.model import (
    Attempt,
    Command,
    Cursor,
    DeadLetter,
    Decision,
    DecisionKind,
    EndpointKey,
    EndpointState,
    Halt,
    Instance,
    Lease,
    OrderingMode,
    OutboxRow,
    Outcome,
    Payload,
)
from dispatcher.store import (
    attempts,
    backlog,
    commands,
    cursors,
    decisions,
    delivery_commands,
    halts,
    health,
    instances,
    leases,
    listen,
    operational,
    parked,
    replays,
    runtime,
)
from dispatcher.store.backlog import EndpointPosition, PayloadKey, RowsWanted
from dispatcher.store.database import DatabaseOptions
from dispatcher.store.delivery_commands import CommandOutcome
from dispatcher.store.health import HealthRecord
from dispatcher.store.parked import ParkRequest, StoredParked
from dispatcher.store.runtime import EndpointRuntimeRow
from tests.support.sim import world as worlds
from tests.support.sim.loop import Process
from tests.support.sim.world import StoredRow, World

RECONNECT_S = 0.5


class SimDatabase:
    """A process's way to the database: stands where a `Database` would."""

    def __init__(self, world: World, process: Process, *, pooled: bool) -> None:
        self.world = world
        self.process = process
        self.options = DatabaseOptions("sim", pooled=pooled)

    async def fetchval(self, _sql: str, *_arguments: Any) -> Any:
        """The only value that is asked for by statement is the database's time."""
        return await self.world.ask(self.process, self.world.now)


# -- leases and instances ------------------------------------------------------------------------------------------


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


# -- reads ---------------------------------------------------------------------------------------------------------


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


def _row(world: World, stored: StoredRow, *, facts: bool = True) -> OutboxRow:
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
            _row(world, stored, facts=not want.fresh)
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


async def changed_endpoints(
    db: SimDatabase, partitions: Sequence[int], since: datetime
) -> tuple[datetime, dict[EndpointKey, datetime]]:
    world, asked = db.world, set(partitions)

    def action() -> tuple[datetime, dict[EndpointKey, datetime]]:
        changed = {
            key: world.time_of(endpoint.updated_at)
            for key, endpoint in world.endpoints.items()
            if key.partition in asked and world.time_of(endpoint.updated_at) >= since
        }
        return world.now(), changed

    return await world.ask(db.process, action)


# -- facts ---------------------------------------------------------------------------------------------------------


async def append(db: SimDatabase, made: Sequence[Attempt]) -> None:
    world, batch = db.world, list(made)

    def action() -> None:
        _record(world, batch)

    await world.ask(db.process, action)


def _record(world: World, made: Sequence[Attempt]) -> None:
    for attempt in made:
        place = (attempt.key, attempt.seq)
        world.attempts[place].append(attempt)
        if attempt.outcome is Outcome.SUCCEEDED:
            world.settled_at.setdefault(place, world.loop.time())


async def append_again(db: SimDatabase, made: Sequence[Attempt]) -> None:
    world = db.world

    def action() -> None:
        _record(world, [a for a in made if a not in world.attempts[a.key, a.seq]])

    await world.ask(db.process, action)


# -- decisions, fenced ---------------------------------------------------------------------------------------------


async def commit(
    db: SimDatabase,
    epochs: Mapping[int, int],
    taken: Sequence[Decision],
    _letters: Sequence[DeadLetter],
    halted: Sequence[Halt] = (),
) -> set[int]:
    world, asked = db.world, dict(epochs)

    def action() -> set[int]:
        held = world.held(asked)
        for decision in taken:
            if decision.key.partition in held:
                _decide(world, decision)
        for halt in halted:
            if halt.key.partition in held:
                world.sometimes["halt"] += 1
                world.halts[halt.key].setdefault(halt.seq, halt)
        return held

    return await world.ask(db.process, action)


def _decide(world: World, decision: Decision) -> None:
    place = (decision.key, decision.seq)
    if place not in world.decisions:
        world.sometimes[decision.kind.name.lower()] += 1
        world.decisions[place] = decision
        world.decided_at[place] = world.loop.time()
        world.settled_at.setdefault(place, world.loop.time())


async def advance(db: SimDatabase, epochs: Mapping[int, int], moved: Sequence[Cursor]) -> set[int]:
    world, asked = db.world, dict(epochs)

    def action() -> set[int]:
        held = world.held(asked)
        for cursor in moved:
            if cursor.key.partition in held and world.cursors[cursor.key].seq < cursor.seq:
                world.cursors[cursor.key] = cursor
                world.check_watermark(cursor.key)
        return held

    return await world.ask(db.process, action)


async def park(db: SimDatabase, epochs: Mapping[int, int], requests: Sequence[ParkRequest]) -> set[int]:
    world, asked = db.world, dict(epochs)

    def action() -> set[int]:
        held = world.held(asked)
        for request in requests:
            key, seq = request.row.key, request.row.seq
            if key.partition in held and seq not in world.parked[key]:
                world.sometimes["park"] += 1
                due_at = world.loop.time() + request.delay_s
                world.parked[key][seq] = worlds.StoredParked(world.outbox[key][seq - 1], request.mode, due_at)
        return held

    return await world.ask(db.process, action)


@contextlib.asynccontextmanager
async def probing(db: SimDatabase) -> AsyncIterator[SimDatabase]:
    yield db


async def load_parked(db: SimDatabase, key: EndpointKey) -> list[StoredParked]:
    world = db.world

    def action() -> list[StoredParked]:
        here = world.parked[key]
        if not here:
            return []
        mode = here[max(here)].mode
        for seq in [seq for seq, one in here.items() if one.mode is not mode]:
            del here[seq]
        if mode is not OrderingMode.ORDERED_BY_KEY:
            return [_parked(world, here[seq]) for seq in sorted(here)]
        by_key: dict[str | None, list[int]] = defaultdict(list)
        for seq in sorted(here):
            by_key[here[seq].row.ordering_key].append(seq)
        heads = sorted((seqs[0], len(seqs) > 1) for seqs in by_key.values())
        return [_parked(world, here[seq], more=more) for seq, more in heads]

    return await world.ask(db.process, action)


def _parked(world: World, stored: worlds.StoredParked, *, more: bool = False) -> StoredParked:
    delay_s = max(0.0, stored.due_at - world.loop.time())
    return StoredParked(replace(_row(world, stored.row), parked=False), stored.mode, delay_s, more)


async def load_cold(
    db: SimDatabase, key: EndpointKey, ordering_key: str | None, after_seq: int, limit: int
) -> tuple[list[StoredParked], bool]:
    world = db.world

    def action() -> tuple[list[StoredParked], bool]:
        found = [
            one
            for seq, one in sorted(world.parked[key].items())
            if seq > after_seq and (one.row.ordering_key or "") == (ordering_key or "")
        ]
        return [_parked(world, one) for one in found[:limit]], len(found) > limit

    return await world.ask(db.process, action)


async def tidy(
    db: SimDatabase,
    finished: Sequence[tuple[EndpointKey, int]],
    delays_s: Sequence[tuple[EndpointKey, int, float]],
) -> None:
    world = db.world

    def action() -> None:
        for key, seq, delay_s in delays_s:
            if seq in world.parked[key]:
                world.parked[key][seq].due_at = world.loop.time() + delay_s
        for key, seq in finished:
            world.parked[key].pop(seq, None)
            decision = world.decisions.get((key, seq))
            if decision is None or decision.kind is not DecisionKind.EXPIRY:
                world.halts[key].pop(seq, None)

    await world.ask(db.process, action)


async def load_halts(db: SimDatabase, key: EndpointKey) -> list[halts.StoredHalt]:
    world = db.world

    def action() -> list[halts.StoredHalt]:
        found = []
        for seq, halt in sorted(world.halts[key].items()):
            stored = world.outbox[key][seq - 1]
            if world.has_success(stored):
                continue
            row = _row(world, stored, facts=False)
            row.revision, row.data_bytes, row.settled = 0, 0, (key, seq) in world.decisions
            found.append(halts.StoredHalt(row, halt.ordering_mode))
        return found

    return await world.ask(db.process, action)


async def write_health(
    db: SimDatabase, epochs: Mapping[int, int], records: Sequence[HealthRecord], _events: Sequence[Any]
) -> set[int]:
    world, asked = db.world, dict(epochs)

    def action() -> set[int]:
        held = world.held(asked)
        for record in records:
            if record.key.partition in held:
                endpoint = world.endpoints[record.key]
                endpoint.failing_since, endpoint.trouble = record.failing_since, record.trouble
                endpoint.exhausted_heads = record.exhausted_heads
        return held

    return await world.ask(db.process, action)


async def disable(db: SimDatabase, epoch: int, key: EndpointKey, revision: int, _reason: str, _event: Any) -> bool:
    world = db.world

    def action() -> bool:
        endpoint = world.endpoints[key]
        if endpoint.state is not EndpointState.ACTIVE or endpoint.revision != revision:
            return False
        if not world.held({key.partition: epoch}):
            return False
        world.sometimes["disable"] += 1
        world.set_state(key, EndpointState.DISABLED)
        endpoint.trouble = "DISABLED"
        return True

    return await world.ask(db.process, action)


# -- commands ------------------------------------------------------------------------------------------------------


async def open_commands(db: SimDatabase, partitions: Sequence[int], limit: int = 1000) -> list[Command]:
    world, asked = db.world, set(partitions)

    def action() -> list[Command]:
        found = [c for c in world.commands if c.key.partition in asked and c.command_id not in world.results]
        return found[:limit]

    return await world.ask(db.process, action)


def _command(world: World, epoch: int, command: Command) -> tuple[bool, bool] | None:
    """Whether its delivery is settled and was halted; None where the lease is gone."""
    if not world.held({command.key.partition: epoch}):
        return None
    seq = int(command.arguments["seq"])
    return world.is_settled(world.outbox[command.key][seq - 1]), seq in world.halts[command.key]


def _finish(world: World, command: Command, *, is_settled: bool, was_halted: bool) -> CommandOutcome:
    ended = CommandOutcome.LIFTED if was_halted else CommandOutcome.SETTLED
    outcome = ended if is_settled else CommandOutcome.DONE
    world.results[command.command_id] = {"outcome": outcome.value}
    return outcome


async def skip(db: SimDatabase, epoch: int, command: Command) -> CommandOutcome | None:
    world, key, seq = db.world, command.key, int(command.arguments["seq"])

    def action() -> CommandOutcome | None:
        found = _command(world, epoch, command)
        if found is None:
            return None
        is_settled, was_halted = found
        world.halts[key].pop(seq, None)
        if not is_settled:
            stored = world.outbox[key][seq - 1]
            time = world.time_of(stored.at)
            _decide(world, Decision(key, seq, stored.event_id, time, DecisionKind.SKIP, "test", "test"))
            world.parked[key].pop(seq, None)
        return _finish(world, command, is_settled=is_settled, was_halted=was_halted)

    return await world.ask(db.process, action)


async def retry(db: SimDatabase, epoch: int, command: Command) -> CommandOutcome | None:
    world, key, seq = db.world, command.key, int(command.arguments["seq"])

    def action() -> CommandOutcome | None:
        found = _command(world, epoch, command)
        if found is None:
            return None
        is_settled, _ = found
        if not is_settled:
            world.halts[key].pop(seq, None)
            if seq in world.parked[key]:
                world.parked[key][seq].due_at = world.loop.time()
        return _finish(world, command, is_settled=is_settled, was_halted=False)

    return await world.ask(db.process, action)


# -- hints and the rest --------------------------------------------------------------------------------------------


async def notify(db: SimDatabase, channel: str, payload: str) -> None:
    world = db.world

    def action() -> None:
        for instance_id, told in list(world.listeners.items()):
            if listen.channel_of(instance_id) == channel and world.chance.random() >= world.loses_hints:
                world.loop.at(0.001, lambda told=told: told(payload))

    await world.ask(db.process, action)


class Listener:
    """Registered while its connection lasts; a crash of the database ends that."""

    def __init__(self, db: SimDatabase, channel: str, *, on_payload: Any, on_connected: Any) -> None:
        self._db = db
        self._channel = channel
        self._on_payload = on_payload
        self._on_connected = on_connected

    async def run(self) -> None:
        world, process = self._db.world, self._db.process
        instance_id = UUID(self._channel.removeprefix("dispatcher_"))

        def told(payload: str) -> None:
            if process not in world.cut_off:
                world.loop.call_soon(self._on_payload, payload, context=process.context.copy())

        def begin() -> None:
            world.listeners[instance_id] = told

        while True:
            with contextlib.suppress(listen.UnavailableError):
                await world.ask(process, begin)
                self._on_connected()
                while world.listeners.get(instance_id) is told:
                    await asyncio.sleep(RECONNECT_S)
            await asyncio.sleep(RECONNECT_S)


async def nothing(*_arguments: Any, **_named: Any) -> list[Any]:
    """Of replays and operational events there are none."""
    return []


PLACES: tuple[tuple[Any, str, Any], ...] = (
    (leases, "renew", renew),
    (leases, "acquire", acquire),
    (leases, "release", release),
    (leases, "release_all", release_all),
    (leases, "read_owners", read_owners),
    (leases, "timeline", timeline),
    (instances, "heartbeat", heartbeat),
    (instances, "live", live),
    (instances, "remove", remove),
    (backlog, "load_partition", load_partition),
    (backlog, "load_positions", load_positions),
    (backlog, "fetch_rows", fetch_rows),
    (backlog, "fetch_payloads", fetch_payloads),
    (backlog, "sweep", sweep),
    (runtime, "load_runtime", load_runtime),
    (runtime, "changed_endpoints", changed_endpoints),
    (attempts, "append", append),
    (attempts, "append_again", append_again),
    (decisions, "commit", commit),
    (cursors, "advance", advance),
    (parked, "park", park),
    (parked, "load", load_parked),
    (parked, "load_cold", load_cold),
    (parked, "tidy", tidy),
    (halts, "load", load_halts),
    (health, "write", write_health),
    (health, "disable", disable),
    (commands, "open_commands", open_commands),
    (delivery_commands, "skip", skip),
    (delivery_commands, "retry", retry),
    (listen, "notify", notify),
    (listen, "Listener", Listener),
    (operational, "record", nothing),
    (replays, "running", nothing),
    (aside, "probing", probing),
)


@contextlib.contextmanager
def installed(*others: tuple[Any, str, Any]) -> Iterator[None]:
    """The simulated store in place of the real one, and whatever else is to be put in the place of something."""
    with contextlib.ExitStack() as stack:
        for module, name, stand_in in (*PLACES, *others):
            stack.enter_context(mock.patch.object(module, name, stand_in))
        yield
