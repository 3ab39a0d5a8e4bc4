"""Whatever is done in whatever order, on a real PostgreSQL, by two nodes of this process: the promises hold.

Hypothesis chooses the steps; time passes only within them. The nodes run on the machine's own event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, FlakyStrategyDefinition
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from dispatcher.api.replays import Replays
from dispatcher.model import Endpoint, EndpointState, OrderingMode
from dispatcher.store import endpoint_state, endpoints, upkeep
from dispatcher.store.partitions import Partition
from dispatcher.store.replay_counts import Wanted
from dispatcher.store.replays import ReplayKind
from dispatcher.store.upkeep import UpkeepSettings
from tests.support.chaos.history import (
    is_settled,
    passed_over,
    read_record,
    read_rows,
    receipts_of,
    unsettled,
)
from tests.support.checker import Row, violations
from tests.support.node import Node, running_node
from tests.support.postgres import Cluster, TestDatabase
from tests.support.publishing import make_tenant, new_event
from tests.support.receiver import Answer, Behaviour, Receiver, Request, Reset
from tests.support.sim.planted import BUGS
from tests.support.waiting import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
EXAMPLES, PARTS, STEPS = 200, 4, 40
EXAMPLES_FOR_A_BUG = 20
NODES = 2
MODES = {"a": OrderingMode.ORDERED, "b": OrderingMode.ORDERED_BY_KEY, "c": OrderingMode.UNORDERED}
OPTIONS = {
    "lease_ttl_s": "1",
    "lease_send_margin_s": "0.2",
    "replay_interval_s": "0.05",
    "sweep_interval_s": "0.3",
    "retry_schedule_s": "0.05,0.1,0.1,0.1,0.1",
    "statement_timeout_s": "1",
    "lock_timeout_s": "1",
    "look_back_slack_s": "0.5",
    "circuit_open_s": "0.2",
}
SETTLES_S = 30.0
BEFORE_ALL = timedelta(days=365)
AGE_SETTLED = """
WITH moved AS (
    UPDATE outbox o SET time = $1::timestamptz + (o.time - now())
    FROM cursor c
    WHERE (c.tenant_id, c.endpoint_id) = (o.tenant_id, o.endpoint_id) AND o.seq <= c.seq
      AND o.time > clock_timestamp() - interval '1 day'
      AND NOT EXISTS (SELECT FROM parked p
                      WHERE (p.tenant_id, p.endpoint_id, p.seq) = (o.tenant_id, o.endpoint_id, o.seq))
    RETURNING o.tenant_id, o.endpoint_id, o.seq
)
SELECT e.name, m.seq FROM moved m JOIN endpoint e USING (tenant_id, endpoint_id)"""
STEAL = "UPDATE lease SET epoch = epoch + 1, owner = NULL, expire_time = clock_timestamp() WHERE partition = $1"

NAMES = st.sampled_from(sorted(MODES))
T = TypeVar("T")


@dataclass
class Publisher:
    """What it was told, in that order."""

    name: str
    ids: list[str] = field(default_factory=list)


@dataclass
class World:
    """Everything of one example that is not Hypothesis' own."""

    stack: contextlib.AsyncExitStack
    database: TestDatabase
    receiver: Receiver
    connection: asyncpg.Connection
    nodes: list[Node] = field(default_factory=list)
    publisher: Publisher = field(default_factory=lambda: Publisher("p"))
    kept_rows: list[Row] = field(default_factory=list)
    failing: Counter[str] = field(default_factory=Counter)
    """How many of the next requests of an endpoint fail."""
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    days: itertools.count[int] = field(default_factory=lambda: itertools.count(40))

    @classmethod
    async def make(cls, cluster: Cluster) -> World:
        stack = contextlib.AsyncExitStack()
        database = await stack.enter_async_context(cluster.migrated_database())
        receiver = await stack.enter_async_context(Receiver())
        connection = await database.connect()
        stack.push_async_callback(connection.close)
        world = cls(stack, database, receiver, connection)
        receiver.default = world.answer
        for _ in range(NODES):
            await world.join()
        await make_tenant(world.nodes[0].core.database)
        for name, mode in MODES.items():
            await world.nodes[0].endpoint(name, receiver.url(name), mode=mode)
        return world

    async def join(self) -> None:
        self.nodes.append(await self.stack.enter_async_context(running_node(self.database.dsn, **OPTIONS)))

    def answer(self, request: Request) -> Behaviour:
        if self.failing[request.endpoint] <= 0:
            return Answer()
        self.failing[request.endpoint] -= 1
        return Reset() if request.number % 3 == 0 else Answer(500)

    async def publish(self, node: Node, keys: list[str]) -> None:
        numbers = [next(self.numbers) for _ in keys]
        events = [new_event(f"p-{n}", b"%d" % n, key=key or None) for n, key in zip(numbers, keys, strict=True)]
        await node.publish(*events)
        self.publisher.ids += [event.event_id for event in events]

    async def replay(self, name: str) -> None:
        db = self.nodes[0].core.database
        replays = Replays(db, rate_default_per_s=1000.0, look_back_s=1.5)
        target = await endpoints.get(db, "acme", name)
        wanted = Wanted(ReplayKind.REPLAY_EVENTS, datetime.now(UTC) - BEFORE_ALL, None)
        planned = await replays.plan(target, wanted)
        await replays.start("acme", f"r{next(self.numbers)}", target, wanted, planned, None)

    async def drop_settled(self) -> None:
        """Make a day out of all that every endpoint has settled, long ago, and drop it."""
        noon = datetime.now(UTC).replace(hour=12) - timedelta(days=next(self.days))
        day = noon.date()
        async with self.connection.transaction():
            await self.connection.execute("LOCK TABLE cursor IN EXCLUSIVE MODE")
            partition = Partition("outbox", day)
            await self.connection.execute(
                f"CREATE TABLE {partition.name} PARTITION OF outbox FOR VALUES {partition.values_sql}"
            )
            moved = {tuple(row) for row in await self.connection.fetch(AGE_SETTLED, noon)}
            rows = await read_rows(self.connection)
        self.kept_rows += [row for row in rows if (row.endpoint, row.sequence) in moved]
        await until(lambda: self._is_dropped(day), 20.0)

    async def _is_dropped(self, day: date) -> bool:
        await upkeep.run_round(self.nodes[0].core.database, UpkeepSettings())
        return await self.connection.fetchval("SELECT to_regclass($1)", Partition("outbox", day).name) is None

    async def judge(self) -> list[str]:
        for name in MODES:
            with contextlib.suppress(Exception):
                await endpoint_state.resume(self.nodes[0].core.database, "acme", name, None)
        self.failing.clear()
        try:
            await until(lambda: self._is_at_rest(), SETTLES_S)
        except TimeoutError:
            return [f"not at rest: {await unsettled(self.connection)}"]
        record = await read_record(
            self.connection,
            [self.publisher],
            receipts_of(self.receiver.requests),
            sorted(MODES),
            kept_rows=self.kept_rows,
        )
        return violations(record)

    async def _is_at_rest(self) -> bool:
        running = await self.connection.fetchval("SELECT count(*) FROM replay WHERE state = 'RUNNING'")
        return not running and await is_settled(self.connection)


