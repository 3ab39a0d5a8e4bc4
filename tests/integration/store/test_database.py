"""A database that is away looks the same everywhere, and comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import time

import asyncpg
import pytest

from dispatcher.errors import DatabaseBusyError, UnavailableError
from dispatcher.store.database import CANCEL_WAIT_S, Database, DatabaseOptions
from tests.support.postgres import TestDatabase
from tests.support.proxy import proxied

BACKEND = "SELECT pg_backend_pid()"


async def test_a_connection_that_the_client_lost_track_of_serves_nobody_again(database: TestDatabase) -> None:
    """A server killed in the middle of an answer left asyncpg in a state in which every further call fails."""
    async with Database.open(DatabaseOptions(database.dsn, pool_size_max=1)) as db:
        before = await db.fetchval(BACKEND)
        with pytest.raises(UnavailableError):
            async with db.acquire():
                raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")
        assert await db.fetchval(BACKEND) != before


async def test_a_connection_that_may_only_read_serves_nobody_again(database: TestDatabase) -> None:
    """To a primary that has become a replica: a new one may find the primary."""
    async with Database.open(DatabaseOptions(database.dsn, pool_size_max=1)) as db:
        before = await db.fetchval(BACKEND)
        await db.execute("SET default_transaction_read_only = on")
        with pytest.raises(UnavailableError):
            await db.execute("CREATE TABLE written ()")
        assert await db.fetchval(BACKEND) != before
        await db.execute("CREATE TABLE written ()")


async def test_a_database_in_which_another_session_is_in_the_way_is_busy_and_not_away(database: TestDatabase) -> None:
    options = DatabaseOptions(database.dsn, lock_timeout_s=0.1)
    async with database.holding("LOCK TABLE endpoint IN ACCESS EXCLUSIVE MODE"), Database.open(options) as db:
        with pytest.raises(DatabaseBusyError):
            await db.fetchval("SELECT count(*) FROM endpoint")
        assert db.availability.away_since is None


async def test_a_lost_connection_is_unavailable_marks_the_database_away_and_is_replaced(database: TestDatabase) -> None:
    async with (
        proxied(database.dsn) as (proxy, dsn),
        Database.open(DatabaseOptions(dsn, pool_size_max=1, connect_timeout_s=1.0)) as db,
    ):
        await db.fetchval(BACKEND)
        proxy.cut()
        proxy.refuse = True
        with pytest.raises(UnavailableError):
            await db.fetchval(BACKEND)
        assert db.availability.away_since is not None
        proxy.refuse = False
        await db.fetchval(BACKEND)
        assert db.availability.away_since is None


async def test_a_task_that_is_cancelled_ends_though_its_statement_cannot_be_ended_in_good_order(
    database: TestDatabase,
) -> None:
    """A loop that took the failure for a database that is away would go on for ever."""
    async with (
        proxied(database.dsn) as (proxy, dsn),
        Database.open(DatabaseOptions(dsn, connect_timeout_s=0.3)) as db,
    ):
        await db.fetchval(BACKEND)
        proxy.open_road.clear()

        async def ask_for_ever() -> None:
            while True:
                with contextlib.suppress(UnavailableError):
                    await db.fetchval(BACKEND)

        task = asyncio.create_task(ask_for_ever())
        await asyncio.sleep(0.1)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5)
        assert done
        assert task.cancelled()
        assert db.availability.away_since is not None


@pytest.mark.parametrize("dedicated", [True, False])
async def test_the_end_waits_but_so_long_for_the_word_of_a_server_that_is_frozen(
    database: TestDatabase, dedicated: bool
) -> None:
    """Nothing else bounds the wait for a transaction's rollback."""
    async with (
        proxied(database.dsn) as (proxy, dsn),
        Database.open(DatabaseOptions(dsn, connect_timeout_s=0.3)) as db,
    ):
        begun = asyncio.Event()

        async def in_a_transaction() -> None:
            async with contextlib.AsyncExitStack() as stack:
                on = await db.connect() if dedicated else await stack.enter_async_context(db.acquire())
                async with on.transaction():
                    await on.fetchval(BACKEND)
                    proxy.open_road.clear()
                    begun.set()
                    await on.fetchval(BACKEND)

        task = asyncio.create_task(in_a_transaction())
        await begun.wait()
        await asyncio.sleep(0.1)
        task.cancel()
        began = time.monotonic()
        await db.ended({task})
        await asyncio.wait({task}, timeout=5)
        assert task.done()
        assert CANCEL_WAIT_S <= time.monotonic() - began < CANCEL_WAIT_S + 1
        with pytest.raises(UnavailableError):
            await db.fetchval(BACKEND)


async def test_the_end_keeps_the_connections_to_a_server_that_answers(database: TestDatabase) -> None:
    async with Database.open(DatabaseOptions(database.dsn)) as db:
        task = asyncio.create_task(db.execute("SELECT pg_sleep(60)"))
        await asyncio.sleep(0.1)
        task.cancel()
        await db.ended({task})
        assert task.cancelled()
        await db.fetchval(BACKEND)
