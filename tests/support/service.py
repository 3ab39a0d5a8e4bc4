"""A node with its ports, in the test's own process: the API as callers see it, over a real channel."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from webhooks.v1 import (
    attempt_pb2,
    dead_letter_pb2_grpc,
    delivery_pb2,
    delivery_pb2_grpc,
    endpoint_pb2,
    endpoint_pb2_grpc,
    event_pb2,
    publisher_pb2,
    publisher_pb2_grpc,
    replay_pb2,
    replay_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
)

from dispatcher.api.server import ApiServer
from dispatcher.app import api_parts
from dispatcher.store.database import Database
from tests.support.api import channel_to
from tests.support.node import SIGNING_SECRET_TEXT, Node, running_node
from tests.support.waiting import until

NAME = "tenants/acme/endpoints/{}"


@dataclass
class Service:
    """A running node, and stubs on its port."""

    node: Node
    port: int
    channel: grpc.aio.Channel
    tenants: Any = field(init=False)
    endpoints: Any = field(init=False)
    publisher: Any = field(init=False)
    deliveries: Any = field(init=False)
    letters: Any = field(init=False)
    replays: Any = field(init=False)

    def __post_init__(self) -> None:
        self.tenants = tenant_pb2_grpc.TenantServiceStub(self.channel)
        self.endpoints = endpoint_pb2_grpc.EndpointServiceStub(self.channel)
        self.publisher = publisher_pb2_grpc.PublisherServiceStub(self.channel)
        self.deliveries = delivery_pb2_grpc.DeliveryServiceStub(self.channel)
        self.letters = dead_letter_pb2_grpc.DeadLetterServiceStub(self.channel)
        self.replays = replay_pb2_grpc.ReplayServiceStub(self.channel)

    @property
    def database(self) -> Database:
        return self.node.core.database

    async def tenant(self, **fields: Any) -> tenant_pb2.Tenant:
        """The tenant acme."""
        request = tenant_pb2.CreateTenantRequest(tenant_id="acme", tenant=tenant_pb2.Tenant(**fields))
        return await self.tenants.CreateTenant(request)

    async def endpoint(
        self,
        name: str,
        url: str,
        *,
        event_types: tuple[str, ...] = ("*",),
        fallbacks: tuple[str, ...] = (),
        **said: Any,
    ) -> endpoint_pb2.Endpoint:
        """An endpoint of acme; `said` are its delivery settings."""
        said.setdefault("ordering_mode", endpoint_pb2.ORDERING_MODE_ORDERED)
        endpoint = endpoint_pb2.Endpoint(
            http=endpoint_pb2.HttpTarget(url=url, fallback_urls=fallbacks),
            event_types=event_types,
            delivery_settings=endpoint_pb2.DeliverySettings(**said),
        )
        return await self.endpoints.CreateEndpoint(
            endpoint_pb2.CreateEndpointRequest(
                parent="tenants/acme", endpoint_id=name, endpoint=endpoint, signing_secret=SIGNING_SECRET_TEXT
            )
        )

    async def publish(self, *ids: str, type: str = "order.paid", key: str = "", data: bytes = b"{}") -> None:  # noqa: A002
        """Events of these ids, in one call."""
        events = [event_pb2.Event(id=event_id, type=type, ordering_key=key, data=data) for event_id in ids]
        await self.publisher.Publish(publisher_pb2.PublishRequest(parent="tenants/acme", events=events))

    async def status(self, name: str) -> delivery_pb2.EndpointStatus:
        return await self.deliveries.GetEndpointStatus(
            delivery_pb2.GetEndpointStatusRequest(name=f"{NAME.format(name)}/status")
        )

    async def get(self, name: str) -> endpoint_pb2.Endpoint:
        return await self.endpoints.GetEndpoint(endpoint_pb2.GetEndpointRequest(name=NAME.format(name)))

    async def attempts(self, name: str, seq: int | str = "-") -> list[Any]:
        """Attempts of a delivery in the order made, or of the whole endpoint."""
        parent = f"{NAME.format(name)}/deliveries/{seq}"
        answer = await self.deliveries.ListAttempts(delivery_pb2.ListAttemptsRequest(parent=parent, page_size=1000))
        return list(reversed(answer.attempts))

    async def until_attempts(self, name: str, count: int, seq: int | str = "-", timeout_s: float = 10.0) -> list[Any]:
        """Wait until so many attempts are on record."""

        async def are_there() -> bool:
            return len(await self.attempts(name, seq)) >= count

        await until(are_there, timeout_s)
        return await self.attempts(name, seq)

    async def until_delivered(self, name: str, seq: int, timeout_s: float = 10.0) -> list[Any]:
        """Wait until a success is on record; the attempts of the delivery in the order made."""

        async def is_there() -> bool:
            made = await self.attempts(name, seq)
            return bool(made) and made[-1].outcome == attempt_pb2.ATTEMPT_OUTCOME_SUCCEEDED

        await until(is_there, timeout_s)
        return await self.attempts(name, seq)

    async def skip(self, name: str, seq: int, reason: str = "INC-1") -> delivery_pb2.Delivery:
        request = delivery_pb2.SkipDeliveryRequest(name=f"{NAME.format(name)}/deliveries/{seq}", reason=reason)
        return await self.deliveries.SkipDelivery(request, timeout=10)

    async def retry(self, name: str, seq: int) -> delivery_pb2.Delivery:
        request = delivery_pb2.RetryDeliveryRequest(name=f"{NAME.format(name)}/deliveries/{seq}")
        return await self.deliveries.RetryDelivery(request, timeout=10)

    async def replay(self, name: str) -> replay_pb2.Replay:
        return await self.replays.GetReplay(replay_pb2.GetReplayRequest(name=f"tenants/acme/replays/{name}"))


@contextlib.asynccontextmanager
async def running_service(dsn: str, **variables: str) -> AsyncIterator[Service]:
    """A node on a migrated database with its API on a free port; `variables` as for `running_node`."""
    ports = {"grpc_listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0"}
    async with (
        running_node(dsn, **ports | variables) as node,
        ApiServer(node.core.settings, api_parts(node.core)) as api,
        channel_to(api.port) as channel,
    ):
        node.core.health.started()
        yield Service(node, api.port, channel)
