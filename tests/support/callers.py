"""Callers of served processes: stubs over real channels, and publishers that retry as a careful client does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from webhooks.admin.v1 import admin_pb2, admin_pb2_grpc
from webhooks.v1 import (
    delivery_pb2,
    delivery_pb2_grpc,
    endpoint_pb2,
    endpoint_pb2_grpc,
    event_pb2,
    publisher_pb2,
    publisher_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
)

from dispatcher.api.errors import carried_by
from tests.support.node import SIGNING_SECRET_TEXT
from tests.support.process import Served
from tests.support.tasks import repeating

CALL_TIMEOUT_S = 10.0
RETRY_DELAY_S = 0.05
RETRIES_MAX = 400
WAIT_S = 60.0
"""For whole streams through whole processes on a busy machine; nothing here takes a tenth of it by itself."""
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


class Caller:
    """Calls one process. What it is not told, it defaults: tenant `acme`, the signing key of SIGNING_SECRET."""

    def __init__(self, channel: grpc.aio.Channel, admin_channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.publisher: Any = publisher_pb2_grpc.PublisherServiceStub(channel)
        self.tenants: Any = tenant_pb2_grpc.TenantServiceStub(channel)
        self.endpoints: Any = endpoint_pb2_grpc.EndpointServiceStub(channel)
        self.deliveries: Any = delivery_pb2_grpc.DeliveryServiceStub(channel)
        self.admin: Any = admin_pb2_grpc.AdminServiceStub(admin_channel)

    async def tenant(self, name: str = "acme") -> None:
        """Create a tenant."""
        request = tenant_pb2.CreateTenantRequest(tenant_id=name, tenant=tenant_pb2.Tenant())
        await self.tenants.CreateTenant(request, timeout=CALL_TIMEOUT_S)

    async def endpoint(
        self,
        name: str,
        url: str,
        *,
        tenant: str = "acme",
        event_types: Iterable[str] = ("*",),
        signing_secret: str = SIGNING_SECRET_TEXT,
        signing_algorithm: endpoint_pb2.SigningAlgorithm.ValueType = endpoint_pb2.SIGNING_ALGORITHM_UNSPECIFIED,
        **delivery: Any,
    ) -> endpoint_pb2.Endpoint:
        """Create an endpoint; `delivery` are fields of DeliverySettings."""
        endpoint = endpoint_pb2.Endpoint(
            http=endpoint_pb2.HttpTarget(url=url),
            event_types=event_types,
            delivery_settings=endpoint_pb2.DeliverySettings(**delivery),
        )
        request = endpoint_pb2.CreateEndpointRequest(
            parent=f"tenants/{tenant}",
            endpoint_id=name,
            endpoint=endpoint,
            signing_secret=signing_secret,
            signing_algorithm=signing_algorithm,
        )
        return await self.endpoints.CreateEndpoint(request, timeout=CALL_TIMEOUT_S)

    async def update(self, name: str, *mask: str, tenant: str = "acme", **fields: Any) -> endpoint_pb2.Endpoint:
        """Change the fields of an endpoint that `mask` names."""
        endpoint = endpoint_pb2.Endpoint(name=f"tenants/{tenant}/endpoints/{name}", **fields)
        request = endpoint_pb2.UpdateEndpointRequest(endpoint=endpoint, update_mask=FieldMask(paths=mask))
        return await self.endpoints.UpdateEndpoint(request, timeout=CALL_TIMEOUT_S)

    async def publish(self, *events: event_pb2.Event, tenant: str = "acme", **options: Any) -> Sequence[Any]:
        """One Publish; its results."""
        request = publisher_pb2.PublishRequest(parent=f"tenants/{tenant}", events=events)
        response = await self.publisher.Publish(request, timeout=CALL_TIMEOUT_S, **options)
        return response.results

    async def status(self, endpoint: str, *, tenant: str = "acme") -> delivery_pb2.EndpointStatus:
        """GetEndpointStatus."""
        request = delivery_pb2.GetEndpointStatusRequest(name=f"tenants/{tenant}/endpoints/{endpoint}/status")
        return await self.deliveries.GetEndpointStatus(request, timeout=CALL_TIMEOUT_S)

    async def all_deliveries(self, endpoint: str, *, tenant: str = "acme") -> Sequence[Any]:
        """ListDeliveries, the first 1,000."""
        request = delivery_pb2.ListDeliveriesRequest(parent=f"tenants/{tenant}/endpoints/{endpoint}", page_size=1000)
        return (await self.deliveries.ListDeliveries(request, timeout=CALL_TIMEOUT_S)).deliveries

    async def owners(self) -> dict[int, str]:
        """Who owns each partition, `instances/{instance}`; empty where nobody does."""
        answer = await self.admin.ListLeases(admin_pb2.ListLeasesRequest(), timeout=CALL_TIMEOUT_S)
        return {lease.partition: lease.owner for lease in answer.leases}


@contextlib.asynccontextmanager
async def calling(*served: Served) -> AsyncIterator[tuple[Caller, ...]]:
    """A caller of each process. Channels outlive a restart of the process on its port."""
    async with contextlib.AsyncExitStack() as stack:
        callers = []
        for each in served:
            ports = (each.grpc_port, each.admin_port)
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS))
                for port in ports
            ]
            callers.append(Caller(*channels))
        yield tuple(callers)


def event(id: str, data: bytes = b"{}", type: str = "order.paid", **fields: Any) -> event_pb2.Event:  # noqa: A002
    return event_pb2.Event(id=id, type=type, data=data, **fields)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason in the ErrorInfo of one of our errors; empty for one of gRPC's own (nobody listens, a reset)."""
    for detail in carried_by(error).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return ""


AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""The second is grpc's own word for a call that arrives in the very instant in which a server stops."""
AGAIN_IN_ANY_TROUBLE = (*AGAIN, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
"""The former when the database is out of something, the latter when a process is frozen."""


@dataclass(slots=True)
class SteadyPublisher:
    """Publishes events `{name}-0`, `{name}-1`, … one batch after the other, each retried under the same ids, through
    the next caller, until it is acknowledged. Only `again` is worth a retry; anything else fails the test.
    """

    name: str
    callers: Sequence[Caller]
    tenant: str = "acme"
    keys: int = 0
    """Ordering keys `k0`… in turn; 0 for none."""
    batch: int = 3
    pause_s: float = 0.01
    """Between the batches of a stream."""
    again: Sequence[grpc.StatusCode] = AGAIN
    acknowledged: list[event_pb2.Event] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    """Reasons of what was retried."""
    longest_s: float = 0.0
    """The longest that one batch waited for its acknowledgement."""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def ids(self) -> list[str]:
        """The ids acknowledged, in that order."""
        return [event.id for event in self.acknowledged]

    def keep(self, kept: Sequence[bool]) -> int:
        """Forget the acknowledgements that are not kept; how many those are."""
        before = len(self.acknowledged)
        self.acknowledged = [event for event, keep in zip(self.acknowledged, kept, strict=True) if keep]
        return before - len(self.acknowledged)

    async def run(self, count: int) -> None:
        """Publish `count` more events."""
        for start in range(0, count, self.batch):
            await self._batch(min(self.batch, count - start))

    def streaming(self) -> AbstractAsyncContextManager[None]:
        """Publish beside the block, and end with the last batch begun in it acknowledged."""
        return repeating(lambda: self._batch(self.batch), self.pause_s)

    async def acknowledge(self, count: int) -> None:
        """Wait until the stream has brought `count` more acknowledgements."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: len(self.acknowledged) >= wanted)

    async def _batch(self, count: int) -> None:
        events = [self._next() for _ in range(count)]
        began = time.monotonic()
        await self._publish(events)
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        async with self._changed:
            self.acknowledged += events
            self._changed.notify_all()

    async def _publish(self, events: Sequence[event_pb2.Event]) -> None:
        for tries in range(RETRIES_MAX):
            try:
                await self.callers[tries % len(self.callers)].publish(*events, tenant=self.tenant)
            except grpc.aio.AioRpcError as error:
                if error.code() not in self.again:
                    raise
                self.refusals[reason_of(error)] += 1
                await asyncio.sleep(RETRY_DELAY_S)
            else:
                return
        raise AssertionError(f"{self.name} gave up: {self.refusals}")

    def _next(self) -> event_pb2.Event:
        number = next(self._numbers)
        key = f"k{number % self.keys}" if self.keys else ""
        return event(f"{self.name}-{number}", b'{"number": %d}' % number, ordering_key=key)
