"""A forward proxy that does what a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """What it was asked: the first line and the headers of each connection's first request."""

    port: int = 0
    asked: list[bytes] = field(default_factory=list)
    answer: bytes = b""
    """Instead of doing it."""
    is_silent: bool = False
    """It takes what it is asked and does nothing."""
    failing: dict[int, bytes] = field(default_factory=dict)
    """What it answers instead where that port is asked for; nothing, and then silence, where that is empty."""
    asking: set[asyncio.StreamReader] = field(default_factory=set)
    """Those that were asked for in silence, and the most of them at a time; see `waiting`."""
    waiting_max: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def waiting(self) -> int:
        """How many wait for an answer just now: who has gone away does not, even if its task has not yet run."""
        return sum(not reader.at_eof() for reader in self.asking)


@contextlib.asynccontextmanager
async def proxy() -> AsyncIterator[Proxy]:
    """A small forward proxy that knows CONNECT and nothing else."""
    state = Proxy()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            state.asked.append(head)
            method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
            assert method == "CONNECT"
            host, _, port = target.rpartition(":")
            answer = state.failing.get(int(port), state.answer)
            if state.is_silent or (not answer and int(port) in state.failing):
                state.asking.add(reader)
                state.waiting_max = max(state.waiting_max, state.waiting)
                try:
                    await reader.read()
                finally:
                    state.asking.discard(reader)
                return
            if answer:
                writer.write(answer)
                writer.close()
                return
            upstream, back = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_pump(reader, back), _pump(upstream, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
