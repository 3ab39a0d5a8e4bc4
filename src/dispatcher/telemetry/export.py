"""Where traces and metrics go, as the standard OTEL_* variables say; read from a given mapping, not the environment.

Only the choice of exporters is made here. Endpoints, headers, certificates, timeouts, samplers, batch sizes and
intervals are read by the SDK itself (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
Unlike the specification's default nothing is exported unless an exporter or an OTLP endpoint is named: a service that
nobody observes yet must not knock at localhost:4317.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Self

from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricExporter
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter

from dispatcher.config import ConfigError


class Exporter(Enum):
    """How one signal leaves the process."""

    OTLP_GRPC = "grpc"
    OTLP_HTTP = "http/protobuf"
    CONSOLE = "console"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """The exporter of each signal."""

    traces: Exporter = Exporter.NONE
    metrics: Exporter = Exporter.NONE

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Self:
        """From OTEL_SDK_DISABLED, OTEL_{TRACES,METRICS}_EXPORTER, OTEL_EXPORTER_OTLP_[signal_]{PROTOCOL,ENDPOINT}.

        ConfigError names what is not supported.
        """
        if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return cls()
        return cls(_exporter(environ, "TRACES"), _exporter(environ, "METRICS"))


def _exporter(environ: Mapping[str, str], signal: str) -> Exporter:
    variable = f"OTEL_{signal}_EXPORTER"
    named = {word.strip() for word in environ.get(variable, "").split(",") if word.strip()}
    if signal == "METRICS":
        named.discard("prometheus")  # /metrics is served in any case
        if environ.get(variable) and not named:
            return Exporter.NONE
    match sorted(named):
        case []:
            endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
            return _protocol(environ, signal) if any(environ.get(name) for name in endpoints) else Exporter.NONE
        case ["otlp"]:
            return _protocol(environ, signal)
        case ["console"]:
            return Exporter.CONSOLE
        case ["none"]:
            return Exporter.NONE
        case _:
            raise ConfigError([f"{variable}: must be one of otlp, console, none (got {environ[variable][:80]!r})"])


def _protocol(environ: Mapping[str, str], signal: str) -> Exporter:
    for variable in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        match environ.get(variable, "").strip():
            case "":
                continue
            case "grpc":
                return Exporter.OTLP_GRPC
            case "http/protobuf":
                return Exporter.OTLP_HTTP
            case other:
                raise ConfigError([f"{variable}: must be grpc or http/protobuf (got {other[:80]!r})"])
    return Exporter.OTLP_GRPC


def span_exporter(choice: Exporter) -> SpanExporter | None:
    """The exporter of spans, None for none. The libraries behind one are loaded only when it is chosen."""
    match choice:
        case Exporter.OTLP_GRPC:
            from dispatcher.telemetry.span_encoding import LeanGrpcExporter

            return LeanGrpcExporter()
        case Exporter.OTLP_HTTP:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

            return HttpExporter()
        case Exporter.CONSOLE:
            return ConsoleSpanExporter()
        case Exporter.NONE:
            return None


def metric_exporter(choice: Exporter) -> MetricExporter | None:
    """The exporter of metrics, None for none."""
    match choice:
        case Exporter.OTLP_GRPC:
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter

            return GrpcExporter()
        case Exporter.OTLP_HTTP:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter

            return HttpExporter()
        case Exporter.CONSOLE:
            return ConsoleMetricExporter()
        case Exporter.NONE:
            return None
