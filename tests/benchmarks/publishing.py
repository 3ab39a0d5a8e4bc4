"""Publishing: events a second that are durable, through gRPC against the statements alone, and what a call costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from tests.benchmarks.processes import ROOT, clean_environ, measured_cores, pin, python
from tests.benchmarks.report import Row, Sense, Target
from tests.benchmarks.rig import Meter, Rig, ended, median_costs
from tests.benchmarks.seeding import seed_endpoints, type_of
from tests.benchmarks.sizes import Sizes
from tests.support.postgres import TestDatabase
from tests.support.process import Served

ENDPOINTS = 10
BATCH = 100
CALLERS = 64
BATCH_CALLERS = 16
BATCHES_ALONE = ((100, 1), (500, 1), (500, 2))
"""Sizes of a batch and numbers of connections of which the baseline takes the best."""
TIMEOUT_S = 300.0


async def publish_batch(rig: Rig, sizes: Sizes) -> list[Row]:
    """Calls with a hundred events each."""
    values, baselines, each = [], [], []
    for _ in range(sizes.repeat):
        async with publishing(rig) as (database, served, meter):
            baselines.append(max([await _alone(database, sizes.events, *shape) for shape in BATCHES_ALONE]))
            await meter.begin()
            said = await _call(served.grpc_port, "publish", BATCH_CALLERS, sizes.events // BATCH, BATCH)
            await meter.end()
            values.append(said["calls_per_s"] * BATCH)
            await ended(served)
            each.append((await meter.cost()).per_event(sizes.events))
    target = Target(Sense.AT_LEAST, 0.50, floor=15_000)
    return [Row("publish_batch", "events/s", values, target, baselines, median_costs(each))]


async def publish_unary(rig: Rig, sizes: Sizes) -> list[Row]:
    """Calls with one event each, of 64 callers, against the health check of the same server."""
    values, baselines, each = [], [], []
    for _ in range(sizes.repeat):
        async with publishing(rig) as (_, served, meter):
            empty = await _call(served.grpc_port, "empty", CALLERS, sizes.calls, 0)
            await meter.begin()
            said = await _call(served.grpc_port, "publish", CALLERS, sizes.calls, 1)
            await meter.end()
            baselines.append(empty["calls_per_s"])
            values.append(said["calls_per_s"])
            await ended(served)
            each.append((await meter.cost()).per_event(sizes.calls))
    return [Row("publish_unary", "events/s", values, Target(Sense.AT_LEAST, 0.60), baselines, median_costs(each))]


@contextlib.asynccontextmanager
async def publishing(rig: Rig) -> AsyncIterator[tuple[TestDatabase, Served, Meter]]:
    """A dispatcher whose endpoints are paused, so that nothing but publishing goes on."""
    async with rig.database() as (database, connection):
        urls = [rig.receiver.url(f"e/{number}") for number in range(ENDPOINTS)]
        patterns = [type_of(number) for number in range(ENDPOINTS)]
        await seed_endpoints(connection, urls, patterns=patterns)
        await connection.execute("UPDATE endpoint SET state = 'PAUSED'")
        async with rig.dispatching(database) as served:
            await asyncio.to_thread(served.wait_ready)
            assert rig.server.pid is not None
            yield database, served, Meter(connection, {"dispatcher": served.pid, "database": rig.server.pid})


async def _call(port: int, kind: str, callers: int, calls: int, batch: int) -> dict[str, Any]:
    return await _run("tests.benchmarks.calling", str(port), kind, str(callers), str(calls), str(batch))


async def _alone(database: TestDatabase, count: int, size: int, connections: int) -> float:
    said = await _run(
        "tests.benchmarks.inserting", database.dsn, str(count), str(size), str(connections), measured=True
    )
    return float(said["events_per_s"])


async def _run(module: str, *arguments: str, measured: bool = False) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *python(module, *arguments), cwd=ROOT, env=clean_environ(), stdout=asyncio.subprocess.PIPE
    )
    if measured:
        pin(process.pid, measured_cores())
    async with asyncio.timeout(TIMEOUT_S):
        out, _ = await process.communicate()
    said: dict[str, Any] = json.loads(out)
    return said
