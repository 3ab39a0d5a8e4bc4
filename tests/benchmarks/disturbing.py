"""Delivery while something else goes on: an old transaction elsewhere, a second worker beside it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg

from tests.benchmarks.delivering import SAMPLED, Delivered, Shape, deliver
from tests.benchmarks.report import Row, Sense, Target
from tests.benchmarks.rig import Rig, median_costs
from tests.benchmarks.sizes import Sizes

SLOWEST_PER_S = 15_000
"""The rate by which a backlog is sized that shall last for a given time."""


async def held_xmin(rig: Rig, sizes: Sizes) -> list[Row]:
    """A backlog that lasts for minutes, while a transaction of another session keeps every dead row alive."""
    shape = Shape(sizes.endpoints, SLOWEST_PER_S * sizes.held_s // sizes.endpoints, variables=SAMPLED)
    without = await deliver(rig, shape)
    with_held = await deliver(rig, shape, meanwhile=_old_transaction)
    target = Target(Sense.AT_LEAST, 0.85)
    costs = with_held.cost.per_event(shape.count)
    return [Row("held_xmin", "deliveries/s", [with_held.per_s], target, [without.per_s], costs)]


@contextlib.asynccontextmanager
async def _old_transaction(dsn: str) -> AsyncIterator[None]:
    connection = await asyncpg.connect(dsn)
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await connection.fetchval("SELECT count(*) FROM lease")
    try:
        yield
    finally:
        held = await connection.fetchval(
            "SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        )
        await connection.close()
        assert held


async def two_workers(rig: Rig, sizes: Sizes) -> list[Row]:
    """`serve --workers 2` against one, on whatever cores there are."""
    shape = Shape(sizes.endpoints, sizes.events_per_endpoint, variables=SAMPLED)
    ones: list[Delivered] = []
    twos: list[Delivered] = []
    for _ in range(sizes.repeat):
        ones.append(await deliver(rig, shape, is_pinned=False))
        two = replace(shape, variables={**SAMPLED, "DISPATCHER_WORKERS": "2"})
        twos.append(await deliver(rig, two, is_pinned=False))
    values, baselines = [run.per_s for run in twos], [run.per_s for run in ones]
    costs = median_costs([run.cost.per_event(shape.count) for run in twos])
    return [Row("two_workers", "deliveries/s", values, Target(Sense.AT_LEAST, 1.7), baselines, costs)]
