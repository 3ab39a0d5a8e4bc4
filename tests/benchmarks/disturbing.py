"""Delivery while something else goes on: an old transaction elsewhere, a second worker beside it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import asyncpg

from tests.benchmarks.delivering import SAMPLED, Delivered, Shape, all_delivered, backlog, deliver
from tests.benchmarks.report import Row, Sense, Target
from tests.benchmarks.rig import Rig, median_costs
from tests.benchmarks.sizes import Sizes

FASTEST_PER_S = 13_000
"""The rate by which a backlog is sized that shall last for a given time."""
WITHOUT_S = 15
SETTLED_S = 2.0
"""After the first delivery, before anything is counted."""
DELIVERED_BETWEEN = "SELECT count(*) FROM attempt WHERE time >= $1 AND time < $2 -- bench: not counted"


async def held_xmin(rig: Rig, sizes: Sizes) -> list[Row]:
    """A backlog that lasts for minutes: its rate at first, and from there on while a transaction of another session
    keeps every dead row alive. What slows down as the tables grow counts against it too."""
    per_endpoint = math.ceil(FASTEST_PER_S * (sizes.held_s + WITHOUT_S + SETTLED_S) / sizes.endpoints)
    shape = Shape(sizes.endpoints, per_endpoint)
    async with backlog(rig, shape) as (database, connection), rig.dispatching(database, **SAMPLED):
        await all_delivered(connection, 1)
        await asyncio.sleep(SETTLED_S)
        without = await _rate(connection, WITHOUT_S)
        async with _old_transaction(database.dsn):
            held = await _rate(connection, sizes.held_s)
    note = f"{sizes.held_s} s, after {WITHOUT_S} s without"
    return [Row("held_xmin", "deliveries/s", [held], Target(Sense.AT_LEAST, 0.85), [without], note=note)]


async def _rate(connection: asyncpg.Connection, seconds: float) -> float:
    """Deliveries a second from now on; AssertionError where the backlog does not last."""
    since = datetime.now(UTC)
    await asyncio.sleep(seconds)
    until = datetime.now(UTC)
    await asyncio.sleep(SETTLED_S)  # what was attempted until then is on record
    delivered: int = await connection.fetchval(DELIVERED_BETWEEN, since, until)
    assert await connection.fetchval(DELIVERED_BETWEEN, until, datetime.now(UTC)), "the backlog did not last"
    return delivered / (until - since).total_seconds()


@contextlib.asynccontextmanager
async def _old_transaction(dsn: str) -> AsyncIterator[None]:
    connection = await asyncpg.connect(dsn)
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await connection.fetchval("SELECT count(*) FROM lease")
    try:
        yield
    finally:
        pid = connection.get_server_pid()
        other = await asyncpg.connect(dsn)
        held = await other.fetchval("SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE pid = $1", pid)
        await other.close()
        await connection.close()
        assert held


async def two_workers(rig: Rig, sizes: Sizes) -> list[Row]:
    """`serve --workers 2` against one, on whatever cores there are."""
    shape = Shape(sizes.endpoints, sizes.shared_per_endpoint, variables=SAMPLED)
    ones: list[Delivered] = []
    twos: list[Delivered] = []
    for _ in range(sizes.repeat):
        ones.append(await deliver(rig, shape, is_pinned=False))
        two = replace(shape, variables={**SAMPLED, "DISPATCHER_WORKERS": "2"})
        twos.append(await deliver(rig, two, is_pinned=False))
    values, baselines = [run.per_s for run in twos], [run.per_s for run in ones]
    costs = median_costs([run.cost.per_event(shape.count) for run in twos])
    return [Row("two_workers", "deliveries/s", values, Target(Sense.AT_LEAST, 1.7), baselines, costs)]
