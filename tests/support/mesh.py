"""Dispatchers behind a sidecar: mTLS ends in Envoy, which tells them whom it met; a policy file says who may what."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from tests.support.callers import Caller
from tests.support.certificates import Authority, Issued
from tests.support.envoy import SOURCE, Envoy, envoy
from tests.support.process import ROOT, Served, processes

SHOP = "spiffe://mesh.example/ns/shop/sa/web"
ADMIN = "spiffe://mesh.example/ns/ops/sa/admin"
POLICY = f"""
bindings:
  - {{principals: ["{SHOP}"], roles: [publisher], tenants: [acme]}}
  - {{principals: ["{ADMIN}"], roles: [operator, manager], tenants: ["*"]}}
"""
SERVICE_CONFIG = ROOT / "docs" / "examples" / "service_config.json"
SIDECAR_CONFIG = SERVICE_CONFIG.with_name("service_config_sidecar.json")


@dataclass(frozen=True, slots=True)
class Mesh:
    authority: Authority
    envoy: Envoy
    served: tuple[Served, ...]

    @contextlib.asynccontextmanager
    async def workload(self, issued: Issued | None, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
        """A channel through the sidecar; `options` are channel arguments, their dots as double underscores."""
        pair = (issued.key, issued.certificate) if issued else (None, None)
        credentials = grpc.ssl_channel_credentials(self.authority.root, *pair)
        known = {"grpc.use_local_subchannel_pool": 1, "grpc.enable_retries": 0}
        known |= {name.replace("__", "."): value for name, value in options.items()}
        target = f"localhost:{self.envoy.port}"
        async with grpc.aio.secure_channel(target, credentials, options=list(known.items())) as channel:
            yield channel

    @contextlib.asynccontextmanager
    async def caller(self, uri: str) -> AsyncIterator[Caller]:
        """Calls as the workload of this SPIFFE id, by the service config that is shipped for that."""
        options = {"grpc__service_config": SIDECAR_CONFIG.read_text(), "grpc__enable_retries": 1}
        options |= {"grpc__initial_reconnect_backoff_ms": 100, "grpc__max_reconnect_backoff_ms": 500}
        async with self.workload(self.authority.issue(uris=[uri]), **options) as channel:
            yield Caller(channel, channel)


@contextlib.contextmanager
def meshed(
    dsn: str, folder: Path, count: int = 1, variables: Mapping[str, str] | None = None, **sidecar: Any
) -> Iterator[Mesh]:
    """So many dispatchers behind one sidecar, ready; `sidecar` as `envoy` takes it."""
    authority = Authority("mesh")
    (folder / "policy.yaml").write_text(POLICY)
    environ = {
        "DISPATCHER_AUTH_MODE": "xfcc",
        "DISPATCHER_AUTH_POLICY_FILE": str(folder / "policy.yaml"),
        "DISPATCHER_AUTH_TRUSTED_PEERS": f"{SOURCE}/32",
    }
    with processes(dsn, folder, count, environ | dict(variables or {})) as served:
        ports = [each.grpc_port for each in served]
        with envoy(folder, authority, *ports, **sidecar) as running:
            yield Mesh(authority, running, served)
