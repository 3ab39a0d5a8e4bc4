"""Asks the proxy for a tunnel to a receiver that it reached before, to learn whether it works; nothing is sent there.

failed without a reason ──▶ in doubt ──▶ asked for one after the other of those it has reached ──▶ opened: it works
                              │             └── not one of a few is: it is still in doubt
                              └── a webhook's own tunnel has told meanwhile: nothing is asked
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from dispatcher.delivery.client.tunnels import Target, Tunnels
from dispatcher.security.egress_proxy import EgressProxy

TRIES_MAX = 3
"""Receivers that are asked for after one failure."""
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
    """One of a client. There is one probe at a time, whoever wants it: it tells of all that failed before by the same
    way out. Of several ways that are in doubt each has its turn."""

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
        self._wanted: dict[Hashable, tuple[Target, int]] = {}
        """Of each way out that is in doubt the first that failed, and how many may be asked for; four at most."""
        self._task: asyncio.Task[None] | None = None

    def want(self, target: Target) -> None:
        """The proxy is in doubt for `target`; ignored where it is going to be asked anyhow."""
        self._wanted.setdefault(self._tunnels.way_of(target), (target, TRIES_MAX))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="proxy-probe")

    async def close(self) -> None:
        """End the probe under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._wanted:
            way = next(iter(self._wanted))
            target, tries = self._wanted.pop(way)
            if not await self._is_settled(target) and tries > 1:
                self._wanted.setdefault(way, (target, tries - 1))

    async def _is_settled(self, target: Target) -> bool:
        """One try. Whether there is nothing more to learn, or nobody to ask for."""
        await asyncio.sleep(max(0.0, self._began_at + self._options.interval_s - self._clock()))
        others = self._tunnels.others(target, self._clock())
        if not others or not self._tunnels.is_in_doubt(target):
            return True
        self._began_at = self._clock()
        is_opened = await self._opens(others[0])
        tell = self._tunnels.opened if is_opened else self._tunnels.not_opened
        tell(others[0], self._clock())
        return is_opened

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
