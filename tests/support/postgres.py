"""Databases for tests: one server per pytest worker (or the one of DISPATCHER_TEST_DSN), one database per test.

A database is copied from a template that was migrated once per worker. The server does without fsync; tests of
crashes use `crashable_postgres`, which is as durable as `dispatcher dev`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import asyncpg

from dispatcher.embedded.postgres import PostgresServer
from dispatcher.store.database import DatabaseOptions, prepare_connection
from dispatcher.store.migrate import migrate

DSN_VARIABLE = "DISPATCHER_TEST_DSN"
ONE_TENANT_VARIABLE = "DISPATCHER_TEST_ONE_TENANT"
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "200",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "1h",
}
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class TestDatabase:
    """A database of one test: `dsn` for processes, `options` for the store, `connect()` for looking inside."""

    __test__ = False
    dsn: str

    @property
    def options(self) -> DatabaseOptions:
        return DatabaseOptions(self.dsn)

    async def connect(self) -> asyncpg.Connection:
        """A new connection, with the codecs of the store; the caller closes it."""
        connection = await asyncpg.connect(self.dsn, timeout=CONNECT_TIMEOUT_S)
        await prepare_connection(connection)
        return connection

    @asynccontextmanager
    async def holding(self, statement: str, *arguments: object) -> AsyncIterator[None]:
        """Meanwhile somebody holds the locks that the statement takes."""
        holder = await self.connect()
        try:
            async with holder.transaction():
                await holder.execute(statement, *arguments)
                yield
        finally:
            await holder.close()


class Cluster:
    """A running server in which databases are made and dropped. `dsn` is that of a superuser or database creator."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._prefix = f"test_{uuid.uuid4().hex[:8]}"
        self._count = 0
        self._template: str | None = None

    def dsn_of(self, database: str) -> str:
        """The same server, another database."""
        parts = urlsplit(self.dsn)  # by hand: urlunsplit loses the empty host of postgresql://user@/db?host=…
        query = f"?{parts.query}" if parts.query else ""
        return f"{parts.scheme}://{parts.netloc}/{quote(database)}{query}"

    @asynccontextmanager
    async def empty_database(self) -> AsyncIterator[TestDatabase]:
        """A database without any table, dropped at the end with all its connections."""
        async with self._database("template0") as database:
            yield database

    @asynccontextmanager
    async def migrated_database(self) -> AsyncIterator[TestDatabase]:
        """A database with this release's schema and nothing in it."""
        if self._template is None:
            self._template = await self._make_template()
        async with self._database(self._template) as database:
            yield database

    async def drop_template(self) -> None:
        if self._template is not None:
            await self._execute(f"DROP DATABASE IF EXISTS {self._template} WITH (FORCE)")
            self._template = None

    async def _make_template(self) -> str:
        name = f"{self._prefix}_template"
        await self._execute(f"CREATE DATABASE {name} TEMPLATE template0")
        await migrate(DatabaseOptions(self.dsn_of(name)))
        return name

    @asynccontextmanager
    async def _database(self, template: str) -> AsyncIterator[TestDatabase]:
        self._count += 1
        name = f"{self._prefix}_{self._count}"
        await self._execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield TestDatabase(self.dsn_of(name))
        finally:
            await self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.dsn, timeout=CONNECT_TIMEOUT_S)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """The cluster of DISPATCHER_TEST_DSN, or one of our own in `folder`."""
    with contextlib.ExitStack() as stack:
        dsn = os.environ.get(DSN_VARIABLE)
        if not dsn:
            server = PostgresServer(folder, settings=SETTINGS)
            stack.callback(server.stop)
            server.start()
            dsn = server.dsn
        cluster = Cluster(dsn)
        yield cluster
        if os.environ.get(DSN_VARIABLE):
            asyncio.run(cluster.drop_template())


def make_pristine(folder: Path) -> None:
    """Leave a stopped server with a migrated database `postgres` in `folder`."""
    server = PostgresServer(folder, settings=SETTINGS)
    server.start()
    try:
        asyncio.run(migrate(DatabaseOptions(server.dsn)))
    finally:
        server.stop()
