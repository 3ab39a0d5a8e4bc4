"""PostgreSQL restarts, throws clients out, runs out of connections and of disk, and is held by an old snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from dispatcher.embedded.postgres import EmbeddedPostgres, StopMode
from tests.support.chaos.scene import LEASE_TTL_S, Scene
from tests.support.postgres import TestDatabase

pytestmark = pytest.mark.chaos
TIMES = 3
OUT_OF_IT_S = LEASE_TTL_S + 1.0
AT_ONCE_S = 2.0
NOT_OURS = "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"


async def test_immediate_restarts_lose_nothing(crashable_postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    async with Scene.open("PostgreSQL, immediate restart", crashable_postgres.dsn, tmp_path) as scene:
        await scene.shared()
        async with scene.publishing():
            for _ in range(TIMES):
                with scene.fault():
                    await crashable_postgres.restart(StopMode.IMMEDIATE)
                    await scene.shared()
                await scene.flows()
        await scene.judge()


async def test_each_connection_is_terminated_and_made_anew(database: TestDatabase, tmp_path: Path) -> None:
    async with Scene.open("pg_terminate_backend of each", database.dsn, tmp_path) as scene:
        await scene.shared()
        async with scene.publishing():
            for _ in range(TIMES):
                with scene.fault():
                    assert await _terminate_each(scene) >= 3 * 3, "a pool and two writers at least, three times"
                await scene.flows()
        await scene.judge()


async def _terminate_each(scene: Scene) -> int:
    async with scene.judge_connection() as connection:
        pids = [pid for (pid,) in await connection.fetch(f"SELECT pid FROM pg_stat_activity WHERE {NOT_OURS}")]
        for pid in pids:
            await connection.execute("SELECT pg_terminate_backend($1)", pid)
            await asyncio.sleep(0.05)  # each while the others work
    return len(pids)


async def test_out_of_connections_callers_are_told_to_wait_and_all_resumes(
    crashable_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with Scene.open("out of connections", crashable_postgres.dsn, tmp_path) as scene:
        await scene.shared()
        async with scene.publishing():
            for _ in range(TIMES):
                with scene.fault():
                    async with _all_connections_taken(crashable_postgres.dsn) as taken:
                        assert taken >= 50
                        await asyncio.sleep(OUT_OF_IT_S)
                    await scene.shared()
                await scene.flows()
        told = {reason for publisher in scene.publishers for reason in publisher.refusals}
        assert told & {"DATABASE_UNAVAILABLE", "DATABASE_EXHAUSTED"}, told
        await scene.judge()


@contextlib.asynccontextmanager
async def _all_connections_taken(dsn: str) -> AsyncIterator[int]:
    """Every connection that the server gives is ours: those of all others are ended, and the free places taken."""
    ours: list[asyncpg.Connection] = []
    try:
        while True:
            try:
                ours.append(await asyncpg.connect(dsn, timeout=5))
            except asyncpg.TooManyConnectionsError:
                if not await ours[0].fetchval(_THROW_OUT, [each.get_server_pid() for each in ours]):
                    break
        yield len(ours)
    finally:
        for each in ours:
            each.terminate()


_THROW_OUT = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> ALL ($1::integer[])"""


async def test_a_full_disk_refuses_and_loses_nothing(pristine_folder: Path, small_disk: Path, tmp_path: Path) -> None:
    shutil.copytree(pristine_folder, small_disk / "pg")
    settings = {"min_wal_size": "32MB", "max_wal_size": "64MB", "wal_recycle": "off", "autovacuum": "off"}
    async with (
        EmbeddedPostgres(small_disk / "pg", settings=settings) as server,
        Scene.open("disk full", server.dsn, tmp_path) as scene,
    ):
        await scene.shared()
        async with scene.publishing():
            for _ in range(TIMES):
                with scene.fault():
                    await _full_for_a_while(small_disk)
                    if not server.is_running:
                        await server.start()
                    await scene.shared()
                await scene.flows()
        told = {reason for publisher in scene.publishers for reason in publisher.refusals}
        assert told & {"DATABASE_EXHAUSTED", "DATABASE_UNAVAILABLE", "COMMIT_UNKNOWN"}, "nobody noticed"
        await scene.judge()


async def _full_for_a_while(disk: Path) -> None:
    """A file takes all that is free, again and again: what the server gives back while it recovers, too."""
    ballast = disk / "ballast"
    until = asyncio.get_running_loop().time() + 2 * OUT_OF_IT_S
    with ballast.open("wb", buffering=0) as file:
        while asyncio.get_running_loop().time() < until:
            with contextlib.suppress(OSError):
                while file.write(b"\0" * 65536):
                    pass
            await asyncio.sleep(0.05)
    ballast.unlink()


async def test_an_old_snapshot_holds_up_nobody(database: TestDatabase, tmp_path: Path) -> None:
    async with Scene.open("xmin held", database.dsn, tmp_path) as scene:
        await scene.shared()
        async with scene.publishing():
            for _ in range(TIMES):
                for publisher in scene.publishers:
                    publisher.longest_s = 0.0
                async with (
                    scene.judge_connection() as connection,
                    connection.transaction(isolation="repeatable_read"),
                ):
                    held = await connection.fetchval("SELECT count(*) FROM outbox")
                    with scene.fault():
                        await scene.flows(200)
                    assert await connection.fetchval("SELECT count(*) FROM outbox") == held, "the snapshot was old"
                assert max(publisher.longest_s for publisher in scene.publishers) < AT_ONCE_S
        assert not any(publisher.refusals for publisher in scene.publishers)
        await scene.judge()
