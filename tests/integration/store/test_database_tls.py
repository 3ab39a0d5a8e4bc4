"""The way to the database: encrypted and checked where the URL says so, with the password of this very moment.

The server here has no TLS of its own (the embedded one is built without it), so a proxy ends it in front of it, as the
protocol has it: PostgreSQL documentation, "SSL Session Encryption".
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from dispatcher.errors import UnavailableError
from dispatcher.store.database import Database, DatabaseOptions
from tests.support.certificates import Authority
from tests.support.postgres import TestDatabase

SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


@contextlib.asynccontextmanager
async def tls_in_front(dsn: str, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    """The port of a proxy that ends TLS; without a context it says that there is none."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            first = await reader.readexactly(8)
            if first == SSL_REQUEST:
                writer.write(b"S" if tls else b"N")
                await writer.drain()
                first = b""
                if tls:
                    await writer.start_tls(tls)
            upstream, back = await _server_of(dsn)
            back.write(first)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, back))
                group.create_task(_pump(upstream, writer))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _server_of(dsn: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    if "host" in query:
        return await asyncio.open_unix_connection(f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}")
    return await asyncio.open_connection(parts.hostname, parts.port)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def server_context(folder: Path, authority: Authority, host: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*map(str, authority.issue(hosts=[host]).written(folder)))
    return context


def through(database: TestDatabase, port: int, query: str) -> DatabaseOptions:
    parts = urlsplit(database.dsn)
    user = parts.username or "postgres"
    return DatabaseOptions(
        f"postgresql://{user}@localhost:{port}{parts.path}?{query}", pool_size_max=2, connect_timeout_s=3.0
    )


async def test_verify_full_connects_to_the_server_of_that_name_and_root_only(
    database: TestDatabase, tmp_path: Path
) -> None:
    authority, root = Authority(), tmp_path / "root.crt"
    root.write_bytes(authority.root)
    verify = f"sslmode=verify-full&sslrootcert={root}"
    async with (
        tls_in_front(database.dsn, server_context(tmp_path, authority, "localhost")) as port,
        Database.open(through(database, port, verify)) as db,
    ):
        assert await db.fetchval("SELECT 1") == 1
    for made in (
        server_context(tmp_path, Authority(), "localhost"),
        server_context(tmp_path, authority, "other.example"),
        None,
    ):
        async with (
            tls_in_front(database.dsn, made) as port,
            Database.open(through(database, port, verify)) as db,
        ):
            with pytest.raises(UnavailableError):
                await db.fetchval("SELECT 1")


async def test_roots_may_be_named_beside_the_url_as_the_chart_does(
    database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, root = Authority(), tmp_path / "root.crt"
    monkeypatch.setenv("PGSSLROOTCERT", str(root))
    async with tls_in_front(database.dsn, server_context(tmp_path, authority, "localhost")) as port:
        root.write_bytes(Authority().root)
        for sslmode in ("verify-full", "require"):
            async with Database.open(through(database, port, f"sslmode={sslmode}")) as db:
                with pytest.raises(UnavailableError):
                    await db.fetchval("SELECT 1")
        root.write_bytes(authority.root)
        async with Database.open(through(database, port, "sslmode=verify-full")) as db:
            assert await db.fetchval("SELECT 1") == 1


async def test_the_password_is_read_anew_for_each_connection(
    database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test's server trusts everybody, so what is looked at is what each connection brings along."""
    path, used = tmp_path / "password", []
    path.write_text("first\n")
    connect = asyncpg.connect

    async def noting(**arguments: object) -> asyncpg.Connection:
        used.append(arguments["password"]())  # type: ignore[operator] # a callable, by the promise under test
        return await connect(**{**arguments, "password": "x"})

    monkeypatch.setattr(asyncpg, "connect", noting)
    options = DatabaseOptions(database.dsn, password_file=str(path), pool_size_max=1)
    async with Database.open(options) as db:
        for word in ("first", "second"):
            path.write_text(f"{word}\n")
            connection = await db.connect()
            connection.terminate()
        path.unlink()
        with pytest.raises(UnavailableError):
            await db.connect()
    assert used == ["first", "second"]
