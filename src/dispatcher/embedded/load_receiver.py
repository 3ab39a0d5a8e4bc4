"""The receiver of a load: answers 204 at once and notes what came, and how long it had been on its way."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web

BODY_BYTES_MAX = 1024 * 1024
SHUTDOWN_TIMEOUT_S = 1.0
RECEIPTS_MAX = 2_000_000
"""Webhooks that are kept, with their copies; some 300 bytes each."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """One webhook: the `number`-th event of its endpoint (from 0), when its publishing began and when it came, both by
    the monotonic clock in ns."""

    endpoint: int
    number: int
    sent_ns: int
    received_ns: int


class LoadReceiver:
    """POST /e/{endpoint} takes a JSON object with `number` and `sent_ns`, the monotonic clock of this machine.

    GET /count says how many different events have come. Use it as an async context manager, which raises OSError where
    it can't listen; `port` 0 means any. Beyond RECEIPTS_MAX it answers 503.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._host, self._port = host, port
        self._seen: set[tuple[int, int]] = set()
        self.receipts: list[Receipt] = []
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/e/{endpoint:[0-9]+}", self._take)
        app.router.add_get("/count", self._count)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)

    @property
    def port(self) -> int:
        """Where it listens, once it does."""
        return int(self._runner.addresses[0][1])

    @property
    def distinct(self) -> int:
        """Different events so far."""
        return len(self._seen)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError:
            await self._runner.cleanup()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        now_ns = time.monotonic_ns()
        try:
            data = json.loads(await request.read())
            endpoint = int(request.match_info["endpoint"])
            receipt = Receipt(endpoint, int(data["number"]), int(data["sent_ns"]), now_ns)
        except (ValueError, TypeError, KeyError) as error:
            raise web.HTTPBadRequest(text="not an event of this load") from error
        if len(self.receipts) >= RECEIPTS_MAX:
            raise web.HTTPServiceUnavailable(text="no more is kept")
        self._seen.add((receipt.endpoint, receipt.number))
        self.receipts.append(receipt)
        return web.Response(status=204)

    async def _count(self, _: web.Request) -> web.Response:
        return web.json_response(self.distinct)
