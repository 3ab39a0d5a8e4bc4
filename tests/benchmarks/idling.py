"""What a dispatcher costs that has nothing to do: a hundred thousand endpoints without an event."""

from __future__ import annotations

import asyncio

from tests.benchmarks.processes import cpu_s, memory_mb
from tests.benchmarks.report import Row, Sense, Target
from tests.benchmarks.rig import Rig
from tests.benchmarks.seeding import seed_endpoints
from tests.benchmarks.sizes import Sizes

SETTLED_S = 10.0
"""After it is ready, before it is looked at: it has read what it must by then."""
PER_TENANT = 10_000


async def idle(rig: Rig, sizes: Sizes) -> list[Row]:
    """CPU time of the process (and of the database for it) while nothing is to be done, and its memory."""
    busy, memory, database_busy = [], [], []
    async with rig.database() as (database, connection):
        for first in range(0, sizes.idle_endpoints, PER_TENANT):
            numbers = range(first, min(first + PER_TENANT, sizes.idle_endpoints))
            await seed_endpoints(connection, [rig.receiver.url(f"e/{n}") for n in numbers], tenant=f"tenant{first}")
        assert rig.server.pid is not None
        async with rig.dispatching(database) as served:
            await asyncio.to_thread(served.wait_ready)
            await asyncio.sleep(SETTLED_S)
            for _ in range(sizes.repeat):
                own, databases = cpu_s(served.pid), cpu_s(rig.server.pid)
                await asyncio.sleep(sizes.idle_s)
                busy.append((cpu_s(served.pid) - own) / sizes.idle_s * 100)
                database_busy.append((cpu_s(rig.server.pid) - databases) / sizes.idle_s * 100)
                memory.append(memory_mb(served.pid))
    note = f"{sizes.idle_endpoints:,} endpoints; the database meanwhile {max(database_busy):.1f} % at most"
    return [
        Row("idle_cpu", "% of a core", busy, Target(Sense.AT_MOST, 2.0), note=note),
        Row("idle_memory_mb", "MB", memory, Target(Sense.AT_MOST, 500.0), note=note),
    ]
