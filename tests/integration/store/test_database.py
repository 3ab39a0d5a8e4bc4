"""A database that is away looks the same everywhere, and comes back by itself."""

from __future__ import annotations

import asyncpg
import pytest

from dispatcher.errors import UnavailableError
from dispatcher.store.database import Database, DatabaseOptions
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
