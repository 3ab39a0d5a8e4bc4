"""An OTLP collector that only counts: `python -m tests.benchmarks.sinks PORT`, on SIGTERM it prints how many spans."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.processes import ROOT, clean_environ, python, wait_for_port
from tests.support.process import free_ports

STOP_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Sink:
    """One that runs; `spans` is known once it has ended."""

    port: int
    pid: int
    spans: int = 0

    @property
    def environ(self) -> dict[str, str]:
        """The variables that make a process export here."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}


@contextlib.contextmanager
def counting_sink() -> Iterator[Sink]:
    """Start one, and count at the end."""
    (port,) = free_ports(1)
    command = python("tests.benchmarks.sinks", str(port))
    process = subprocess.Popen(command, cwd=ROOT, env=clean_environ(), stdout=subprocess.PIPE)
    sink = Sink(port, process.pid)
    try:
        wait_for_port(port, process)
        yield sink
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=STOP_TIMEOUT_S)
        sink.spans = json.loads(out)["spans"]


def _serve(port: int) -> None:
    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

    counted: list[int] = []

    def export(request: bytes, _context: Any) -> bytes:
        parsed = trace_service_pb2.ExportTraceServiceRequest.FromString(request)
        counted.append(sum(len(scope.spans) for each in parsed.resource_spans for scope in each.scope_spans))
        return b""

    def ignore(_request: bytes, _context: Any) -> bytes:
        return b""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(export if "Trace" in details.method else ignore)

    server = grpc.server(ThreadPoolExecutor(max_workers=1), handlers=[Handler()])
    server.add_insecure_port(f"127.0.0.1:{port}")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    server.start()
    ended.wait()
    server.stop(1.0).wait()
    print(json.dumps({"spans": sum(counted)}))


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
