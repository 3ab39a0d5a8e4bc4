"""What operators do on purpose: a rolling restart, two builds side by side, a day dropped during a replay."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from webhooks.v1 import replay_pb2, replay_pb2_grpc

from dispatcher.store.partitions import Partition
from tests.support.callers import CALL_TIMEOUT_S, SteadyPublisher
from tests.support.chaos.history import read_rows
from tests.support.chaos.scene import Scene
from tests.support.postgres import TestDatabase
from tests.support.process import ROOT
from tests.support.waiting import until

pytestmark = pytest.mark.chaos
TIMES = 3
ENDED_S = 20.0
AGED = {
    "event": "time = time - $1::interval",
    "outbox": "time = time - $1::interval, event_time = event_time - $1::interval",
    "attempt": "time = time - $1::interval",
}
"""As if the clock had moved on."""


async def test_three_rolling_restarts_under_load_lose_and_repeat_nothing(
    database: TestDatabase, tmp_path: Path
) -> None:
    async with Scene.open("rolling restart of all three", database.dsn, tmp_path) as scene:
        await scene.shared()
        async with scene.publishing():
            for _ in range(TIMES):
                scene.figures.runs += 1
                with scene.pauses():
                    for each in scene.served:
                        each.terminate()
                        assert await each.exit_code(ENDED_S) == 0
                        await each.started()
                        await scene.shared()
                await scene.flows()
        assert not any(each.troubles() for each in scene.served)
        await scene.judge()


async def test_the_previous_build_and_this_one_share_the_work_and_replace_each_other(
    database: TestDatabase, tmp_path: Path
) -> None:
    former = _former_build(tmp_path)
    async with Scene.open("two builds side by side", database.dsn, tmp_path, variables_of={0: former}) as scene:
        await scene.shared()
        async with scene.publishing():
            for now in ({}, former, {}):
                scene.figures.runs += 1
                with scene.pauses():
                    for number in (0, 1):
                        each = scene.served[number]
                        each.terminate()
                        assert await each.exit_code(ENDED_S) == 0
                        await each.started(now if number == 0 else former)
                        await scene.shared()
                await scene.flows()
        await scene.judge()


def _former_build(folder: Path) -> Mapping[str, str]:
    """The variables that start the build before the last change of the source, taken from the repository's history."""

    def git(*arguments: str) -> bytes:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout

    last_change = git("rev-list", "-1", "HEAD", "--", "src/dispatcher").decode().strip()
    (folder / "former").mkdir()
    archive = git("archive", f"{last_change}~1", "src")
    subprocess.run(["tar", "-x", "-C", str(folder / "former")], input=archive, check=True)
    source = folder / "former" / "src"
    return {"PYTHONPATH": f"{source}:{source / 'generated'}:{ROOT}"}


async def test_a_day_dropped_during_a_replay_loses_nothing_that_was_appended(
    database: TestDatabase, tmp_path: Path
) -> None:
    variables = {"DISPATCHER_PARTITION_CHECK_INTERVAL_S": "1", "DISPATCHER_REPLAY_INTERVAL_S": "0.05"}
    async with Scene.open("a day dropped during a replay", database.dsn, tmp_path, variables=variables) as scene:
        await scene.shared()
        async with scene.publishing():
            for number in range(TIMES):
                scene.figures.runs += 1
                old = SteadyPublisher(f"old{number}", scene.callers)
                await old.run(300)
                scene.finished.append(old)
                await _dropped_during_a_replay(scene, old, number)
                await scene.flows()
        await scene.judge()
        assert {row.is_replay for row in scene.last_rows} == {True, False}


async def _dropped_during_a_replay(scene: Scene, old: SteadyPublisher, number: int) -> None:
    """What `old` has published becomes 40 days old; while it is replayed, upkeep drops its day."""
    day = (datetime.now(UTC) - timedelta(days=40 + number)).date()
    async with scene.judge_connection() as connection, scene.judge_connection() as reader:
        await until(lambda: _is_delivered(connection, old), 60.0)
        scene.kept_rows += [row for row in await read_rows(connection) if row.event_id.startswith(f"{old.name}-")]
        oldest = await connection.fetchval("SELECT min(time) FROM event WHERE event_id LIKE $1", f"{old.name}-%")
        by = oldest - datetime.combine(day, datetime.min.time(), UTC) - timedelta(hours=12)
        async with reader.transaction():
            async with connection.transaction():
                for table in ("event", "outbox", "attempt"):
                    partition = Partition(table, day)
                    await connection.execute(
                        f"CREATE TABLE {partition.name} PARTITION OF {table} FOR VALUES {partition.values_sql}"
                    )
                    await connection.execute(
                        f"UPDATE {table} SET {AGED[table]} WHERE event_id LIKE $2", by, f"{old.name}-%"
                    )
                # Asked for while nobody knows of the day: upkeep, which wants the same lock, comes later.
                locking = asyncio.create_task(reader.execute("LOCK TABLE outbox IN SHARE UPDATE EXCLUSIVE MODE"))
                await until(lambda: _waits(connection, reader), 10.0)
            await locking
            replay = await _begin_replay(scene, number)
            await until(lambda: _is_under_way(scene, replay), 30.0)
        await until(lambda: _is_gone(connection, day), 60.0)
        await until(lambda: _has_ended(scene, replay), 60.0)


async def _waits(connection: asyncpg.Connection, other: asyncpg.Connection) -> bool:
    sql = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)"
    return await connection.fetchval(sql, other.get_server_pid())


async def _begin_replay(scene: Scene, number: int) -> str:
    start, end = Timestamp(), Timestamp()
    start.FromDatetime(datetime.now(UTC) - timedelta(days=50))
    end.FromDatetime(datetime.now(UTC) - timedelta(days=30))
    replay = replay_pb2.Replay(
        endpoint="tenants/acme/endpoints/second",
        replay_events=replay_pb2.ReplayEvents(start_time=start, end_time=end),
        max_per_second=100,
    )
    request = replay_pb2.CreateReplayRequest(parent="tenants/acme", replay_id=f"r{number}", replay=replay)
    stub = replay_pb2_grpc.ReplayServiceStub(scene.callers[0].channel)
    return (await stub.CreateReplay(request, timeout=CALL_TIMEOUT_S)).name


async def _replay(scene: Scene, name: str) -> replay_pb2.Replay:
    stub = replay_pb2_grpc.ReplayServiceStub(scene.callers[0].channel)
    return await stub.GetReplay(replay_pb2.GetReplayRequest(name=name), timeout=CALL_TIMEOUT_S)


async def _is_under_way(scene: Scene, name: str) -> bool:
    replay = await _replay(scene, name)
    assert replay.state == replay_pb2.Replay.STATE_RUNNING, "it was over before its day was dropped"
    return replay.appended_count > 0


async def _has_ended(scene: Scene, name: str) -> bool:
    return (await _replay(scene, name)).state != replay_pb2.Replay.STATE_RUNNING


async def _is_delivered(connection: asyncpg.Connection, old: SteadyPublisher) -> bool:
    rows = [row for row in await read_rows(connection) if row.event_id.startswith(f"{old.name}-")]
    return bool(rows) and all(row.is_delivered or row.decisions for row in rows)


async def _is_gone(connection: asyncpg.Connection, day: date) -> bool:
    return await connection.fetchval("SELECT to_regclass($1)", Partition("outbox", day).name) is None
