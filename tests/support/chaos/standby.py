"""A streaming standby of a running server, for tests that promote it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg

from dispatcher.embedded.binaries import choose_identity, find_binaries
from dispatcher.embedded.processes import WatchedProcess
from tests.support.proxy import place_of
from tests.support.waiting import until

START_S = 30.0
PORT = 5432
_QUIET = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}


class Server:
    """A PostgreSQL in a folder of its own, over its Unix socket: a copy of another one that follows it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: WatchedProcess | None = None

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@/postgres?host={self._folder}&port={PORT}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def follow(self, dsn: str) -> None:
        """Copy the server of `dsn`, start, and wait until every commit there is streamed here."""
        identity = choose_identity()
        self._folder.mkdir(parents=True)
        identity.own(self._folder)
        host, port = place_of(dsn)
        command = [str(find_binaries().folder / "pg_basebackup"), "-D", str(self._folder / "data"), "-h", host]
        command += ["-p", str(port), "-U", "postgres", "-X", "stream", "-c", "fast", "-R"]
        await asyncio.to_thread(
            subprocess.run, [*identity.prefix, *command], check=True, env=_QUIET, user=identity.uid, group=identity.gid,
            extra_groups=None if identity.uid is None else [], umask=0o077, capture_output=True, timeout=START_S,
        )  # fmt: skip
        self._start()
        await until(lambda: self._is_streaming(dsn), START_S)

    def _start(self) -> None:
        options = {"unix_socket_directories": str(self._folder), "listen_addresses": "", "port": str(PORT)}
        flags = [flag for name, value in options.items() for flag in ("-c", f"{name}={value}")]
        command = [find_binaries().postgres, "-D", str(self._folder / "data"), *flags]
        with (self._folder / "postgres.log").open("ab") as log:
            self._process = WatchedProcess(command, identity=choose_identity(), log=log, env=_QUIET)

    async def _is_streaming(self, primary: str) -> bool:
        return await ask(primary, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == 1

    async def promote(self) -> None:
        """Become a primary; returns once writes are taken."""
        assert await ask(self.dsn, "SELECT pg_promote(true, 30)")

    async def stop_following(self) -> None:
        """Take nothing more from the primary, which is not told why."""
        await ask(self.dsn, "ALTER SYSTEM SET primary_conninfo = ''")
        await ask(self.dsn, "SELECT pg_reload_conf()")
        await until(lambda: self._is_alone(), START_S)

    async def _is_alone(self) -> bool:
        return await ask(self.dsn, "SELECT count(*) FROM pg_stat_wal_receiver") == 0

    def kill(self) -> None:
        """SIGKILL, with all backends."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill_with_children()
            self._process = None


async def ask(dsn: str, sql: str) -> object:
    """One value, over a connection of its own."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return await connection.fetchval(sql, timeout=60)
    finally:
        connection.terminate()


@asynccontextmanager
async def chain_of_servers(folder: Path, count: int) -> AsyncIterator[list[Server]]:
    """So many servers, none of them started; all are killed at the end."""
    servers = [Server(folder / f"standby{number}") for number in range(count)]
    try:
        yield servers
    finally:
        for server in servers:
            server.kill()
