"""Connections: one bounded pool, dedicated connections for writers and listeners, and one reading of errors.

Every statement of the package goes through `Database`, so that a database that is away looks the same everywhere: an
`UnavailableError`, and a mark on `Availability` that health is judged by.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import asyncpg
import orjson
from asyncpg.pool import PoolConnectionProxy

from dispatcher.errors import DatabaseBusyError, UnavailableError
from dispatcher.store.observation import TRANSACTION, Observation, operation_of

log = logging.getLogger(__name__)

Connection = asyncpg.Connection | PoolConnectionProxy
"""What a statement runs on: a pooled or a dedicated connection."""

AWAY_ERRORS: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a server killed in the middle of an answer can leave the client in such a state
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.DatabaseDroppedError,
    asyncpg.TooManyConnectionsError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidCachedStatementError,  # the schema was migrated under a prepared statement; the next try plans anew
)
"""Errors that say nothing about the statement: the same call may succeed later."""

BUSY_ERRORS = (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)
"""Those of a database that answers: another session was in the way, or the statement took too long."""
BUSY_RETRY_S = 0.5
CANCEL_WAIT_S = 1.0
"""Longest wait, at the end of a process, for the server's word on the statements that were cancelled. Twice part of
`config.STOP_SLACK_S`."""


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """How to connect. `pooled`: a transaction pooler stands between, so no prepared statement and no session state."""

    dsn: str
    password_file: str = ""
    """Read anew for each connection, so that a password may change while we run; stands for that of `dsn`."""
    pooled: bool = False
    one_tenant: bool | None = None
    """Whether each statement may be about one tenant only (`store.forms`); None asks for the extension `citus`."""
    pool_size_max: int = 8
    connect_timeout_s: float = 5.0
    statement_timeout_s: float = 30.0
    lock_timeout_s: float = 5.0
    idle_in_transaction_timeout_s: float = 10.0


class StoreConnection(asyncpg.Connection):
    """A connection that knows which form of the statements it takes."""

    one_tenant = False

    async def choose_form(self, asked: bool | None) -> None:  # noqa: FBT001 - a setting
        """As asked, or by what the database is."""
        self.one_tenant = await self.fetchval(HAS_CITUS) if asked is None else asked


PASSWORD_CHARACTERS_MAX = 4096
HAS_CITUS = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"


def is_one_tenant(connection: Connection) -> bool:
    """Whether each statement on it may be about one tenant only. No, on a connection not made by a `Database`."""
    return bool(getattr(connection, "one_tenant", False))


class Availability:
    """Since when the database has been away, by the monotonic clock; None while it answers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.away_since: float | None = None

    def answered(self) -> None:
        self.away_since = None

    def failed(self) -> None:
        if self.away_since is None:
            self.away_since = self._clock()

    @property
    def away_s(self) -> float:
        """Seconds the database has been away, 0.0 while it answers."""
        return 0.0 if self.away_since is None else self._clock() - self.away_since


