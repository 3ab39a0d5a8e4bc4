"""Delivering a backlog: how fast, against the bare loop of the same POSTs, and at what cost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace

import asyncpg

from dispatcher.model import OrderingMode
from tests.benchmarks.processes import ROOT, all_cores, clean_environ, measured_cores, pin, python
from tests.benchmarks.report import Row, Sense, Target
from tests.benchmarks.rig import POLL_S, Cost, Meter, Rig, median_costs
from tests.benchmarks.seeding import KEYS_PER_ENDPOINT, seed_backlog, seed_endpoints
from tests.benchmarks.sinks import counting_sink
from tests.benchmarks.sizes import Sizes
from tests.support.postgres import TestDatabase

DELIVERED_TIMEOUT_S = 600.0
POSTING_TIMEOUT_S = 120.0
IN_FLIGHT = (32, 128, 512)
SAMPLED = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.05"}
"""One span in twenty; metrics are exported as well, as everywhere here."""
ALL_SPANS = {"OTEL_TRACES_SAMPLER": "always_on"}
EIGHTY = Target(Sense.AT_LEAST, 0.80)


@dataclass(frozen=True, slots=True)
class Shape:
    """A backlog: `endpoints` times `per_endpoint` events of 400 bytes."""

    endpoints: int
    per_endpoint: int
    mode: OrderingMode = OrderingMode.ORDERED
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return self.endpoints * self.per_endpoint


@dataclass(frozen=True, slots=True)
class Delivered:
    """One run: deliveries per second from the first send to the last answer, and what it cost."""

    per_s: float
    start_s: float
    cost: Cost


async def best_post(rig: Rig, urls: int, count: int) -> float:
    """The bare loop's POSTs per second, in a process of its own: its best of 32, 128 and 512 in flight, so that a slow
    baseline flatters nothing."""
    levels = [str(in_flight) for in_flight in IN_FLIGHT]
    command = python("tests.benchmarks.posting", rig.receiver.url("e/"), str(urls), str(count), *levels)
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=clean_environ(), stdout=asyncio.subprocess.PIPE
    )
    pin(process.pid, measured_cores())
    async with asyncio.timeout(POSTING_TIMEOUT_S):
        out, _ = await process.communicate()
    return max(map(float, json.loads(out)["posts_per_s"]))


async def deliver_sampled(rig: Rig, sizes: Sizes) -> list[Row]:
    """The first row: ordered endpoints, signed, recorded, measured, one span in twenty."""
    return [await against_posts(rig, sizes, "deliver_sampled", _shape(sizes, variables=SAMPLED), EIGHTY)]


async def deliver_all_spans(rig: Rig, sizes: Sizes) -> list[Row]:
    """The same with every span made and exported."""
    shape = _shape(sizes, variables=ALL_SPANS)
    return [await against_posts(rig, sizes, "deliver_all_spans", shape, Target(Sense.AT_LEAST, 0.50))]


async def deliver_keyed(rig: Rig, sizes: Sizes) -> list[Row]:
    """In order within each of ten keys."""
    shape = _shape(sizes, mode=OrderingMode.ORDERED_BY_KEY, variables=SAMPLED)
    return [await against_posts(rig, sizes, "deliver_keyed", shape, EIGHTY)]


async def deliver_unordered(rig: Rig, sizes: Sizes) -> list[Row]:
    """In any order."""
    shape = _shape(sizes, mode=OrderingMode.UNORDERED, variables=SAMPLED)
    return [await against_posts(rig, sizes, "deliver_unordered", shape, EIGHTY)]


async def deliver_100(rig: Rig, sizes: Sizes) -> list[Row]:
    """The backlog of a tenth of the endpoints."""
    return [await against_posts(rig, sizes, "deliver_100", _shape(sizes, fewer=10, variables=SAMPLED), EIGHTY)]


async def deliver_10(rig: Rig, sizes: Sizes) -> list[Row]:
    """Of ten endpoints: no more than ten can be in flight."""
    return [await against_posts(rig, sizes, "deliver_10", _shape(sizes, fewer=100, variables=SAMPLED), EIGHTY)]


def _shape(
    sizes: Sizes, *, fewer: int = 1, mode: OrderingMode = OrderingMode.ORDERED, variables: Mapping[str, str]
) -> Shape:
    return Shape(sizes.endpoints // fewer, sizes.events_per_endpoint * fewer, mode, variables)


async def against_posts(rig: Rig, sizes: Sizes, name: str, shape: Shape, target: Target) -> Row:
    """A backlog delivered and the same POSTs made bare, in turn."""
    baselines, runs = [], []
    for _ in range(sizes.repeat):
        baselines.append(await best_post(rig, shape.endpoints, sizes.posts))
        with counting_sink() as sink:
            runs.append(await deliver(rig, replace(shape, variables={**sink.environ, **shape.variables})))
        if shape.variables == ALL_SPANS:
            assert sink.spans >= shape.count, f"{shape.count - sink.spans} spans were dropped"
    values = [run.per_s for run in runs]
    each = [run.cost.per_event(shape.count) for run in runs]
    return Row(name, "deliveries/s", values, target, baselines, median_costs(each))


# What is on record says when the first was sent and the last was answered, and that each was delivered just once.
SELECT_RATE = """
SELECT count(*) AS attempts, count(DISTINCT (endpoint_id, seq)) FILTER (WHERE outcome = 1) AS delivered,
       min(time) AS first, max(time + duration_us * interval '1 microsecond') AS last
