"""The flusher against a real PostgreSQL: COPY, hostile bytes, poison rows, a server that goes away."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial

import asyncpg
import pytest

from dispatcher.delivery.flush import Flusher, FlushLimits
from dispatcher.embedded.postgres import EmbeddedPostgres
from dispatcher.model import Attempt, Outcome
from dispatcher.store import attempts
from dispatcher.store.database import Database, DatabaseOptions
from dispatcher.telemetry import Instruments
from tests.support.deliveries import attempt_of
from tests.support.postgres import TestDatabase
from tests.support.tasks import running, until

LIMITS = FlushLimits(interval_s=0.01, attempts_max=100, retry_min_s=0.01, retry_max_s=0.05)
SELECT_ALL = "SELECT seq, outcome, status_code, error, response_excerpt FROM attempt ORDER BY seq"


def fact(seq: int, **changes: object) -> Attempt:
    return attempt_of(seq, start_time=datetime.now(UTC), **changes)


class Bench:
    def __init__(self, db: Database) -> None:
        self.db = db
        self.flushed: list[int] = []
        self.dropped: list[int] = []
        self.flusher = Flusher(
            partial(attempts.append, db),
            partial(attempts.append_again, db),
            on_flushed=lambda done: self.flushed.extend(attempt.seq for attempt in done),
            on_dropped=lambda gone: self.dropped.extend(attempt.seq for attempt in gone),
            instruments=Instruments.silent(),
            limits=LIMITS,
        )

    def add(self, *facts: Attempt) -> None:
        for attempt in facts:
            self.flusher.add(attempt)

    async def rows(self) -> list[asyncpg.Record]:
        return await self.db.fetch(SELECT_ALL)


@pytest.fixture
async def bench(database: TestDatabase) -> AsyncIterator[Bench]:
    async with Database.open(database.options) as db:
        made = Bench(db)
        async with running(made.flusher.run()):
            yield made


async def test_what_is_called_flushed_can_be_read(bench: Bench):
    bench.add(*(fact(seq) for seq in range(1, 251)))
    await until(lambda: len(bench.flushed) == 250, "all flushes")
    assert [row["seq"] for row in await bench.rows()] == list(range(1, 251))


async def test_a_nul_byte_in_an_answer_is_kept_and_harms_no_neighbour(bench: Bench):
    hostile = fact(2, outcome=Outcome.HTTP_ERROR, status_code=500, error="a\0b", response_excerpt=b"\0\xff")
    bench.add(fact(1), hostile, fact(3))
    await until(lambda: sorted(bench.flushed) == [1, 2, 3], "the flush")
    rows = await bench.rows()
    assert [row["seq"] for row in rows] == [1, 2, 3]
    assert rows[1]["response_excerpt"] == b"\0\xff"
    assert "\0" not in rows[1]["error"]


async def test_a_status_that_no_column_holds_costs_the_row_its_status_and_nothing_else(bench: Bench):
    bench.add(fact(1), fact(2, outcome=Outcome.HTTP_ERROR, status_code=10**6, response_excerpt=b"?"), fact(3))
    await until(lambda: sorted(bench.flushed) == [1, 2, 3], "the flush")
    row = (await bench.rows())[1]
    assert (row["outcome"], row["status_code"], row["response_excerpt"]) == (Outcome.HTTP_ERROR, None, None)
    assert bench.dropped == []


async def test_a_row_that_cannot_be_stored_is_dropped_alone(bench: Bench):
    bench.add(*(fact(seq) for seq in range(1, 40)), fact(2**63), *(fact(seq) for seq in range(40, 60)))
    await until(lambda: bench.dropped == [2**63], "the drop")
    assert [row["seq"] for row in await bench.rows()] == list(range(1, 60))
    assert sorted(bench.flushed) == list(range(1, 60))


async def test_a_clock_far_off_still_leaves_a_record(bench: Bench):
    bench.add(fact(1), attempt_of(2, start_time=datetime(2001, 1, 1, tzinfo=UTC)))
    await until(lambda: sorted(bench.flushed) == [1, 2], "the flush")
    assert [row["seq"] for row in await bench.rows()] == [1, 2]


async def test_a_fact_appended_twice_is_one_row(bench: Bench):
    attempt = fact(1)
    bench.add(attempt)
    await until(lambda: bench.flushed == [1], "the first flush")
    bench.add(attempt)
    await until(lambda: bench.flushed == [1, 1], "the second flush")
    assert len(await bench.rows()) == 1


async def test_a_server_that_dies_and_returns_loses_no_attempt_flushed_or_not(
    crashable_postgres: EmbeddedPostgres,
):
    options = DatabaseOptions(crashable_postgres.dsn, connect_timeout_s=2.0)
    async with Database.open(options) as db:
        bench = Bench(db)
        async with running(bench.flusher.run()):
            bench.add(fact(1))
            await until(lambda: bench.flushed == [1], "the flush before")
            await crashable_postgres.kill()
            bench.add(fact(2), fact(3))
            await until(lambda: db.availability.away_s > 0, "the database found away")
            assert bench.flushed == [1]
            await crashable_postgres.restart()
            await until(lambda: sorted(bench.flushed) == [1, 2, 3], "the flush after the restart")
        seqs = {row["seq"] for row in await bench.rows()}
        assert seqs == {1, 2, 3}


async def test_a_cut_connection_during_the_flush_is_survived(bench: Bench, database: TestDatabase):
    stop = False
    cutter = await database.connect()

    async def cut() -> None:
        while not stop:
            await cutter.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(cutter.close)
        async with running(cut()):
            for seq in range(1, 301):
                bench.add(fact(seq))
            await until(lambda: bench.db.availability.away_since is not None or bench.flushed, "a try")
            stop = True
        await until(lambda: len(bench.flushed) == 300, "all flushes")
    assert [row["seq"] for row in await bench.rows()] == list(range(1, 301))
