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
    OrderingMode,
    Outcome,
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
from dispatcher.store.delivery_commands import CommandOutcome
from dispatcher.store.health import HealthRecord
from dispatcher.store.parked import ParkRequest, StoredParked
from tests.support.sim import database, reads
from tests.support.sim import world as worlds
from tests.support.sim.database import SimDatabase
from tests.support.sim.reads import row_of
from tests.support.sim.world import World

RECONNECT_S = 0.5


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
    return StoredParked(replace(row_of(world, stored.row), parked=False), stored.mode, delay_s, more)


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
            row = row_of(world, stored, facts=False)
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
    (leases, "renew", database.renew),
    (leases, "acquire", database.acquire),
    (leases, "release", database.release),
    (leases, "release_all", database.release_all),
    (leases, "read_owners", database.read_owners),
    (leases, "timeline", database.timeline),
    (instances, "heartbeat", database.heartbeat),
    (instances, "live", database.live),
    (instances, "remove", database.remove),
    (backlog, "load_partition", reads.load_partition),
    (backlog, "load_positions", reads.load_positions),
    (backlog, "fetch_rows", reads.fetch_rows),
    (backlog, "fetch_payloads", reads.fetch_payloads),
    (backlog, "sweep", reads.sweep),
    (runtime, "load_runtime", reads.load_runtime),
    (runtime, "changes_since", reads.changes_since),
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