class Database:
    """The pool and its rules. Use `Database.open(options)` as an async context manager."""

    def __init__(self, options: DatabaseOptions, pool: asyncpg.Pool, observation: Observation | None = None) -> None:
        self.options = options
        self._observation = observation
        self.availability = Availability()
        self.timeline = 0
        """On which our leases were acquired; 0 before the first, and where a database has no timelines."""
        self.is_replaced = False
        """Another timeline has been seen since: nothing may start on what is in memory, see `delivery.leases`."""
        self._pool = pool
        self._dedicated: weakref.WeakSet[asyncpg.Connection] = weakref.WeakSet()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, options: DatabaseOptions, observation: Observation | None = None) -> AsyncIterator[Database]:
        """Make the pool without waiting for the database: a service may start while it is away."""

        async def prepare(connection: Connection) -> None:
            await prepare_connection(connection, observation)
            # A proxy that hands everything on to a connection of the class asked for.
            await cast("StoreConnection", connection).choose_form(options.one_tenant)

        pool = asyncpg.create_pool(
            min_size=0,
            max_size=options.pool_size_max,
            init=prepare,
            reset=no_reset,
            **connect_arguments(options),
        )
        await pool
        database = cls(options, pool, observation)
        try:
            yield database
        finally:
            try:
                async with asyncio.timeout(options.connect_timeout_s):
                    await pool.close()
            except AWAY_ERRORS:
                database.terminate()

    def terminate(self) -> None:
        """Drop all connections without a farewell, for good: whoever waits for the server's word is told that it is
        away, and so is who asks from here on."""
        self._pool.terminate()
        for connection in list(self._dedicated):
            connection.terminate()

    async def ended(self, tasks: Collection[asyncio.Task[Any]]) -> None:
        """At the end of the process: wait for tasks that have been told to end, and `terminate` if they don't.

        A statement that is cancelled waits until the server has said so, and a transaction until it is rolled back. A
        server that is frozen, or out of reach without a word, never says it.
        """
        _, waiting = await asyncio.wait(tasks, timeout=CANCEL_WAIT_S)
        if waiting:
            names = sorted(task.get_name() for task in waiting)
            log.warning("the end does not wait for the database any longer", extra={"tasks": names})
            self.terminate()

    def is_on(self, timeline: int) -> bool:
        """Whether what was read or written on `timeline` (0: not known) goes with what is in memory."""
        if timeline and self.timeline not in (0, timeline):
            self.is_replaced = True
            return False
        return True

    def begin_on(self, timeline: int) -> None:
        """All that was known of another timeline has been dropped."""
        self.timeline, self.is_replaced = timeline, False

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """A pooled connection; a database that is away raises `UnavailableError`."""
        with self.away_as_unavailable():
            async with self._pool.acquire(timeout=self.options.connect_timeout_s) as connection:
                try:
                    yield connection
                except (asyncpg.InternalClientError, asyncpg.ReadOnlySQLTransactionError):
                    # Nobody is to get it again: lost track of, or to a replica, where a new one may find the primary.
                    connection.terminate()
                    raise
        self.availability.answered()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A READ COMMITTED transaction, said explicitly: the server's default may be another."""
        async with self.acquire() as connection:
            with self._span(TRANSACTION):
                async with connection.transaction(isolation="read_committed"):
                    yield connection

    async def fetch(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        async with self.acquire() as connection:
            with self._span(operation_of(sql)):
                return await connection.fetch(sql, *arguments)

    async def fetchrow(self, sql: str, *arguments: Any) -> asyncpg.Record | None:
        async with self.acquire() as connection:
            with self._span(operation_of(sql)):
                return await connection.fetchrow(sql, *arguments)

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        async with self.acquire() as connection:
            with self._span(operation_of(sql)):
                return await connection.fetchval(sql, *arguments)

    async def execute(self, sql: str, *arguments: Any) -> str:
        async with self.acquire() as connection:
            with self._span(operation_of(sql)):
                return await connection.execute(sql, *arguments)

    async def connect(self) -> asyncpg.Connection:
        """A dedicated connection outside the pool, for a writer or a listener. The caller closes it."""
        with self.away_as_unavailable():
            connection: StoreConnection = await asyncpg.connect(**connect_arguments(self.options))
            self._dedicated.add(connection)
            await prepare_connection(connection, self._observation)
            await connection.choose_form(self.options.one_tenant)
        self.availability.answered()
        return connection

    def _span(self, operation: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self._observation is None else self._observation.span(operation)

    @contextlib.contextmanager
    def away_as_unavailable(self) -> Iterator[None]:
        """Translate errors that say nothing about the statement: DatabaseBusyError where it answers, else
        UnavailableError, which also marks it as away.

        A task that is being cancelled stays so: the failure to end its statement in good order must not keep it.
        """
        cancels = _cancels()
        try:
            yield
        except AWAY_ERRORS as error:
            is_busy = isinstance(error, BUSY_ERRORS)
            if not is_busy:
                self.availability.failed()
            if _cancels() > cancels:
                raise asyncio.CancelledError from error
            if is_busy:
                raise DatabaseBusyError(
                    f"the database is busy ({type(error).__name__})", retry_after_s=BUSY_RETRY_S
                ) from error
            raise UnavailableError(f"the database does not answer ({type(error).__name__})") from error


def _cancels() -> int:
    """How often the running task has been told to end: by others, or by a bound that is around it."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def connect_arguments(options: DatabaseOptions) -> dict[str, Any]:
    """The keyword arguments of asyncpg.connect. A pooler refuses session settings: there the role carries them."""
    session = {
        "application_name": "dispatcher",
        "default_transaction_isolation": "read committed",
        "statement_timeout": f"{options.statement_timeout_s * 1000:.0f}",
        "lock_timeout": f"{options.lock_timeout_s * 1000:.0f}",
        "idle_in_transaction_session_timeout": f"{options.idle_in_transaction_timeout_s * 1000:.0f}",
        "jit": "off",
    }
    password = {"password": functools.partial(_password_in, options.password_file)} if options.password_file else {}
    return {
        "dsn": options.dsn,
        **password,
        "connection_class": StoreConnection,
        "timeout": options.connect_timeout_s,
        # A little over the server's own limit, so that the server's clear answer comes first.
        "command_timeout": options.statement_timeout_s + 1.0,
        "statement_cache_size": 0 if options.pooled else 256,
        "server_settings": {"application_name": "dispatcher"} if options.pooled else session,
    }


def _password_in(path: str) -> str:
    """A file's content without the line break at its end. Raises OSError, which is a database that is away."""
    with Path(path).open() as file:
        return file.read(PASSWORD_CHARACTERS_MAX).rstrip("\r\n")


async def prepare_connection(connection: Connection, observation: Observation | None = None) -> None:
    """Set the jsonb codec: Python values on our side, orjson in between."""
    if observation is not None:
        observation.watch(connection)
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=_encode_json, decoder=orjson.loads, format="text"
    )


async def no_reset(_connection: Connection) -> None:
    """No statement of ours leaves session state behind, so the pool's RESET round trip is saved."""


def _encode_json(value: Any) -> str:
    return orjson.dumps(value).decode()


def columns(rows: Sequence[Sequence[Any]], count: int) -> list[list[Any]]:
    """Turn rows into `count` columns for `unnest($1, $2, …)`; no rows give empty columns."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(count)]
