"""Start and stop of OpenTelemetry: providers of our own, never the process-wide ones, so tests may hold several."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NoOpTracerProvider
from prometheus_client import CollectorRegistry

from dispatcher.telemetry.catalog import SCHEMA_URL, SCOPE
from dispatcher.telemetry.export import ExportPlan, metric_exporter, span_exporter
from dispatcher.telemetry.histograms import Histograms, PeriodicReader, PrometheusReader
from dispatcher.telemetry.instruments import Instruments
from dispatcher.telemetry.tracing import Tracing

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What the service records with, and the registry that /metrics reads."""

    tracing: Tracing
    instruments: Instruments
    registry: CollectorRegistry
    _closers: list[Callable[[], None]]

    async def shutdown(self, timeout_s: float) -> bool:
        """Export what is left and stop; False if that took longer than `timeout_s`, which then is given up. Idempotent.

        A thread of its own, and a daemon: an unreachable collector must not hold up the end of the process.
        """
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def close() -> None:
            while self._closers:
                try:
                    self._closers.pop(0)()
                except Exception:  # noqa: BLE001 - the SDK raises bare Exception; the rest is still to be closed
                    _log.warning("telemetry did not stop cleanly", exc_info=True)
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=close, name="telemetry-shutdown", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_s):
                await done.wait()
        except TimeoutError:
            _log.warning("telemetry was not flushed in time", extra={"timeout_s": timeout_s})
            return False
        return True


def make_resource(*, version: str, instance_id: str) -> Resource:
    """Who exports; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over ours."""
    ours = Resource(
        {"service.name": "dispatcher", "service.version": version, "service.instance.id": instance_id}, SCHEMA_URL
    )
    return Resource.create().merge(ours).merge(OTELResourceDetector().detect())


def start_telemetry(plan: ExportPlan, *, version: str, instance_id: str) -> Telemetry:
    """Begin to record; metrics are always there for /metrics, spans are made only if they are exported."""
    resource = make_resource(version=version, instance_id=instance_id)
    registry = CollectorRegistry()
    readers: list[PrometheusReader | PeriodicReader] = [PrometheusReader(scope_info_enabled=False, registry=registry)]
    if (exporter := metric_exporter(plan.metrics)) is not None:
        readers.append(PeriodicReader(exporter))
    histograms = Histograms()
    for reader in readers:
        reader.show(histograms)
    # The SDK's exemplars would cost a look-up of the current span per record; ours come with the spans of attempts.
    meters = MeterProvider(readers, resource, AlwaysOffExemplarFilter(), shutdown_on_exit=False)
    instruments = Instruments(meters.get_meter(SCOPE, version, SCHEMA_URL), histograms)
    tracing, close_traces = _start_tracing(plan, resource, version)
    return Telemetry(tracing, instruments, registry, [*close_traces, meters.shutdown])


def _start_tracing(
    plan: ExportPlan, resource: Resource, version: str
) -> tuple[Tracing, tuple[Callable[[], None], ...]]:
    exporter = span_exporter(plan.traces)
    if exporter is None:
        return Tracing(NoOpTracerProvider().get_tracer(SCOPE)), ()
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))  # bounded by OTEL_BSP_*: 2,048 spans, the rest is dropped
    return Tracing.recording(provider, SCOPE, version, SCHEMA_URL), (provider.shutdown,)
