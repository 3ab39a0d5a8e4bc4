"""What happens in one run: decided by its seed alone, before anything and as it goes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from opentelemetry.trace import NoOpTracer

from dispatcher.delivery import leases as keeper
from dispatcher.delivery.shares import View
from dispatcher.model import (
    Command,
    CommandKind,
    Cursor,
    EndpointKey,
    EndpointSettings,
    EndpointState,
    OrderingMode,
    SealedSigningKey,
    TracePropagation,
)
from dispatcher.policy import ExhaustionPolicy
from dispatcher.security.secrets import SealContext
from dispatcher.telemetry import Tracing
from tests.support.checker import Record, Row, copies_of_accepted, violations
from tests.support.sim import store
from tests.support.sim.fleet import KEYRING, Fleet, Publisher
from tests.support.sim.loop import Life, SimLoop, run
from tests.support.sim.receivers import Receivers
from tests.support.sim.world import START, StoredEndpoint, World

PARTITIONS = 4
TENANT = UUID(int=1)
DRAINED_S = 90.0
"""So long after everything is well again all has to be delivered."""
DRAIN_POLL_S = 0.5
LEASE_S = 3.0


@dataclass(slots=True)
class Outcome:
    """What one run came to."""

    seed: int
    violations: list[str]
    sometimes: dict[str, int]
    events: list[str]
    """What happened, in words: of use where it failed."""
    copies: int = 0


@dataclass(slots=True)
class Run:
    """One seed's run."""

    seed: int
    loop: SimLoop
    chance: random.Random = field(init=False)
    world: World = field(init=False)
    receivers: Receivers = field(init=False)
    fleet: Fleet = field(init=False)
    publishers: list[Publisher] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    commands: int = 0

    def __post_init__(self) -> None:
        chance = self.chance = random.Random(self.seed)
        random.seed(chance.random())  # what the code draws by itself: pauses between tries
        self.world = World(self.loop, chance, PARTITIONS)
        self.receivers = Receivers(self.loop, chance)
        self.fleet = Fleet(
            self.world,
            self.receivers,
            chance,
            pooled=chance.random() < 0.2,
            skew_max_s=chance.choice([0.0, 0.0, 60.0]),
            tracing=Tracing(NoOpTracer()),
        )
        self.world.loses_hints = chance.choice([0.0, 0.2, 1.0])
        self.world.loses_replies = chance.choice([0.0, 0.0, 0.02])
        for number in range(chance.choice([1, 2, 3])):
            self._add_endpoint(number)
        for slot in range(chance.choice([1, 2, 3, 3])):
            self.fleet.start(slot)

    def note(self, what: str) -> None:
        self.events.append(f"{self.loop.time():8.3f} {what}")

    def _add_endpoint(self, number: int) -> None:
        chance = self.chance
        key = EndpointKey(TENANT, UUID(int=(number + 1) << 8 | chance.randrange(PARTITIONS)))
        name = f"e{number}"
        settings = EndpointSettings(
            url=f"https://{name}.example/",
            timeout_s=chance.choice([0.5, 2.0, 5.0]),
            headers={},
            max_in_flight=chance.choice([1, 3]),
            ordering_mode=chance.choice(list(OrderingMode)),
            trace_propagation=TracePropagation.NONE,
            exhaustion=chance.choice(
                [ExhaustionPolicy.DEAD_LETTER, ExhaustionPolicy.DEAD_LETTER, ExhaustionPolicy.HALT]
            ),
        )
        sealed = KEYRING.seal(b"s" * 32, SealContext(key.tenant_id, key.endpoint_id, "k"))
        signing_key = SealedSigningKey("k", sealed, datetime(2026, 1, 1, tzinfo=UTC), None)
        self.world.endpoints[key] = StoredEndpoint(key, name, {1: settings}, signing_key)
        self.world.cursors[key] = Cursor(key, 0, START)
        habits = self.receivers.habits[name]
        habits.fails = chance.choice([0.0, 0.05, 0.3])
        habits.loses = chance.choice([0.0, 0.05])
        habits.hangs = chance.choice([0.0, 0.0, 0.03])
        habits.latency_s = chance.choice([0.005, 0.05])
        habits.poison = frozenset(
            f"p{chance.randrange(3)}-{chance.randrange(8)}" for _ in range(chance.choice([0, 1, 3]))
        )

    # -- what may happen -----------------------------------------------------------------------------------------------

    def faults(self) -> dict[Callable[[], None], int]:
        return {
            self.crash: 4,
            self.freeze: 4,
            self.restart: 2,
            self.drain: 1,
            self.crash_database: 2,
            self.slow_database: 2,
            self.cut_off: 3,
            self.receiver_away: 3,
            self.change_mode: 2,
            self.hold: 2,
            self.skip_or_retry: 3,
        }

    def _slot(self) -> int:
        return self.chance.choice(list(self.fleet.slots))

    def crash(self) -> None:
        slot, node = self._pick()
        if node.is_alive:
            self.note(f"crash {node.process.name}")
            self.world.sometimes["crash"] += 1
            node.process.kill()
            self.world.listeners = {
                name: told for name, told in self.world.listeners.items() if name != node.engine.keeper.instance_id
            }
            self.loop.at(self.chance.uniform(0.1, 5.0), lambda: self._again(slot))

    def _pick(self) -> tuple[int, store.Any]:
        slot = self._slot()
        return slot, self.fleet.slots[slot]

    def _again(self, slot: int) -> None:
        if not self.fleet.slots[slot].is_alive:
            self.note(f"start {slot}")
            self.fleet.start(slot)

    def freeze(self) -> None:
        _, node = self._pick()
        if node.is_alive and node.process.life is Life.RUNNING:
            for_s = self.chance.choice([0.3, 1.0, LEASE_S + 0.5, 2 * LEASE_S])
            self.note(f"freeze {node.process.name} for {for_s} s")
            node.process.freeze()
            self.loop.at(for_s, node.process.thaw)

    def restart(self) -> None:
        slot, node = self._pick()
        if node.is_alive and not node.is_stopping:
            self.note(f"stop {node.process.name}")
            self.fleet.stop(slot)
            self._start_when_ended(slot)

    def _start_when_ended(self, slot: int) -> None:
        if self.fleet.slots[slot].is_alive:
            self.loop.at(0.2, lambda: self._start_when_ended(slot))
        else:
            self._again(slot)

    def drain(self) -> None:
        slot, node = self._pick()
        if node.is_alive:
            self.note(f"drain {node.process.name}")
            self.fleet.drain(slot)
            self.loop.at(self.chance.uniform(1.0, 6.0), lambda: self._stop_drained(slot))

    def _stop_drained(self, slot: int) -> None:
        self.fleet.stop(slot)
        self._start_when_ended(slot)

    def crash_database(self) -> None:
        down_s = self.chance.choice([0.05, 0.5, 4.0])
        self.note(f"database crash, back in {down_s} s")
        self.world.crash(down_s)

    def slow_database(self) -> None:
        self.note("database slow")
        self.world.slow_s = self.chance.choice([0.2, 1.0])
        self.loop.at(self.chance.uniform(0.5, 4.0), lambda: setattr(self.world, "slow_s", 0.0))

    def cut_off(self) -> None:
        _, node = self._pick()
        self.note(f"cut off {node.process.name}")
        self.world.cut_off.add(node.process)
        self.loop.at(self.chance.choice([0.5, 2.0, 5.0]), lambda: self.world.cut_off.discard(node.process))

    def receiver_away(self) -> None:
        habits = self.receivers.habits[self.chance.choice(list(self.receivers.habits))]
        self.note("a receiver goes away")
        habits.is_away = True
        self.loop.at(self.chance.uniform(0.1, 3.0), lambda: setattr(habits, "is_away", False))

    def _endpoint(self) -> EndpointKey:
        return self.chance.choice(sorted(self.world.endpoints))

    def change_mode(self) -> None:
        key, mode = self._endpoint(), self.chance.choice(list(OrderingMode))
        self.note(f"{self.world.endpoints[key].name} becomes {mode}")
        self.world.change(key, ordering_mode=mode)
        self.world.sometimes["mode change"] += 1

    def hold(self) -> None:
        key = self._endpoint()
        self.note(f"{self.world.endpoints[key].name} is paused")
        self.world.set_state(key, EndpointState.PAUSED)
        self.loop.at(self.chance.uniform(0.2, 3.0), lambda: self.world.set_state(key, EndpointState.ACTIVE))

    def skip_or_retry(self) -> None:
        key = self._endpoint()
        halted = sorted(self.world.halts[key])
        pending = [row.seq for row in self.world.outbox[key] if not self.world.is_settled(row)]
        if halted or pending:
            self.command(key, self.chance.choice(halted or pending[:3]))

    def command(self, key: EndpointKey, seq: int, kind: CommandKind | None = None) -> None:
        kind = kind or self.chance.choice([CommandKind.SKIP_DELIVERY, CommandKind.RETRY_DELIVERY])
        self.commands += 1
        event_id = self.world.outbox[key][seq - 1].event_id
        arguments: dict[str, int | str] = {"seq": seq, "event_id": event_id, "reason": "test"}
        self.note(f"{kind} {self.world.endpoints[key].name}/{seq}")
        self.world.commands.append(Command(UUID(int=self.commands), key, kind, arguments, "test"))

    # -- the run -------------------------------------------------------------------------------------------------------

    async def go(self) -> None:
        """Publish under faults; then all is well, and everything has to be delivered in a bounded time."""
        count = self.chance.choice([4, 8, 12])
        keys = self.chance.choice([0, 2])
        self.publishers = [
            Publisher(f"p{number}", self.fleet, random.Random(self.chance.random()), keys)
            for number in range(self.chance.choice([1, 2, 3]))
        ]
        pause_s = self.chance.choice([0.02, 0.2, 0.6])
        tasks = [self.loop.create_task(publisher.run(count, pause_s)) for publisher in self.publishers]
        faults = self.faults()
        for _ in range(self.chance.choice([2, 4, 8])):
            await asyncio.sleep(self.chance.expovariate(1 / 1.0))
            self.chance.choices(list(faults), list(faults.values()))[0]()
            self._look()
        await self._heal(tasks)

    def _look(self) -> None:
        """Nothing has died that was not killed, and no promise has been broken on the way."""
        if self.loop.failures:
            failure = self.loop.failures[0]
            raise failure.get("exception") or RuntimeError(str(failure))
        self.fleet.check()

    async def _heal(self, publishing: list[asyncio.Task[None]]) -> None:
        self.note("all is well")
        self._make_well()
        deadline = self.loop.time() + DRAINED_S
        while not (all(task.done() for task in publishing) and self._is_drained()):
            if self.loop.time() > deadline:
                self.note("not drained in time")
                return
            await asyncio.sleep(DRAIN_POLL_S)
            self._look()
            self._make_well()
            self._end_halts()
        for task in publishing:
            task.result()
        self.note("drained")

    def _make_well(self) -> None:
        world = self.world
        world.slow_s = world.loses_replies = 0.0
        world.cut_off.clear()
        for slot, node in list(self.fleet.slots.items()):
            node.process.thaw()
            if not node.is_alive:
                self._again(slot)
        for habits in self.receivers.habits.values():
            habits.is_away, habits.fails, habits.loses, habits.hangs = False, 0.0, 0.0, 0.0
        for key, endpoint in world.endpoints.items():
            if endpoint.state is not EndpointState.ACTIVE:
                world.set_state(key, EndpointState.ACTIVE)

    def _end_halts(self) -> None:
        for key, halts in self.world.halts.items():
            asked = {(c.key, c.arguments["seq"]) for c in self.world.commands if c.command_id not in self.world.results}
            for seq in halts:
                if (key, seq) not in asked:
                    self.command(key, seq, CommandKind.SKIP_DELIVERY)

    def _is_drained(self) -> bool:
        world = self.world
        return all(
            world.cursors[key].seq == world.highest(key) and not world.parked[key] and not world.halts[key]
            for key in world.endpoints
        )

    def record(self) -> Record:
        """For the checker."""
        world = self.world
        rows = []
        for key, endpoint in world.endpoints.items():
            for row in world.outbox[key]:
                place = (key, row.seq)
                rows.append(
                    Row(
                        endpoint=endpoint.name,
                        sequence=row.seq,
                        event_id=row.event_id,
                        ordering_key=row.ordering_key,
                        mode=endpoint.mode_of(row).value,
                        is_delivered=world.has_success(row),
                        decisions=int(place in world.decisions),
                        is_parked=row.seq in world.parked[key],
                        decided_at=world.decided_at.get(place),
                    )
                )
        names = {key: endpoint.name for key, endpoint in world.endpoints.items()}
        return Record(
            acknowledged={publisher.name: publisher.acknowledged for publisher in self.publishers},
            refused=[event for publisher in self.publishers for event in publisher.refused],
            receipts=self.receivers.log,
            rows=rows,
            cursors={names[key]: cursor.seq for key, cursor in world.cursors.items()},
            halts={names[key]: len(halts) for key, halts in world.halts.items()},
            endpoints=sorted(names.values()),
        )


