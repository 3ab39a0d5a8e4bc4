"""What differs between webhook servers: how an endpoint is made and an event is published. One small class each.

Each event goes to one endpoint, and its data arrives as the webhook's body as it is.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import grpc.aio

from tests.support.callers import Caller, event

CALL_TIMEOUT_S = 30.0
EVENT_TYPE = "bench.load"


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server listens and what it wants to be told: `project` is Convoy's, `topic` one of Outpost's."""

    address: str
    key: str = ""
    project: str = ""
    topic: str = EVENT_TYPE


class Peer(Protocol):
    """A webhook server, as far as a load needs one. What it refuses is a RuntimeError or a grpc.RpcError."""

    async def add_endpoint(self, number: int, url: str) -> None:
        """Make endpoint `number`."""

    async def publish(self, number: int, data: Mapping[str, Any]) -> None:
        """Publish one event to it; returns once the server has taken it."""


class Rest:
    """Calls with a bearer token and JSON both ways."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self.server = server
        self._session = session
        self._headers = {"authorization": f"Bearer {server.key}"}

    async def call(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        """The answer's JSON, None where it has none."""
        url = self.server.address.rstrip("/") + path
        async with self._session.request(method, url, json=body, headers=self._headers) as answer:
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.status} {(await answer.text())[:200]}")
            return await answer.json(content_type=None)


class Svix:
    """An application for each endpoint. POST /api/v1/app/{app}/msg/."""

    def __init__(self, rest: Rest) -> None:
        self._rest, self._run = rest, secrets.token_hex(4)

    async def add_endpoint(self, number: int, url: str) -> None:
        app = f"bench-{self._run}-{number}"
        await self._rest.call("POST", "/api/v1/app/", {"name": app, "uid": app})
        await self._rest.call("POST", f"/api/v1/app/{app}/endpoint/", {"url": url, "version": 1})

    async def publish(self, number: int, data: Mapping[str, Any]) -> None:
        app = f"bench-{self._run}-{number}"
        await self._rest.call("POST", f"/api/v1/app/{app}/msg/", {"eventType": EVENT_TYPE, "payload": data})


class Convoy:
    """An endpoint with a subscription each. POST /api/v1/projects/{project}/events."""

    def __init__(self, rest: Rest) -> None:
        self._rest, self._path = rest, f"/api/v1/projects/{rest.server.project}"
        self._ids: dict[int, str] = {}

    async def add_endpoint(self, number: int, url: str) -> None:
        made = await self._rest.call("POST", f"{self._path}/endpoints", {"name": f"bench-{number}", "url": url})
        self._ids[number] = made["data"]["uid"]
        body = {"name": f"bench-{number}", "endpoint_id": self._ids[number]}
        await self._rest.call("POST", f"{self._path}/subscriptions", body)

    async def publish(self, number: int, data: Mapping[str, Any]) -> None:
        body = {"endpoint_id": self._ids[number], "event_type": EVENT_TYPE, "data": data}
        await self._rest.call("POST", f"{self._path}/events", body)


class Outpost:
    """A tenant with one destination each. POST /api/v1/publish."""

    def __init__(self, rest: Rest) -> None:
        self._rest, self._run = rest, secrets.token_hex(4)

    async def add_endpoint(self, number: int, url: str) -> None:
        tenant = f"bench-{self._run}-{number}"
        await self._rest.call("PUT", f"/api/v1/tenants/{tenant}", {})
        body = {"type": "webhook", "topics": [self._rest.server.topic], "config": {"url": url}}
        await self._rest.call("POST", f"/api/v1/tenants/{tenant}/destinations", body)

    async def publish(self, number: int, data: Mapping[str, Any]) -> None:
        tenant = f"bench-{self._run}-{number}"
        body = {"tenant_id": tenant, "topic": self._rest.server.topic, "eligible_for_retry": True, "data": data}
        await self._rest.call("POST", "/api/v1/publish", body)


class Dispatcher:
    """A tenant of its own, an endpoint and an event type each, over gRPC without TLS."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._caller = Caller(channel, channel)
        self._tenant = f"bench-{secrets.token_hex(4)}"

    async def add_endpoint(self, number: int, url: str) -> None:
        if number == 0:
            await self._caller.tenant(self._tenant)
        await self._caller.endpoint(f"e{number}", url, tenant=self._tenant, event_types=[f"{EVENT_TYPE}{number}"])

    async def publish(self, number: int, data: Mapping[str, Any]) -> None:
        await self._caller.publish(event("", json.dumps(data).encode(), f"{EVENT_TYPE}{number}"), tenant=self._tenant)


@asynccontextmanager
async def _dispatcher(server: Server) -> AsyncIterator[Peer]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield Dispatcher(channel)


def _rest(kind: Callable[[Rest], Peer]) -> Callable[[Server], AbstractAsyncContextManager[Peer]]:
    @asynccontextmanager
    async def connect(server: Server) -> AsyncIterator[Peer]:
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            yield kind(Rest(server, session))

    return connect


CONNECT: Mapping[str, Callable[[Server], AbstractAsyncContextManager[Peer]]] = {
    "dispatcher": _dispatcher,
    "svix": _rest(Svix),
    "convoy": _rest(Convoy),
    "outpost": _rest(Outpost),
}
"""By the product's name."""
