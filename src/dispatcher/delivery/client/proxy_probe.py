"""Asks the proxy for a tunnel to a receiver that it reached before, to learn whether it works; nothing is sent there.

failed without a reason ──▶ in doubt ──▶ asked for one after the other of those it reached last ──▶ opened: it works
                                            └── not one of a few is: it is still in doubt
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from dispatcher.delivery.client.tunnels import Target, Tunnels
from dispatcher.security.egress_proxy import EgressProxy

TRIES_MAX = 3
"""Receivers that are asked for in one probe."""
_OPENED = (b"HTTP/1.1 200", b"HTTP/1.0 200")


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """`evidence_s`: so long a tunnel that was opened tells that the proxy works; longer than an endpoint waits for it.

    `target` is what the proxy always reaches, by the settings. Probes are `interval_s` apart at least, and each takes
    `timeout_s` at most.
    """

    evidence_s: float = 120.0
    interval_s: float = 1.0
    timeout_s: float = 3.0
    target: Target | None = None


class ProxyProbe:
    """One of a client. There is one probe at a time, whoever wants it: it tells of all that failed before."""

    def __init__(
        self,
        proxy: EgressProxy,
        tunnels: Tunnels,
        options: ProbeOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proxy = proxy
        self._tunnels = tunnels
        self._options = options
        self._clock = clock
        self._began_at = -options.interval_s
        self._task: asyncio.Task[None] | None = None

    def want(self, target: Target) -> None:
        """The proxy is in doubt for `target`; ignored where it is being asked anyhow."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._probe(target), name="proxy-probe")

    async def close(self) -> None:
        """End the probe under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _probe(self, target: Target) -> None:
        """Until one of a few is opened; what is not is asked for last the next time."""
        for other in self._tunnels.others(target)[:TRIES_MAX]:
            await asyncio.sleep(max(0.0, self._began_at + self._options.interval_s - self._clock()))
            self._began_at = self._clock()
            if await self._opens(other):
                self._tunnels.opened(other, self._clock())
                return
            self._tunnels.not_opened(other)

    async def _opens(self, other: Target) -> bool:
        try:
            async with asyncio.timeout(self._options.timeout_s):
                return await self._is_opened(other)
        except (OSError, EOFError, ValueError):  # a timeout is an OSError; ValueError: a line without an end
            return False

    async def _is_opened(self, target: Target) -> bool:
        url = self._proxy.url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        try:
            writer.write(self._head(target))
            await writer.drain()
            return (await reader.readline()).startswith(_OPENED)
        finally:
            writer.transport.abort()

    def _head(self, target: Target) -> bytes:
        lines = [f"CONNECT {target.authority} HTTP/1.1", f"Host: {target.authority}"]
        if self._proxy.auth is not None:
            lines.append(f"Proxy-Authorization: {self._proxy.auth.encode()}")
        return "\r\n".join([*lines, "", ""]).encode()