class Machine(RuleBasedStateMachine):
    """The steps. Both fields are set by the test."""

    cluster: Cluster
    found: list[str]
    """Promises not kept, of all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = self.do(World.make(self.cluster))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60.0))

    @rule(node=st.integers(0, NODES - 1), keys=st.lists(st.sampled_from(["", "k1", "k2"]), min_size=1, max_size=12))
    def publish(self, node: int, keys: list[str]) -> None:
        self.do(self.world.publish(self.world.nodes[node], keys))

    @rule(name=NAMES, count=st.integers(1, 8))
    def next_requests_fail(self, name: str, count: int) -> None:
        self.world.failing[name] += count

    @rule(name=NAMES)
    def steal_the_lease(self, name: str) -> None:
        async def steal() -> None:
            endpoint = await endpoints.get(self.world.nodes[0].core.database, "acme", name)
            await self.world.connection.execute(STEAL, endpoint.key.partition)

        self.do(steal())

    @rule(node=st.integers(0, NODES - 1))
    def flush(self, node: int) -> None:
        self.do(self.world.nodes[node].core.engine.flusher.flushed())

    @rule(node=st.integers(0, NODES - 1))
    def crash(self, node: int) -> None:
        async def crash() -> None:
            await self.world.nodes.pop(node).crash()
            await self.world.join()

        self.do(crash())

    @rule(name=NAMES)
    def replay(self, name: str) -> None:
        self.do(self.world.replay(name))

    @rule()
    def drop_a_partition(self) -> None:
        self.do(self.world.drop_settled())

    @rule(name=NAMES)
    def pause(self, name: str) -> None:
        self.do(endpoint_state.pause(self.world.nodes[0].core.database, "acme", name, "chaos"))

    @rule(name=NAMES)
    def resume(self, name: str) -> None:
        async def resume() -> None:
            db = self.world.nodes[0].core.database
            if (await endpoints.get(db, "acme", name)).state is EndpointState.PAUSED:
                await endpoint_state.resume(db, "acme", name, None)

        self.do(resume())

    @rule(name=NAMES, mode=st.sampled_from(OrderingMode))
    def change_the_mode(self, name: str, mode: OrderingMode) -> None:
        def apply(endpoint: Endpoint) -> Endpoint:
            return replace(endpoint, settings=replace(endpoint.settings, ordering_mode=mode))

        self.do(endpoints.update(self.world.nodes[0].core.database, "acme", name, apply))

    @rule(milliseconds=st.integers(1, 300))
    def time_passes(self, milliseconds: int) -> None:
        self.do(asyncio.sleep(milliseconds / 1000))

    @invariant()
    def no_low_watermark_passes_what_is_not_done(self) -> None:
        passed = self.do(passed_over(self.world.connection))
        self.found += passed
        assert not passed

    def teardown(self) -> None:
        try:
            found = self.do(self.world.judge())
        finally:
            self.do(self.world.stack.aclose())
            self.loop.close()
        self.found += found
        assert not found


def run(cluster: Cluster, examples: int) -> None:
    """Raises AssertionError for a promise that was not kept."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # what depends on the time of day cannot be made smaller by trying again
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=True,
    )
    found: list[str] = []
    machine = type("Chosen", (Machine,), {"cluster": cluster, "found": found})
    try:
        run_state_machine_as_test(machine, settings=chosen)
    except (Flaky, FlakyStrategyDefinition, AssertionError):
        if not found:
            raise
    # What was found once counts, though the same steps may not find it again.
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_is_done_in_whatever_order_the_promises_hold(cluster: Cluster, part: int) -> None:
    run(cluster, EXAMPLES // PARTS)


def test_a_cursor_that_moves_before_anything_is_sent_is_found(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name, bug = BUGS["the cursor moves before anything is sent"].planted
    monkeypatch.setattr(place, name, bug)
    with pytest.raises(AssertionError, match="neither"):
        run(cluster, EXAMPLES_FOR_A_BUG)
