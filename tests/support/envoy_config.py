"""What the Envoys of the tests are told, as JSON of envoy.config.bootstrap.v3.Bootstrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SOURCE = "127.0.0.2"
"""The address that the sidecar calls from, so that it can be told from whoever calls past it."""
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
SERVICE = "webhooks.v1.PublisherService"
HEALTH_INTERVAL = "0.1s"
TLS_FILES = tuple[Path, Path, Path]
"""Certificate, key, and the roots of clients' certificates."""


def sidecar_config(
    ports: tuple[int, int], upstreams: Sequence[int], files: TLS_FILES, *, otlp: int | None, watches_health: bool
) -> dict[str, Any]:
    """As a mesh configures the inbound side: mTLS ends here, x-forwarded-client-cert is set anew, HTTP/2 goes on."""
    port, admin_port = ports
    manager = _manager(
        codec_type="HTTP2",
        forward_client_cert_details="SANITIZE_SET",
        set_current_client_cert_details={"subject": True, "uri": True, "dns": True},
        route_config=_routes({"match": {"prefix": "/"}, "route": {"cluster": "dispatcher", "timeout": "0s"}}),
        http_filters=[_router()],
    )
    clusters = [_grpc_cluster("dispatcher", upstreams, source=SOURCE, watches_health=watches_health)]
    if otlp is not None:
        manager["tracing"] = _tracing()
        clusters.append(_grpc_cluster("otlp", [otlp]))
    bootstrap = _bootstrap(_listener(port, manager, files), clusters, admin_port)
    # Envoy's exporter waits for five seconds or 512 spans by default.
    bootstrap["layered_runtime"] = {
        "layers": [{"name": "static", "static_layer": {"tracing.opentelemetry.min_flush_spans": 1}}]
    }
    return bootstrap


def forward_proxy_config(port: int, admin_port: int) -> dict[str, Any]:
    """CONNECT to whatever address is asked for."""
    cache = {"dns_cache_config": {"name": "any", "dns_lookup_family": "V4_PREFERRED"}}
    kind = _type("envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig")
    connect = {"upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}
    manager = _manager(
        codec_type="HTTP1",
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        proxy_status_config={"literal_proxy_name": "envoy"},
        route_config=_routes(
            {"match": {"connect_matcher": {}}, "route": {"cluster": "any", "timeout": "0s", **connect}}
        ),
        http_filters=[{"name": "any", "typed_config": {**kind, **cache}}, _router()],
    )
    cluster_kind = _type("envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig")
    cluster = {
        "name": "any",
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {
            "name": "envoy.clusters.dynamic_forward_proxy",
            "typed_config": {**cluster_kind, **cache},
        },
    }
    return _bootstrap(_listener(port, manager), [cluster], admin_port)


def _bootstrap(listener: Mapping[str, Any], clusters: Sequence[Mapping[str, Any]], admin_port: int) -> dict[str, Any]:
    return {
        "admin": {"address": _address(admin_port)},
        "static_resources": {"listeners": [listener], "clusters": list(clusters)},
    }


def _manager(**fields: Any) -> dict[str, Any]:
    kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    return {**_type(kind), "stat_prefix": "in", **fields}


def _routes(*routes: Mapping[str, Any]) -> dict[str, Any]:
    return {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": list(routes)}]}


def _router() -> dict[str, Any]:
    return {"name": "router", "typed_config": _type("envoy.extensions.filters.http.router.v3.Router")}


def _tracing() -> dict[str, Any]:
    exporter = {"grpc_service": {"envoy_grpc": {"cluster_name": "otlp"}}, "service_name": "sidecar"}
    provider = {**_type("envoy.config.trace.v3.OpenTelemetryConfig"), **exporter}
    return {"provider": {"name": "envoy.tracers.opentelemetry", "typed_config": provider}}


def _listener(port: int, manager: Mapping[str, Any], files: TLS_FILES | None = None) -> dict[str, Any]:
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": manager}]}
    if files is not None:
        chain["transport_socket"] = {"name": "tls", "typed_config": _tls(*files)}
    return {"address": _address(port), "filter_chains": [chain]}


def _tls(certificate: Path, key: Path, roots: Path) -> dict[str, Any]:
    pair = {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
    return {
        **_type("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": True,
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificates": [pair],
            "validation_context": {"trusted_ca": {"filename": str(roots)}},
        },
    }


def _grpc_cluster(
    name: str, ports: Sequence[int], *, source: str | None = None, watches_health: bool = False
) -> dict[str, Any]:
    http2 = {**_type(HTTP_OPTIONS), "explicit_http_config": {"http2_protocol_options": {}}}
    endpoints = [{"endpoint": {"address": _address(port)}} for port in ports]
    cluster: dict[str, Any] = {
        "name": name,
        "connect_timeout": "2s",
        "typed_extension_protocol_options": {HTTP_OPTIONS: http2},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }
    if source is not None:
        cluster["upstream_bind_config"] = {"source_address": {"address": source, "port_value": 0}}
    if watches_health:
        # Below the threshold Envoy would call hosts that are not healthy rather than none.
        cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
        cluster["health_checks"] = [_health_check()]
    return cluster


def _health_check() -> dict[str, Any]:
    return {
        "timeout": "1s",
        "interval": HEALTH_INTERVAL,
        "no_traffic_interval": HEALTH_INTERVAL,
        "unhealthy_interval": HEALTH_INTERVAL,
        "unhealthy_threshold": 1,
        "healthy_threshold": 1,
        "grpc_health_check": {"service_name": SERVICE},
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _type(name: str) -> dict[str, str]:
    return {"@type": f"type.googleapis.com/{name}"}
