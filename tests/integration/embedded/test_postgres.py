"""The local PostgreSQL: durable, alone in its folder, and gone when its launcher is gone."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from dispatcher.embedded import postgres, processes
from dispatcher.embedded.binaries import EmbeddedPostgresError, Identity
from dispatcher.embedded.postgres import EmbeddedPostgres, StopMode

WAIT_S = 20.0


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


async def ask(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the test."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ) as started:
        try:
            yield started
        finally:
            started.kill()


def mode_of(folder: Path) -> int | None:
    return stat.S_IMODE(folder.stat().st_mode) if folder.exists() else None


@pytest.fixture
def server(crashable_postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    """On a copied cluster; some tests below make new ones."""
    return crashable_postgres


async def test_a_new_server_is_durable_and_has_what_production_has(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path) as server:
        await look_at_a_new_server(server)


async def look_at_a_new_server(server: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(server.dsn)
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        assert await connection.fetchval(f"SHOW {name}") == "on"
    assert await connection.fetchval("SHOW server_encoding") == "UTF8"
    assert await connection.fetchval("SELECT lower('ÄÖ')") == "äö"
    await connection.execute("CREATE EXTENSION pg_stat_statements")
    assert await connection.fetchval("SELECT count(*) > 0 FROM pg_stat_statements")
    await connection.close()


async def test_only_this_user_can_get_to_the_server(server: EmbeddedPostgres) -> None:
    assert await ask(server.dsn, "SHOW listen_addresses") == ""
    for folder in (server.folder, server.folder / "data", server.folder / "socket"):
        assert mode_of(folder) == 0o700


async def test_rows_survive_a_restart_and_the_dsn_stays_the_same(server: EmbeddedPostgres) -> None:
    before = server.dsn
    await ask(server.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    for mode in StopMode:
        await server.restart(mode)
        assert await ask(server.dsn, "SELECT n FROM kept") == 7
    assert server.dsn == before


async def test_committed_rows_survive_sigkill_of_the_whole_server(server: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(server.dsn)
    await connection.execute("CREATE TABLE kept (n int)")
    await connection.execute("INSERT INTO kept VALUES (1)")
    backend = await connection.fetchval("SELECT pg_backend_pid()")
    os.kill(backend, signal.SIGSTOP)  # it would not notice the end of its parent
    await server.kill()
    assert not server.is_running
    assert not processes.is_running(backend)
    await server.start()
    assert await ask(server.dsn, "SELECT n FROM kept") == 1


async def test_a_second_launcher_is_told_which_folder_is_taken(server: EmbeddedPostgres) -> None:
    with pytest.raises(EmbeddedPostgresError, match=f"another process .* {server.folder}"):
        await EmbeddedPostgres(server.folder).start()
    assert await ask(server.dsn, "SELECT 1") == 1
    await server.stop()
    async with EmbeddedPostgres(server.folder) as second:
        assert await ask(second.dsn, "SELECT 1") == 1


async def test_a_server_that_ends_on_its_own_is_noticed(server: EmbeddedPostgres) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGQUIT)
    await server.wait_stopped()
    assert not server.is_running


async def test_a_cluster_of_another_major_version_is_refused_and_left_alone(server: EmbeddedPostgres) -> None:
    await server.stop()
    (server.folder / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedPostgresError, match=rf"{server.folder}/data was made by PostgreSQL 12, this is .* \d+"):
        await server.start()
    assert (server.folder / "data" / "pg_wal").is_dir()


async def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(EmbeddedPostgresError, match="is not a PostgreSQL cluster"):
        await EmbeddedPostgres(tmp_path).start()


async def test_an_interrupted_initdb_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "data.new").mkdir()
    (tmp_path / "data.new" / "PG_VERSION").write_text("18\n")
    async with EmbeddedPostgres(tmp_path) as server:
        assert await ask(server.dsn, "SELECT 1") == 1


async def test_a_server_that_cannot_start_shows_its_log_and_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="max_connections"):
        await EmbeddedPostgres(tmp_path, settings={"max_connections": "none"}).start()
    async with EmbeddedPostgres(tmp_path) as server:
        assert await ask(server.dsn, "SELECT 1") == 1


async def test_a_stale_process_id_that_belongs_to_another_program_does_not_block(server: EmbeddedPostgres) -> None:
    await server.kill()
    pid_file = server.folder / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    with process("sleep", "60") as stranger:
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        await server.start()
        assert await ask(server.dsn, "SELECT 1") == 1
        assert stranger.poll() is None


async def test_a_server_started_by_hand_in_the_folder_is_an_error_that_names_it(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "FORMER_SERVER_WAIT_S", 0.1)
    server._server._release()  # as if its launcher had been killed without the server having noticed
    second = EmbeddedPostgres(server.folder)
    pid = int((server.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
    try:
        with pytest.raises(EmbeddedPostgresError, match=f"process id {pid} still runs on {server.folder}"):
            await second.start()
    finally:
        os.kill(pid, signal.SIGQUIT)
    assert eventually(lambda: not processes.is_running(pid))


LAUNCH = """
import sys, time
from pathlib import Path
from dispatcher.embedded.postgres import PostgresServer
server = PostgresServer(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


async def test_the_server_ends_when_its_launcher_is_killed_and_the_next_launcher_takes_over(tmp_path: Path) -> None:
    with process(sys.executable, "-c", LAUNCH, str(tmp_path)) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        assert processes.is_running(pid)
        launcher.kill()  # SIGKILL: it can clean up nothing
    async with EmbeddedPostgres(tmp_path) as successor:
        assert await ask(successor.dsn, "SELECT 1") == 1
        assert successor.pid != pid
    assert not processes.is_running(pid)


async def test_nothing_is_left_running_after_a_stop(server: EmbeddedPostgres) -> None:
    await server.kill()
    await server.start()
    await server.stop()
    marker = str(server.folder)
    assert eventually(lambda: not [row for row in processes._ps() if marker in row[3]])


async def test_a_path_too_long_for_a_socket_is_no_obstacle(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path / ("long" * 25)) as server:
        assert await ask(server.dsn, "SELECT 1") == 1
        before = server.dsn
        await server.restart()
        assert server.dsn == before
        assert await ask(server.dsn, "SELECT 1") == 1
        socket_folder = Path(str(await ask(server.dsn, "SHOW unix_socket_directories")))
        assert mode_of(socket_folder) == 0o700
    assert mode_of(socket_folder) is None


@pytest.fixture
def reachable_folder() -> Iterator[Path]:
    """Below the temporary folder itself: pytest's folders can be entered by their owner only."""
    folder = Path(tempfile.mkdtemp(prefix="dispatcher-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
async def test_root_without_user_namespaces_runs_it_as_nobody(
    reachable_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.embedded.binaries._can_unshare", lambda: False)
    nobody = pwd.getpwnam("nobody")
    assert postgres.choose_identity() == Identity(uid=nobody.pw_uid, gid=nobody.pw_gid)
    async with EmbeddedPostgres(reachable_folder) as server:
        assert await ask(server.dsn, "SELECT 1") == 1
        assert (server.folder / "data" / "PG_VERSION").stat().st_uid == nobody.pw_uid
        await server.kill()
        await server.start()
        assert await ask(server.dsn, "SELECT 1") == 1
