"""The time that ids are remembered for is a setting of the whole deployment."""

from __future__ import annotations

import asyncpg
import pytest

from dispatcher.store import partitions
from dispatcher.store.database import Database
from dispatcher.store.publish import publish
from dispatcher.store.upkeep import UpkeepSettings, run_round
from tests.support.postgres import TestDatabase
from tests.support.publishing import make_endpoint, make_tenant, new_event, request_of


@pytest.mark.parametrize("window_s", [3600, 7 * 86_400])
async def test_another_window_takes_effect_without_a_failed_publish_and_old_generations_go(
    database: TestDatabase, connection: asyncpg.Connection, window_s: int
) -> None:
    async with Database.open(database.options) as db:
        await make_tenant(db)
        request = await request_of(db, [new_event("id-1", b"x")], [(await make_endpoint(db, "a")).key])

        assert await partitions.apply_dedup_window(connection, window_s)
        assert not await partitions.apply_dedup_window(connection, window_s)
        first, again = [await publish(connection, [request], lock_timeout_s=1.0, timeout_s=5.0) for _ in range(2)]
        await run_round(db, UpkeepSettings(dedup_window_s=window_s))

    assert [r.requests[0].events[0].duplicate for r in (first, again)] == [False, True]
    now = (await connection.fetchval("SELECT clock_timestamp()")).timestamp()
    kept = [p.bound for p in await partitions.attached(connection) if p.table == "dedup"]
    assert min(kept) >= int(now) // window_s - 1
    assert max(kept) <= int(now) // window_s + max(4, 86_400 // window_s + 3)
