"""One dispatcher in the test's own process, without its ports: publishing, delivery, leases, upkeep."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from dispatcher.app import Core, new_instance, open_core
from dispatcher.config import Settings
from dispatcher.model import Endpoint, EndpointSettings, NewEvent, OrderingMode, PublishedEvent, TracePropagation
from dispatcher.routing.publisher import Publication
from dispatcher.security.secrets import SealContext
from dispatcher.security.signing import format_secret
from dispatcher.store import endpoints
from dispatcher.store.endpoints import NewEndpoint
from dispatcher.store.signing_keys import NewSigningKey
from dispatcher.telemetry import ExportPlan, start_telemetry
from tests.support.receiver import Receiver

SECRET_KEYS = f"test:{base64.b64encode(b'k' * 32).decode()}"
SIGNING_SECRET = b"a signing secret of 32 bytes ..."
SIGNING_SECRET_TEXT = format_secret(SIGNING_SECRET)
QUICK = {
    "DISPATCHER_SECRET_KEYS": SECRET_KEYS,
    "DISPATCHER_AUTH_MODE": "none",
    "DISPATCHER_EGRESS_ALLOWED_NETWORKS": "127.0.0.0/8",
    "DISPATCHER_LEASE_TTL_S": "3",
    "DISPATCHER_LEASE_SEND_MARGIN_S": "0.5",
    "DISPATCHER_RETRY_MIN_S": "0.02",
    "DISPATCHER_RETRY_MAX_S": "0.1",
    "DISPATCHER_CHECKPOINT_INTERVAL_S": "0.2",
    "DISPATCHER_SWEEP_INTERVAL_S": "1",
    "DISPATCHER_COMMAND_POLL_INTERVAL_S": "0.1",
    "DISPATCHER_DELIVERY_DRAIN_S": "3",
}
"""Settings that make a test short; none of them changes what is promised."""


@dataclass(slots=True)
class Node:
    """A running dispatcher and the task it runs in."""

    core: Core
    task: asyncio.Task[None]

    async def endpoint(
        self,
        name: str,
        url: str,
        *,
        tenant: str = "acme",
        event_types: Sequence[str] = ("*",),
        mode: OrderingMode = OrderingMode.ORDERED,
        **settings: object,
    ) -> Endpoint:
        """An endpoint with the signing key of SIGNING_SECRET."""
        known = EndpointSettings(
            url=url,
            timeout_s=5.0,
            headers={},
            max_in_flight=8,
            ordering_mode=mode,
            trace_propagation=TracePropagation.NONE,
        )
        from dispatcher.store import tenants

        owner = await tenants.get(self.core.database, tenant)
        new = NewEndpoint(
            name, "", {}, tuple(event_types), endpoints.EndpointState.ACTIVE, "", replace(known, **settings)
        )
        context = SealContext(owner.tenant_id, new.endpoint_id, "k1")
        key = NewSigningKey("k1", self.core.keyring.seal(SIGNING_SECRET, context))
        return await endpoints.create(self.core.database, tenant, new, [key])

    async def publish(self, *events: NewEvent, tenant: str = "acme") -> tuple[PublishedEvent, ...]:
        return await self.core.publisher.publish(Publication(tenant, tuple(events)))

    async def stop(self) -> None:
        """The orderly end."""
        await self.core.drain()
        await self.task

    async def crash(self) -> None:
        """The nearest that one process comes to SIGKILL: every task is cancelled, nothing is flushed or released."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@contextlib.asynccontextmanager
async def running_node(dsn: str, **variables: str) -> AsyncIterator[Node]:
    """A node on a migrated database; `variables` are settings without their prefix, in small letters."""
    environ = QUICK | {"DISPATCHER_DATABASE_URL": dsn}
    environ |= {f"DISPATCHER_{name.upper()}": str(value) for name, value in variables.items()}
    instance = new_instance("test")
    telemetry = start_telemetry(ExportPlan.load({}), version="test", instance_id=str(instance.instance_id))
    async with open_core(Settings.load(environ), telemetry, instance) as core:
        node = Node(core, asyncio.create_task(core.run()))
        try:
            yield node
            if not node.task.done():
                await node.stop()
        finally:
            await node.crash()
            await telemetry.shutdown(1.0)


__all__ = ["QUICK", "SECRET_KEYS", "SIGNING_SECRET_TEXT", "Node", "Receiver", "running_node"]
