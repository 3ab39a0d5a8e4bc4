"""A real OTLP receiver over gRPC that keeps what it is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class OtlpSink:
    """Listens on a free loopback port while entered. `spans` and `metrics` are OTLP messages, in order of arrival."""

    def __init__(self) -> None:
        self.resource_spans: list[Any] = []
        self.resource_metrics: list[Any] = []
        self._changed = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(self), self._server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(self), self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    @property
    def environ(self) -> dict[str, str]:
        """The variables that make a process export here, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
        }

    @property
    def spans(self) -> list[Any]:
        return [span for r in self.resource_spans for scope in r.scope_spans for span in scope.spans]

    @property
    def metrics(self) -> list[Any]:
        return [metric for r in self.resource_metrics for scope in r.scope_metrics for metric in scope.metrics]

    def wait_for(self, condition: Callable[[Self], bool], timeout_s: float = 10.0) -> None:
        """Until `condition(sink)` holds; AssertionError after `timeout_s`. Blocks: call it by asyncio.to_thread."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not condition(self):
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"not received: have {len(self.spans)} spans, {len(self.metrics)} metrics"
                self._changed.wait(left_s)

    def keep(self, into: list[Any], received: Any) -> None:
        with self._changed:
            into.extend(received)
            self._changed.notify_all()

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(grace=0).wait(5)


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, sink: OtlpSink) -> None:
        self._sink = sink

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name is the protocol's
        self._sink.keep(self._sink.resource_spans, request.resource_spans)
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, sink: OtlpSink) -> None:
        self._sink = sink

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name is the protocol's
        self._sink.keep(self._sink.resource_metrics, request.resource_metrics)
        return metrics_service_pb2.ExportMetricsServiceResponse()


def attributes_of(message: Any) -> dict[str, Any]:
    """The attributes of a span, data point, or resource as plain values."""
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in message.attributes}
