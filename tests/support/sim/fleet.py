"""The processes of a simulation: engines with a publish path, started, stopped, frozen and killed."""

from __future__ import annotations

import asyncio
import functools
import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from dispatcher.app import engine_settings
from dispatcher.clocks import Clocks
from dispatcher.config import Settings
from dispatcher.delivery.engine import Engine, EngineParts
from dispatcher.model import Instance, OutboxRow, Payload
from dispatcher.security.secrets import Keyring
from dispatcher.telemetry import Instruments
from tests.support.sim.database import SimDatabase
from tests.support.sim.loop import Life, Process
from tests.support.sim.receivers import Receivers, SimClient
from tests.support.sim.world import START, StoredRow, World

SETTINGS = Settings(
    lease_ttl_s=3.0,
    lease_send_margin_s=0.5,
    retry_min_s=0.05,
    retry_max_s=0.5,
    checkpoint_interval_s=0.5,
    sweep_interval_s=1.0,
    command_poll_interval_s=0.25,
    delivery_drain_s=2.0,
    lane_rows_max=8,
    attempts_max=4,
    retry_schedule_s=(0.05, 0.2, 0.5),
    metrics_backlog_interval_s=600,
    replay_interval_s=60,
    circuit_open_s=0.5,
    statement_timeout_s=4,
    look_back_slack_s=1,
)
KEYRING = Keyring([("sim", b"k" * 32)])
SILENT = Instruments.silent()
CALL_S = 2.0
"""So long a publisher waits for its answer."""


class RefusedError(Exception):
    """A publish was refused before anything was written."""


@dataclass(slots=True)
class Node:
    """One process and its engine. `is_stopping`: its orderly end has begun."""

    process: Process
    engine: Engine
    database: SimDatabase
    task: asyncio.Task[None]
    is_stopping: bool = False

    @property
    def is_alive(self) -> bool:
        return self.process.life is not Life.DEAD and not self.task.done()

    async def publish(self, event_id: str, ordering_key: str | None, data: bytes) -> None:
        """What PublisherService does with one event: commit, hand over, answer."""
        world = self.database.world
        if self.is_stopping:
            world.sometimes["refused"] += 1
            raise RefusedError
        rows = await world.ask(self.process, functools.partial(world.publish, event_id, ordering_key, data))
        payload = Payload(data, "application/json", None)
        self.engine.offer([_fresh(world, row, payload) for row in rows if self.engine.owns(row.key)])
        self.engine.hint({row.key: row.seq for row in rows if not self.engine.owns(row.key)})


def _fresh(world: World, row: StoredRow, payload: Payload) -> OutboxRow:
    time = world.time_of(row.at)
    return OutboxRow(
        key=row.key,
        seq=row.seq,
        time=time,
        event_id=row.event_id,
        event_time=time,
        type="order.paid",
        ordering_key=row.ordering_key,
        revision=row.revision,
        data_bytes=len(row.data),
        payload=payload,
    )


@dataclass(slots=True)
class Fleet:
    """All processes there have been; `slots` are those that run, or ran last, one per place."""

    world: World
    receivers: Receivers
    chance: random.Random
    pooled: bool
    skew_max_s: float
    tracing: Any
    slots: dict[int, Node] = field(default_factory=dict)
    started: int = 0

    def start(self, slot: int) -> Node:
        """A new process in a place whose former one is dead, or has ended."""
        former = self.slots.get(slot)
        assert former is None or not former.is_alive, "it runs"
        self.started += 1
        loop = self.world.loop
        process = Process(loop, f"{slot}.{self.started}")
        database = SimDatabase(self.world, process, pooled=self.pooled)
        made: list[Engine] = []
        process.context.run(lambda: made.append(self._engine(process, database)))
        task = process.spawn(made[0].run())
        self.slots[slot] = Node(process, made[0], database, task)
        return self.slots[slot]

    def _engine(self, process: Process, database: SimDatabase) -> Engine:
        loop, skew_s = self.world.loop, self.chance.uniform(-self.skew_max_s, self.skew_max_s)
        offset_s = self.chance.uniform(0, 1000)
        clocks = Clocks(lambda: loop.time() + offset_s, lambda: START.timestamp() + loop.time() + skew_s)
        instance = _instance(self.started)

        def on_start(endpoint: str, seq: int) -> None:
            self.world.check_start(self.world.named(endpoint), seq, process, instance.instance_id)

        client = SimClient(self.receivers, process, on_start)
        parts = EngineParts(
            database,  # type: ignore[arg-type]
            client,
            KEYRING,
            self.tracing,
            SILENT,
            lambda: instance,
            clocks,
        )
        return Engine(parts, engine_settings(SETTINGS), chance=random.Random(self.chance.random()))

    @property
    def running(self) -> list[Node]:
        return [node for node in self.slots.values() if node.is_alive]

    def stop(self, slot: int) -> None:
        """SIGTERM."""
        node = self.slots[slot]
        if node.is_alive and not node.is_stopping:
            node.is_stopping = True
            node.process.context.copy().run(node.engine.stop)

    def drain(self, slot: int) -> None:
        """AdminService.Drain."""
        node = self.slots[slot]
        if node.is_alive:
            node.process.context.copy().run(node.engine.drain)

    def check(self) -> None:
        """An engine ends only when it is told to."""
        for node in self.slots.values():
            if node.task.done() and not node.task.cancelled() and (error := node.task.exception()) is not None:
                raise error


def _instance(number: int) -> Instance:
    return Instance(
        instance_id=UUID(int=number),
        address=f"host-{number}:1",
        version="sim",
        start_time=START + timedelta(microseconds=number),
        heartbeat_time=START,
        draining=False,
        partitions=0,
        in_flight=0,
        delivered_total=0,
    )


@dataclass(slots=True)
class Publisher:
    """Publishes one event after the other, each retried under its id until it is acknowledged, or refused for good."""

    name: str
    fleet: Fleet
    chance: random.Random
    keys: int
    acknowledged: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    async def run(self, count: int, pause_s: float) -> None:
        for number in range(count):
            await asyncio.sleep(self.chance.expovariate(1 / pause_s))
            await self._publish(f"{self.name}-{number}")

    async def _publish(self, event_id: str) -> None:
        key = self.chance.choice([None, *(f"k{i}" for i in range(self.keys))])
        is_certain = True
        while True:
            nodes = self.fleet.running
            if nodes:
                try:
                    await self._call(self.chance.choice(nodes), event_id, key)
                except RefusedError:
                    if is_certain and self.chance.random() < 0.5:
                        self.refused.append(event_id)
                        return
                except Exception:  # noqa: BLE001 -- a lost answer, whatever the cause; nothing is known
                    is_certain = False
                else:
                    self.acknowledged.append(event_id)
                    return
            await asyncio.sleep(0.05)

    async def _call(self, node: Node, event_id: str, key: str | None) -> None:
        """One call over a network that may lose the answer with the process."""
        loop = self.fleet.world.loop
        answer: asyncio.Future[None] = loop.create_future()

        async def serve() -> None:
            try:
                await node.publish(event_id, key, f'{{"event":"{event_id}"}}'.encode())
            except Exception as error:  # noqa: BLE001 -- told to the caller
                if not answer.done():
                    loop.at(0.001, functools.partial(_fail, answer, error))
            else:
                loop.at(0.001, functools.partial(_succeed, answer))

        node.process.spawn(serve())
        async with asyncio.timeout(CALL_S):
            await answer


def _succeed(answer: asyncio.Future[None]) -> None:
    if not answer.done():
        answer.set_result(None)


def _fail(answer: asyncio.Future[None], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
