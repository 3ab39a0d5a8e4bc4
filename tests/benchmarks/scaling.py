"""What stays flat as the work grows: the cost of an event, the start, the memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from tests.benchmarks.delivering import SAMPLED, Backlog, Shape, all_delivered, backlog, recorded
from tests.benchmarks.processes import memory_mb, peak_memory_mb
from tests.benchmarks.report import Row, Sense, Target
from tests.benchmarks.rig import Meter, Rig, median_costs
from tests.benchmarks.sizes import Sizes

FIRST_SINCE = "SELECT min(time) FROM attempt WHERE time >= $1 -- bench: not counted"
VACUUM = "VACUUM ANALYZE"
"""Autovacuum would do it, to either, while the other is measured."""
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
    """The same stretch of work at the head of a large backlog and of a small one, neither of which fits into memory.

    A large one is seeded once: a stretch takes little of it.
    """
    few, small, large = FEW_ENDPOINTS, [], []
    async with backlog(rig, Shape(few, sizes.backlog // few)) as pending:
        await pending[1].execute(VACUUM)
        for _ in range(sizes.repeat):
            async with backlog(rig, Shape(few, SMALL_BACKLOG // few)) as fewer_pending:
                await fewer_pending[1].execute(VACUUM)
                small.append(await _stretch(rig, fewer_pending))
            large.append(await _stretch(rig, pending))
    note = f"{sizes.backlog:,} pending against {SMALL_BACKLOG:,}"
    costs = median_costs([run.costs for run in large])
    cpu, baselines = [run.cpu_us for run in large], [run.cpu_us for run in small]
    return [Row("backlog_cost", "µs CPU/event", cpu, Target(Sense.AT_MOST, 1.15), baselines, costs, note)]


async def backlog_start(rig: Rig, sizes: Sizes) -> list[Row]:
    """From the process's start on a large backlog to the first delivery, and the most memory that it takes."""
    async with backlog(rig, Shape(sizes.endpoints, sizes.backlog // sizes.endpoints)) as pending:
        runs = [await _stretch(rig, pending) for _ in range(sizes.repeat)]
    note = f"{sizes.backlog:,} pending"
    starts, peaks = [run.start_s for run in runs], [run.peak_memory_mb for run in runs]
    return [
        Row("backlog_start_s", "s", starts, Target(Sense.AT_MOST, 2.0), note=note),
        Row("backlog_memory_mb", "MB", peaks, Target(Sense.AT_MOST, 300.0), note=note),
    ]


async def _stretch(rig: Rig, pending: Backlog) -> Stretch:
    database, connection = pending
    assert rig.server.pid is not None
    done = await recorded(connection)
    await connection.execute("CHECKPOINT")
    begun = time.time()
    async with rig.dispatching(database, **SAMPLED) as served:
        pids = {"dispatcher": served.pid, "receiver": rig.receiver.pid, "database": rig.server.pid}
        meter = Meter(connection, pids)
        await all_delivered(connection, done + WARM_UP)
        await meter.begin(checkpoint=False)
        before = await recorded(connection)
        await all_delivered(connection, done + WARM_UP + COUNTED)
        await meter.end()
        after, peak = await recorded(connection), peak_memory_mb(served.pid)
        first = await connection.fetchval(FIRST_SINCE, datetime.fromtimestamp(begun, UTC))
        costs = (await meter.cost()).per_event(after - before)
    cpu = {name: each for name, each in costs.items() if name.endswith("_cpu_us")}  # the rest is told at the end only
    return Stretch(cpu, first.timestamp() - begun, peak)


async def memory_growth(rig: Rig, sizes: Sizes) -> list[Row]:
    """Resident memory after all deliveries against that after a tenth of them."""
    shape = Shape(sizes.endpoints, sizes.growth // sizes.endpoints)
    async with backlog(rig, shape) as (database, connection), rig.dispatching(database, **SAMPLED) as served:
        await all_delivered(connection, round(shape.count * EARLY))
        early = memory_mb(served.pid)
        await all_delivered(connection, shape.count)
        late = memory_mb(served.pid)
    note = f"after {shape.count:,} deliveries against {round(shape.count * EARLY):,}"
    return [Row("memory_growth", "MB", [late], Target(Sense.AT_MOST, 1.05), [early], note=note)]
