"""The demo receiver: trusts only what a third party's Standard Webhooks library verified, and fails now and then."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from dispatcher.embedded.ledger import OrderLedger
from dispatcher.model import OrderingMode

FAILURE_SHARE = 0.02
"""Share of verified requests answered with 500, so that retries can be watched."""
BODY_BYTES_MAX = 16 * 1024 * 1024
SHUTDOWN_TIMEOUT_S = 1.0
KEEP_ALIVE_S = 75.0
HOOK_PATH = "/hooks/{endpoint}"


class DemoReceiver:
    """An HTTP server on loopback with one path per registered endpoint.

    A request is answered with 401 when its signature does not verify, with 500 by chance, else with 204; the ledger
    hears of each. `port` 0 means any free one. `monotonic` is the clock of the ledger's times.
    """

    def __init__(
        self,
        ledger: OrderLedger,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        failure_share: float = FAILURE_SHARE,
        chance: random.Random | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._host = host
        self._port = port
        self._failure_share = failure_share
        self._chance = chance or random.Random()  # noqa: S311 - which requests fail is no secret
        self._monotonic = monotonic
        self._verifiers: dict[str, Webhook] = {}
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port it listens on, once entered."""
        return self._port

    def url(self, endpoint: str) -> str:
        """Where to send this endpoint's webhooks."""
        return f"http://{self._host}:{self._port}{HOOK_PATH.format(endpoint=endpoint)}"

    def register(self, endpoint: str, secret: str, mode: OrderingMode = OrderingMode.ORDERED) -> None:
        """Accept webhooks for an endpoint, signed with `secret` (`whsec_…`). Registering again replaces the secret and
        keeps the endpoint's book."""
        self._verifiers[endpoint] = Webhook(secret)
        self._ledger.add_endpoint(endpoint, mode)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post(HOOK_PATH, self._receive)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S, keepalive_timeout=KEEP_ALIVE_S
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await site.start()
        except OSError:
            await self._runner.cleanup()
            raise
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _receive(self, request: web.Request) -> web.Response:
        endpoint = request.match_info["endpoint"]
        verifier = self._verifiers.get(endpoint)
        if verifier is None:
            return web.Response(status=404, text="no such endpoint\n")
        body = await request.read()
        event_id = request.headers.get("webhook-id", "")
        if not _is_genuine(verifier, body, dict(request.headers)):
            self._ledger.refused(event_id)
            return web.Response(status=401, text="the signature does not verify\n")
        accepted = self._chance.random() >= self._failure_share
        attempt = _attempt_number(request.headers.get("webhook-attempt", ""))
        self._ledger.received(endpoint, event_id, at_s=self._monotonic(), accepted=accepted, attempt=attempt)
        return web.Response(status=204) if accepted else web.Response(status=500, text="injected failure\n")


def _is_genuine(verifier: Webhook, body: bytes, headers: dict[str, str]) -> bool:
    try:
        verifier.verify(body, headers, json_parse=False)
    except (WebhookVerificationError, ValueError):  # the library lets malformed base64 and headers out as ValueError
        return False
    return True


def _attempt_number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 1
