"""What stays flat as the work grows: the cost of an event, the start, the memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg

from tests.benchmarks.delivering import SAMPLED, SELECT_RATE, Shape, all_delivered
from tests.benchmarks.processes import memory_mb, peak_memory_mb
from tests.benchmarks.report import Row, Sense, Target
from tests.benchmarks.rig import Meter, Rig, median_costs
from tests.benchmarks.seeding import seed_backlog, seed_endpoints
from tests.benchmarks.sizes import Sizes
from tests.support.process import Served

SMALL_BACKLOG = 50_000
FEW_ENDPOINTS = 20
"""Of which a process keeps only some rows each, so that it reads on all the time in a small backlog too."""
WARM_UP = 10_000
"""Deliveries before what one costs is counted."""
COUNTED = 30_000
EARLY = 0.1
"""The part of the deliveries after which the memory is taken that it is compared with in the end."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a large backlog: what an event cost meanwhile, and what the process had become."""

    costs: dict[str, float]
    start_s: float
    peak_memory_mb: float

    @property
    def cpu_us(self) -> float:
        """Of all processes, for one event."""
        return sum(self.costs.values())


async def backlog_cost(rig: Rig, sizes: Sizes) -> list[Row]:
    """The same stretch of work at the head of a large backlog and of a small one, neither of which fits into memory."""
    large, small = [], []
    for _ in range(sizes.repeat):
        small.append(await _stretch(rig, Shape(FEW_ENDPOINTS, SMALL_BACKLOG // FEW_ENDPOINTS)))
        large.append(await _stretch(rig, Shape(FEW_ENDPOINTS, sizes.backlog // FEW_ENDPOINTS)))
    note = f"{sizes.backlog:,} pending against {SMALL_BACKLOG:,}"
    costs = median_costs([run.costs for run in large])
    cpu, baselines = [run.cpu_us for run in large], [run.cpu_us for run in small]
    return [Row("backlog_cost", "µs CPU/event", cpu, Target(Sense.AT_MOST, 1.15), baselines, costs, note)]


async def backlog_start(rig: Rig, sizes: Sizes) -> list[Row]:
    """From the process's start on a large backlog to the first delivery, and the most memory that it takes."""
    shape = Shape(sizes.endpoints, sizes.backlog // sizes.endpoints)
    runs = [await _stretch(rig, shape) for _ in range(sizes.repeat)]
    note = f"{sizes.backlog:,} pending"
    starts, peaks = [run.start_s for run in runs], [run.peak_memory_mb for run in runs]
    return [
        Row("backlog_start_s", "s", starts, Target(Sense.AT_MOST, 2.0), note=note),
        Row("backlog_memory_mb", "MB", peaks, Target(Sense.AT_MOST, 300.0), note=note),
    ]


async def _stretch(rig: Rig, shape: Shape) -> Stretch:
    async with _backlogged(rig, shape) as (served, connection, begun):
        assert rig.server.pid is not None
        pids = {"dispatcher": served.pid, "receiver": rig.receiver.pid, "database": rig.server.pid}
        meter = Meter(connection, pids)
        await all_delivered(connection, WARM_UP)
        await meter.begin(checkpoint=False)
        before = await _recorded(connection)
        await all_delivered(connection, WARM_UP + COUNTED)
        await meter.end()
        after, peak = await _recorded(connection), peak_memory_mb(served.pid)
        first = (await connection.fetchrow(SELECT_RATE))["first"]
        costs = (await meter.cost()).per_event(after - before)
    cpu = {name: each for name, each in costs.items() if name.endswith("_cpu_us")}  # the rest is told at the end only
    return Stretch(cpu, first.timestamp() - begun, peak)


async def memory_growth(rig: Rig, sizes: Sizes) -> list[Row]:
    """Resident memory after all deliveries against that after a tenth of them."""
    shape = Shape(sizes.endpoints, sizes.growth // sizes.endpoints)
    async with _backlogged(rig, shape) as (served, connection, _):
        await all_delivered(connection, round(shape.count * EARLY))
        early = memory_mb(served.pid)
        await all_delivered(connection, shape.count)
        late = memory_mb(served.pid)
    note = f"after {shape.count:,} deliveries against {round(shape.count * EARLY):,}"
    return [Row("memory_growth", "MB", [late], Target(Sense.AT_MOST, 1.05), [early], note=note)]


@contextlib.asynccontextmanager
async def _backlogged(rig: Rig, shape: Shape) -> AsyncIterator[tuple[Served, asyncpg.Connection, float]]:
    """A dispatcher that was started just now on a backlog of this shape; and when."""
    async with rig.database() as (database, connection):
        fleet = await seed_endpoints(connection, [rig.receiver.url(f"e/{n}") for n in range(shape.endpoints)])
        await seed_backlog(connection, fleet, shape.per_endpoint)
        await connection.execute("CHECKPOINT")
        begun = time.time()
        async with rig.dispatching(database, **SAMPLED) as served:
            yield served, connection, begun


async def _recorded(connection: asyncpg.Connection) -> int:
    recorded: int = await connection.fetchval("SELECT count(*) FROM attempt -- bench: not counted")
    return recorded