FROM attempt"""


Backlog = tuple[TestDatabase, asyncpg.Connection]


@contextlib.asynccontextmanager
async def backlog(rig: Rig, shape: Shape) -> AsyncIterator[Backlog]:
    """A database with a backlog of this shape."""
    async with rig.database() as (database, connection):
        urls = [rig.receiver.url(f"e/{n}") for n in range(shape.endpoints)]
        fleet = await seed_endpoints(connection, urls, shape.mode)
        keys = KEYS_PER_ENDPOINT if shape.mode is OrderingMode.ORDERED_BY_KEY else 0
        await seed_backlog(connection, fleet, shape.per_endpoint, keys=keys)
        yield database, connection


async def deliver(rig: Rig, shape: Shape, *, is_pinned: bool = True) -> Delivered:
    """Deliver a backlog of this shape with one dispatcher that starts on it."""
    async with backlog(rig, shape) as (database, connection):
        assert rig.server.pid is not None
        meter = Meter(connection, {"receiver": rig.receiver.pid, "database": rig.server.pid})
        await meter.begin()
        begun = time.time()
        cores = measured_cores() if is_pinned else all_cores()
        async with rig.dispatching(database, cores=cores, **shape.variables) as served:
            meter.watch("dispatcher", served.pid)
            await all_delivered(connection, shape.count)
            await meter.end()
        cost = await meter.cost()
        row = await connection.fetchrow(SELECT_RATE)
        assert row["attempts"] == row["delivered"] == shape.count, dict(row)
        return Delivered(
            shape.count / (row["last"] - row["first"]).total_seconds(), row["first"].timestamp() - begun, cost
        )


# Free of charge, but late: a backend tells once a second, and of its last rows only when it has been idle for 10 s.
TOLD = "SELECT sum(n_tup_ins) FROM pg_stat_user_tables WHERE relname ~ '^attempt' -- bench: not counted"
RECORDED = "SELECT count(*) FROM attempt -- bench: not counted"
UNTOLD = 20_000
"""Rows that are on record and not told of yet: more than are written in two seconds."""
COUNT_S = 0.3
"""Between two looks at the rows themselves, which cost something."""


async def all_delivered(connection: asyncpg.Connection, count: int) -> None:
    """Wait until so many attempts are on record."""
    async with asyncio.timeout(DELIVERED_TIMEOUT_S):
        while (await connection.fetchval(TOLD) or 0) < count - UNTOLD:
            await asyncio.sleep(POLL_S)
        while await recorded(connection) < count:
            await asyncio.sleep(COUNT_S)


async def recorded(connection: asyncpg.Connection) -> int:
    """Attempts on record."""
    count: int = await connection.fetchval(RECORDED)
    return count
