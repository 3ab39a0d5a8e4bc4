"""A TCP proxy that loses what the test tells it to lose: replies swallowed, connections cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

CHUNK_BYTES = 65536


class TcpProxy:
    """Forwards loopback connections to a server (TCP, or the unix socket of a PostgreSQL DSN)."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.swallow_replies = False
        """Replies are read from the server and thrown away."""
        self.refuse = False
        """New connections are closed at once."""
        self.delay_s = 0.0
        """Everything waits so long on its way, in either direction."""
        self.open_road = asyncio.Event()
        """Cleared, nothing passes in either direction and nobody is told: connections are half open."""
        self.open_road.set()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lead_to(self, host: str, port: int) -> None:
        """New connections go there."""
        self._host, self._port = host, port

    def cut(self) -> None:
        """Reset all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        for source, target, is_reply in ((reader, up_writer, False), (up_reader, writer, True)):
            task = asyncio.create_task(self._copy(source, target, is_reply=is_reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        return await asyncio.open_connection(self._host, self._port)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_reply: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(CHUNK_BYTES):
                if is_reply and self.swallow_replies:
                    continue
                await self.open_road.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                target.write(data)
                await target.drain()
        target.transport.abort()
        self._writers.discard(target)


def place_of(dsn: str) -> tuple[str, int]:
    """Host, or folder of the unix socket, and port of a PostgreSQL DSN."""
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    host = query.get("host", [parts.hostname or "127.0.0.1"])[0]
    return host, int(query.get("port", [str(parts.port or 5432)])[0])


@contextlib.asynccontextmanager
async def proxied(dsn: str) -> AsyncIterator[tuple[TcpProxy, str]]:
    """A proxy before the server of `dsn`, and the DSN that leads through it."""
    parts = urlsplit(dsn)
    proxy = TcpProxy(*place_of(dsn))
    await proxy.start()
    userinfo = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    try:
        yield proxy, f"postgresql://{userinfo}127.0.0.1:{proxy.port}{parts.path}"
    finally:
        await proxy.stop()
