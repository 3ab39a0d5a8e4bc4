"""How long an event is on its way, at a rate that the machine bears easily."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.benchmarks.processes import ROOT, clean_environ, ended_output, measured_cores, pin, python
from tests.benchmarks.publishing import TIMEOUT_S
from tests.benchmarks.report import Row, Sense, Target
from tests.benchmarks.rig import Rig
from tests.benchmarks.seeding import TYPES, seed_endpoints, type_of
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.timing import WARM_UP
from tests.support.process import free_ports

RATE_PER_S = 500
ALONE = 500
NEIGHBOURS = 1000


@dataclass(slots=True)
class Arrivals:
    """A receiver that notes how long events took; `took_ms` once it has ended."""

    port: int
    took_ms: list[float] = field(default_factory=list)

    def url_of(self, what: str) -> str:
        """`in` or `hang`."""
        return f"http://127.0.0.1:{self.port}/{what}"


async def latency(rig: Rig, sizes: Sizes) -> list[Row]:
    """Median and 99th percentile of 500 events a second to ten endpoints, against one commit and one POST."""
    medians, tails, baselines = [], [], []
    for _ in range(sizes.repeat):
        alone_ms, took_ms = await _once(rig, sizes, alone=ALONE)
        baselines.append(statistics.median(alone_ms))
        medians.append(statistics.median(took_ms))
        tails.append(_p99(took_ms))
    return [
        Row("latency_p50", "ms", medians, Target(Sense.AT_MOST, 3.0), baselines),
        Row("latency_p99", "ms", tails, Target(Sense.AT_MOST, 15.0), baselines),
    ]


async def hanging_neighbours(rig: Rig, sizes: Sizes) -> list[Row]:
    """The healthy endpoints' 99th percentile where a tenth of all never answers, against the same where all do."""
    healthy, among = [], []
    for _ in range(sizes.repeat):
        _, took_ms = await _once(rig, sizes, NEIGHBOURS)
        healthy.append(_p99(took_ms))
        _, took_ms = await _once(rig, sizes, NEIGHBOURS, hanging=NEIGHBOURS // 10)
        among.append(_p99(took_ms))
    return [Row("hanging_neighbours", "ms", among, Target(Sense.AT_MOST, 1.5), healthy)]


def _p99(took_ms: list[float]) -> float:
    return statistics.quantiles(took_ms, n=100)[98]


async def _once(
    rig: Rig, sizes: Sizes, endpoints: int = TYPES, *, hanging: int = 0, alone: int = 0
) -> tuple[list[float], list[float]]:
    """What each of `alone` commits and POSTs took by itself, and each event; one event type for each endpoint, the
    first `hanging` of which hang."""
    async with rig.database() as (database, connection), _receiving() as arrivals:
        urls = [arrivals.url_of("hang")] * hanging + [arrivals.url_of("in")] * (endpoints - hanging)
        await seed_endpoints(connection, urls, patterns=[type_of(number, endpoints) for number in range(endpoints)])
        alone_ms = await _alone(database.dsn, arrivals.url_of("in"), alone) if alone else []
        async with rig.dispatching(database, DISPATCHER_DELIVERY_DRAIN_S="0.5") as served:
            await asyncio.to_thread(served.wait_ready)
            await _run("offer", str(served.grpc_port), str(RATE_PER_S), str(sizes.latency_s), str(endpoints))
            await asyncio.sleep(1.0)  # the last ones arrive; what is lost fails below
    expected = RATE_PER_S * sizes.latency_s * (endpoints - hanging) // endpoints
    assert len(arrivals.took_ms) >= expected, f"{len(arrivals.took_ms)} of {expected} arrived within a second"
    return alone_ms, arrivals.took_ms[WARM_UP:]


async def _alone(dsn: str, url: str, count: int) -> list[float]:
    said = await _run("alone", dsn, url, str(count), measured=True)
    return said["took_ms"][WARM_UP:]


@contextlib.asynccontextmanager
async def _receiving() -> AsyncIterator[Arrivals]:
    (port,) = free_ports(1)
    command = python("tests.benchmarks.timing", "receive", str(port))
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=clean_environ(), stdout=asyncio.subprocess.PIPE
    )
    arrivals = Arrivals(port)
    try:
        yield arrivals
    finally:
        arrivals.took_ms = json.loads(await ended_output(process))["took_ms"]


async def _run(*arguments: str, measured: bool = False) -> dict[str, list[float]]:
    process = await asyncio.create_subprocess_exec(
        *python("tests.benchmarks.timing", *arguments), cwd=ROOT, env=clean_environ(), stdout=asyncio.subprocess.PIPE
    )
    if measured:
        pin(process.pid, measured_cores())
    async with asyncio.timeout(TIMEOUT_S):
        out, _ = await process.communicate()
    said: dict[str, list[float]] = json.loads(out)
    return said
