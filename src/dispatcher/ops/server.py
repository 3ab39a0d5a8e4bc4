"""An HTTP server for the kubelet and Prometheus: /livez, /readyz, /metrics. Reads, changes nothing."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from dispatcher.config.groups import split_address
from dispatcher.telemetry.health import Health

_NO_STORE = {"Cache-Control": "no-store"}
_REQUEST_BYTES_MAX = 1024
_STOP_TIMEOUT_S = 1.0


class OpsServer:
    """Serves while entered; `port` is the bound one, also where `listen` asked for port 0."""

    def __init__(self, listen: str, health: Health, registry: CollectorRegistry) -> None:
        self._host, self._port = split_address(listen)
        self._health = health
        self._registry = registry
        self._collecting = asyncio.Lock()  # one collection at a time: two scrapes would mix in the SDK's reader
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port that is bound; the one asked for while not yet serving."""
        addresses = self._runner.addresses if self._runner else []
        return int(addresses[0][1]) if addresses else self._port

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
            await web.TCPSite(self._runner, self._host, self._port).start()
        except BaseException:
            await self._runner.cleanup()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        """That this is answered says it all: the event loop turns. A lost database is no reason for a restart."""
        return web.Response(text="alive\n", headers=_NO_STORE)

    async def _readyz(self, _: web.Request) -> web.Response:
        problems = self._health.problems()
        if not problems:
            return web.Response(text="ready\n", headers=_NO_STORE)
        lines = [f"{problem.check}: {problem.text} (for {problem.age_s:.1f} s)" for problem in problems]
        return web.Response(status=503, text="\n".join(["not ready", *lines, ""]), headers=_NO_STORE)

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        async with self._collecting:
            body = await asyncio.to_thread(encode, self._registry)
        return web.Response(body=body, headers={"Content-Type": content_type, **_NO_STORE})
