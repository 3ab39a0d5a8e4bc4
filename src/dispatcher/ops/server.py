"""An HTTP server for the kubelet and Prometheus: /livez, /readyz, /metrics. Reads, changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from dispatcher.config.groups import UNIX_PREFIX, split_address
from dispatcher.telemetry.health import Health

_NO_STORE = {"Cache-Control": "no-store"}
_REQUEST_BYTES_MAX = 1024
_STOP_TIMEOUT_S = 1.0


class OpsPages(Protocol):
    """What is served, beside the fact that it is."""

    async def readiness(self) -> tuple[bool, str]:
        """Whether traffic should come here, and why, line by line."""

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the form that an Accept header asks for, and their content type."""


class OwnPages:
    """Those of one process."""

    def __init__(self, health: Health, registry: CollectorRegistry) -> None:
        self._health = health
        self._registry = registry
        self._collecting = asyncio.Lock()  # one collection at a time: two scrapes would mix in the SDK's reader

    async def readiness(self) -> tuple[bool, str]:
        problems = self._health.problems()
        if not problems:
            return True, "ready\n"
        lines = [f"{problem.check}: {problem.text} (for {problem.age_s:.1f} s)" for problem in problems]
        return False, "\n".join(["not ready", *lines, ""])

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(accept)
        async with self._collecting:
            return await asyncio.to_thread(encode, self._registry), content_type


class OpsServer:
    """Serves while entered. `listen` is host:port or unix:path; `port` is the bound one, 0 for a path."""

    def __init__(self, listen: str, pages: OpsPages) -> None:
        self._listen = listen
        self._pages = pages
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port that is bound; 0 while not yet serving."""
        addresses = self._runner.addresses if self._runner else []
        return int(addresses[0][1]) if addresses and not self._listen.startswith(UNIX_PREFIX) else 0

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=_REQUEST_BYTES_MAX)
        app.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_STOP_TIMEOUT_S)
        await self._runner.setup()
        try:
            await self._site(self._runner).start()
        except BaseException:
            await self._runner.cleanup()
            raise
        return self

    def _site(self, runner: web.AppRunner) -> web.BaseSite:
        if self._listen.startswith(UNIX_PREFIX):
            return web.UnixSite(runner, Path(self._listen.removeprefix(UNIX_PREFIX)))
        return web.TCPSite(runner, *split_address(self._listen))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        """That this is answered says it all: the event loop turns. A lost database is no reason for a restart."""
        return web.Response(text="alive\n", headers=_NO_STORE)

    async def _readyz(self, _: web.Request) -> web.Response:
        is_ready, text = await self._pages.readiness()
        return web.Response(status=200 if is_ready else 503, text=text, headers=_NO_STORE)

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = await self._pages.metrics(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type, **_NO_STORE})