@contextlib.contextmanager
def collected() -> Iterator[None]:
    """Around simulations: tasks of killed processes are collected half way, here and nowhere else, and what their
    clean-up then raises concerns nobody."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "coroutine … was never awaited"
            gc.collect()
    finally:
        sys.unraisablehook = hook


def simulate(seed: int, *planted: tuple[object, str, object]) -> Outcome:
    """Run one seed. `planted` are bugs: what to put in the place of something, as for `store.installed`."""
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            store.installed((keeper, "View", functools.partial(View, partition_count=PARTITIONS)), *planted),
        ):
            warnings.simplefilter("ignore", RuntimeWarning)
            return run(functools.partial(_simulate, seed))
    finally:
        logging.disable(logging.NOTSET)


async def _simulate(seed: int, loop: SimLoop) -> Outcome:
    one = Run(seed, loop)
    try:
        await one.go()
        one._look()
        found = violations(one.record())
    except Exception as error:  # noqa: BLE001 -- whatever it is, this seed shows it
        one.note("".join(traceback.format_exception(error)))
        found = [repr(error)]
    copies = copies_of_accepted(one.receivers.log)
    if copies:
        one.world.sometimes["duplicate"] += len(copies)
    return Outcome(seed, found, dict(one.world.sometimes), one.events, len(copies))
