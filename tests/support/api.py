"""A served API on a real database, called over real channels, with fakes only where delivery would be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2_grpc
from webhooks.admin.v1 import admin_pb2_grpc
from webhooks.v1 import (
    delivery_pb2_grpc,
    endpoint_pb2,
    endpoint_pb2_grpc,
    event_pb2,
    event_type_pb2_grpc,
    publisher_pb2,
    publisher_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
)

from dispatcher.api.errors import DOMAIN, STATUS_BYTES_MAX, carried_by, code_in
from dispatcher.api.ports import ServiceStatus
from dispatcher.api.server import ApiParts, ApiServer
from dispatcher.config import Settings
from dispatcher.model import EndpointKey, Instance, Outcome, ProbeResult
from dispatcher.routing.cache import SubscriptionCache
from dispatcher.routing.publisher import Publisher
from dispatcher.security.access import Access
from dispatcher.security.egress import EgressPolicy
from dispatcher.security.secrets import Keyring
from dispatcher.store.audit import AuditTable
from dispatcher.store.database import Database, DatabaseOptions
from dispatcher.store.group_commit import GroupCommit, GroupCommitLimits
from dispatcher.store.handoff import NoHandOff
from dispatcher.telemetry import Health, Instruments, Tracing

KEYRING = Keyring([("test", b"k" * 32)])
STATUS = ServiceStatus(UUID(int=7), "0.1.0", datetime(2030, 1, 1, tzinfo=UTC), (3, 1), 5, 0.25, draining=False)
TIMEOUT_S = 20.0

M = TypeVar("M", bound=Message)


class FakeProber:
    """Answers with `result`, and remembers whom it was asked to ping."""

    def __init__(self) -> None:
        self.asked: list[EndpointKey] = []
        self.result = ProbeResult("ping-1", Outcome.HTTP_ERROR, 503, 0.125, b"busy\x00", "answered 503")

    async def ping(self, key: EndpointKey) -> ProbeResult:
        self.asked.append(key)
        return self.result


class FixedControl:
    """An instance that hands over one of its two partitions at once, and the other when `last_drained` is set."""

    def __init__(self) -> None:
        self.drains = 0
        self.last_drained = asyncio.Event()

    def status(self) -> ServiceStatus:
        return replace(STATUS, draining=self.drains > 0)

    def instance(self) -> Instance:
        left = 0 if self.last_drained.is_set() else 1 if self.drains else 2
        return Instance(
            STATUS.instance_id, "host:1", "0.1.0", STATUS.start_time, STATUS.start_time, self.drains > 0, left, 5, 9
        )

    def drain(self) -> None:
        self.drains += 1

    async def drained(self) -> None:
        await self.last_drained.wait()


@dataclass
class Api:
    """A running server, stubs on its ports, and its parts to look into."""

    server: ApiServer
    database: Database
    commits: GroupCommit
    health: Health
    instruments: Instruments
    prober: FakeProber
    control: FixedControl
    changed: list[EndpointKey]
    channel: grpc.aio.Channel
    admin_channel: grpc.aio.Channel
    writers: asyncio.Task[None]
    publisher: Any = field(init=False)
    tenants: Any = field(init=False)
    event_types: Any = field(init=False)
    endpoints: Any = field(init=False)
    deliveries: Any = field(init=False)
    admin: Any = field(init=False)

    def __post_init__(self) -> None:
        self.publisher = publisher_pb2_grpc.PublisherServiceStub(self.channel)
        self.tenants = tenant_pb2_grpc.TenantServiceStub(self.channel)
        self.event_types = event_type_pb2_grpc.EventTypeServiceStub(self.channel)
        self.endpoints = endpoint_pb2_grpc.EndpointServiceStub(self.channel)
        self.deliveries = delivery_pb2_grpc.DeliveryServiceStub(self.channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self.admin_channel)

    @property
    def health_stub(self) -> Any:
        return health_pb2_grpc.HealthStub(self.channel)

    async def tenant(self, name: str = "acme", **fields: Any) -> tenant_pb2.Tenant:
        """Create a tenant."""
        request = tenant_pb2.CreateTenantRequest(tenant_id=name, tenant=tenant_pb2.Tenant(**fields))
        return await self.tenants.CreateTenant(request)

    async def endpoint(
        self, name: str = "billing", *, tenant: str = "acme", event_types: Iterable[str] = ("*",)
    ) -> endpoint_pb2.Endpoint:
        """Create an endpoint."""
        return await self.endpoints.CreateEndpoint(create_endpoint(name, tenant=tenant, event_types=event_types))

    async def publish(self, *events: event_pb2.Event, tenant: str = "acme", **options: Any) -> Any:
        request = publisher_pb2.PublishRequest(parent=f"tenants/{tenant}", events=events)
        return await self.publisher.Publish(request, **options)

    async def count(self, table: str) -> int:
        """Rows of a table."""
        return await self.database.fetchval(f"SELECT count(*) FROM {table}")


def create_endpoint(
    name: str = "billing", *, tenant: str = "acme", event_types: Iterable[str] = ("*",), **fields: Any
) -> endpoint_pb2.CreateEndpointRequest:
    """A valid request; keyword arguments add fields of the endpoint."""
    http = fields.pop("http", endpoint_pb2.HttpTarget(url="https://receiver.example/hook"))
    endpoint = endpoint_pb2.Endpoint(http=http, event_types=event_types, **fields)
    return endpoint_pb2.CreateEndpointRequest(parent=f"tenants/{tenant}", endpoint_id=name, endpoint=endpoint)


def event(id: str = "", data: bytes = b"{}", type: str = "order.paid", **fields: Any) -> event_pb2.Event:  # noqa: A002
    return event_pb2.Event(id=id, type=type, data=data, **fields)


@asynccontextmanager
async def serving(
    options: DatabaseOptions,
    *,
    limits: GroupCommitLimits | None = None,
    writing: bool = True,
    tracing: Tracing | None = None,
    access: Access | None = None,
    **settings: Any,
) -> AsyncIterator[Api]:
    """Serve on free ports of the loopback; `writing` False leaves the queue of the group commit unserved."""
    defaults = {"grpc_listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", "grpc_drain_s": 5.0}
    values = Settings(**{**defaults, **settings})
    instruments, health, prober, changed = Instruments.silent(), Health(database_away_s=0.2), FakeProber(), []
    control = FixedControl()
    async with Database.open(options) as database:
        commits = GroupCommit(database, limits or GroupCommitLimits(), NoHandOff())
        health.follow_database(lambda: database.availability.away_s)
        health.started()
        parts = ApiParts(
            database=database,
            publisher=Publisher(SubscriptionCache.over(database), commits, rows_max=values.publish_rows_max),
            keyring=KEYRING,
            egress=EgressPolicy(),
            prober=prober,
            control=control,
            health=health,
            instruments=instruments,
            tracing=tracing or silent_tracing(),
            on_endpoint_changed=changed.append,
            access=access or Access(),
            trail=AuditTable(database),
        )
        writers = asyncio.create_task(commits.run() if writing else asyncio.Event().wait())
        try:
            async with (
                ApiServer(values, parts) as server,
                channel_to(server.port) as channel,
                channel_to(server.admin_port) as admin_channel,
            ):
                yield Api(
                    server,
                    database,
                    commits,
                    health,
                    instruments,
                    prober,
                    control,
                    changed,
                    channel,
                    admin_channel,
                    writers,
                )
        finally:
            writers.cancel()
            with suppress(asyncio.CancelledError):
                await writers


def silent_tracing() -> Tracing:
    from opentelemetry.trace import NoOpTracer

    return Tracing(NoOpTracer())


def channel_to(port: int) -> grpc.aio.Channel:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)


class Refusal:
    """An error of a call, its details decoded: ErrorInfo is checked to be there and all to fit into 4 kB."""

    def __init__(self, code: grpc.StatusCode, status: status_pb2.Status) -> None:
        assert status.code == code.value[0]
        assert status.ByteSize() <= STATUS_BYTES_MAX
        self.code = code
        self.message = status.message
        self.status = status
        info = self.detail(error_details_pb2.ErrorInfo)
        assert info.domain == DOMAIN
        self.reason = info.reason
        self.metadata = dict(info.metadata)

    def detail(self, kind: type[M]) -> M:
        """The detail of this kind; a test that asks for one that is not there fails."""
        for packed in self.status.details:
            message = kind()
            if packed.Unpack(message):
                return message
        raise AssertionError(f"no {kind.__name__} in {self.status}")

    @property
    def fields(self) -> list[str]:
        """The bad fields."""
        return [violation.field for violation in self.detail(error_details_pb2.BadRequest).field_violations]


async def refused(call: Any) -> Refusal:
    """Await a call that must fail with one of our errors."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, TIMEOUT_S)
    return Refusal(caught.value.code(), carried_by(caught.value))


async def code_of(call: Any) -> grpc.StatusCode | None:
    """The code that a call fails with, None where it does not."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


def refusal_in(status: status_pb2.Status) -> Refusal:
    """The error in an answer of PublishStream."""
    return Refusal(code_in(status), status)
