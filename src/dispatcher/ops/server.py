"""An HTTP server for the kubelet and Prometheus: /livez, /readyz, /metrics. Reads, changes nothing."""

from __future__ import annotations

import asyncio
import base64
import copy
import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from uuid import UUID

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from dispatcher.config.groups import UNIX_PREFIX, CallerSettings, split_address
from dispatcher.errors import UnavailableError
from dispatcher.model import EndpointKey
from dispatcher.telemetry.health import Health

TENANT_LABEL = "dispatcher_tenant"
_NO_STORE = {"Cache-Control": "no-store"}
_REQUEST_BYTES_MAX = 1024
_STOP_TIMEOUT_S = 1.0


KEYS_FRESH_S = 60
"""So long whoever reads public keys may keep them; a rotation's overlap should exceed it by far."""
KEYS_PATH = "/.well-known/webhook-keys/{tenant}/{endpoint}"

PublicKeys = Callable[[EndpointKey], Awaitable[Mapping[str, bytes]]]
"""The public keys of an endpoint by id. Raises UnavailableError."""


class OpsPages(Protocol):
    """What is served, beside the fact that it is."""

    async def public_keys(self, key: EndpointKey) -> tuple[int, bytes]:
        """HTTP status and a JWKS (RFC 7517) of the keys that an endpoint's webhooks are verified with."""

    async def readiness(self) -> tuple[bool, str]:
        """Whether traffic should come here, and why, line by line."""

    async def metrics(self, accept: str, *, with_tenants: bool) -> tuple[bytes, str]:
        """All metrics in the form that an Accept header asks for, and their content type; those that name a tenant only
        where asked for."""


class OwnPages:
    """Those of one process."""

    def __init__(self, health: Health, registry: CollectorRegistry, keys: PublicKeys | None = None) -> None:
        """`keys`: None where public keys are not published."""
        self._keys = keys
        self._health = health
        self._registry = registry
        self._collecting = asyncio.Lock()  # one collection at a time: two scrapes would mix in the SDK's reader

    async def public_keys(self, key: EndpointKey) -> tuple[int, bytes]:
        if self._keys is None:
            return 404, b"{}"
        try:
            found = await self._keys(key)
        except UnavailableError:
            return 503, b"{}"
        return (200, jwks(found)) if found else (404, b"{}")

    async def readiness(self) -> tuple[bool, str]:
        problems = self._health.problems()
        if not problems:
            return True, "ready\n"
        lines = [f"{problem.check}: {problem.text} (for {problem.age_s:.1f} s)" for problem in problems]
        return False, "\n".join(["not ready", *lines, ""])

    async def metrics(self, accept: str, *, with_tenants: bool) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(accept)
        async with self._collecting:
            return await asyncio.to_thread(
                encode, registry_for(self._registry, with_tenants=with_tenants)
            ), content_type


def jwks(keys: Mapping[str, bytes]) -> bytes:
    """Ed25519 keys as RFC 8037 section 2 has them."""
    entries = [
        {
            "kty": "OKP",
            "crv": "Ed25519",
            "use": "sig",
            "alg": "EdDSA",
            "kid": key_id,
            "x": base64.urlsafe_b64encode(public).rstrip(b"=").decode(),
        }
        for key_id, public in keys.items()
    ]
    return orjson.dumps({"keys": entries})


class _WithoutTenants(Collector):
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def describe(self) -> Iterable[Metric]:
        return []  # collected once: nothing to check for names that come twice

    def collect(self) -> Iterable[Metric]:
        for family in self._registry.collect():
            kept = [sample for sample in family.samples if TENANT_LABEL not in sample.labels]
            if len(kept) < len(family.samples):
                family = copy.copy(family)  # noqa: PLW2901 - the registry's own stays as it is
                family.samples = kept
            yield family


def registry_for(registry: CollectorRegistry, *, with_tenants: bool) -> CollectorRegistry:
    """The same, or without the series that name a tenant."""
    if with_tenants:
        return registry
    reduced = CollectorRegistry()
    reduced.register(_WithoutTenants(registry))
    return reduced


class TenantMetrics:
    """Who may see the metrics of single tenants: whoever has the token, or everybody where nothing is guarded."""

    def __init__(self, token: str | None, *, is_open: bool) -> None:
        self._token = None if token is None else f"Bearer {token}".encode()
        self._is_open = is_open and token is None

    def are_shown_to(self, authorization: str) -> bool:
        """By a request's Authorization header, in constant time."""
        return self._is_open or (
            self._token is not None and hmac.compare_digest(authorization.encode(errors="replace"), self._token)
        )


EVERYBODY = TenantMetrics(None, is_open=True)


def tenant_metrics(settings: CallerSettings) -> TenantMetrics:
    """As the settings have it."""
    token = None if settings.ops_token is None else settings.ops_token.get_secret_value()
    return TenantMetrics(token, is_open=settings.auth_mode in (None, "none"))


class OpsServer:
    """Serves while entered. `listen` is host:port or unix:path; `port` is the bound one, 0 for a path."""

    def __init__(self, listen: str, pages: OpsPages, tenant_metrics: TenantMetrics = EVERYBODY) -> None:
        self._tenant_metrics = tenant_metrics
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
                web.get(KEYS_PATH, self._public_keys),
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

    async def _public_keys(self, request: web.Request) -> web.Response:
        try:
            key = EndpointKey(UUID(request.match_info["tenant"]), UUID(request.match_info["endpoint"]))
        except ValueError:
            return web.Response(status=404, body=b"{}", headers=_NO_STORE)
        status, body = await self._pages.public_keys(key)
        kept = {"Cache-Control": f"max-age={KEYS_FRESH_S}"} if status == 200 else _NO_STORE
        return web.Response(status=status, body=body, headers={"Content-Type": "application/jwk-set+json", **kept})

    async def _metrics(self, request: web.Request) -> web.Response:
        with_tenants = self._tenant_metrics.are_shown_to(request.headers.get("Authorization", ""))
        body, content_type = await self._pages.metrics(request.headers.get("Accept", ""), with_tenants=with_tenants)
        return web.Response(body=body, headers={"Content-Type": content_type, **_NO_STORE})
