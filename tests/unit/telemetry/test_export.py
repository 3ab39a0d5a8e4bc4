"""What the standard OTEL_* variables choose, and that nothing leaves unless someone asked."""

from __future__ import annotations

import pytest

from dispatcher.config import ConfigError
from dispatcher.telemetry.export import Exporter, ExportPlan
from dispatcher.telemetry.setup import make_resource


@pytest.mark.parametrize(
    ("environ", "traces", "metrics"),
    [
        ({}, Exporter.NONE, Exporter.NONE),
        ({"EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, Exporter.OTLP_GRPC, Exporter.OTLP_GRPC),
        ({"EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, Exporter.OTLP_GRPC, Exporter.NONE),
        ({"TRACES_EXPORTER": "otlp", "METRICS_EXPORTER": "prometheus"}, Exporter.OTLP_GRPC, Exporter.NONE),
        ({"METRICS_EXPORTER": "prometheus,otlp"}, Exporter.NONE, Exporter.OTLP_GRPC),
        ({"TRACES_EXPORTER": "console", "METRICS_EXPORTER": "none"}, Exporter.CONSOLE, Exporter.NONE),
        (
            {
                "EXPORTER_OTLP_ENDPOINT": "http://c:4318",
                "EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "EXPORTER_OTLP_METRICS_PROTOCOL": "grpc",
            },
            Exporter.OTLP_HTTP,
            Exporter.OTLP_GRPC,
        ),
        ({"EXPORTER_OTLP_ENDPOINT": "http://c:4317", "TRACES_EXPORTER": "none"}, Exporter.NONE, Exporter.OTLP_GRPC),
        ({"EXPORTER_OTLP_ENDPOINT": "http://c:4317", "SDK_DISABLED": "True"}, Exporter.NONE, Exporter.NONE),
    ],
)
def test_the_exporters_are_those_the_environment_names(
    environ: dict[str, str], traces: Exporter, metrics: Exporter
) -> None:
    plan = ExportPlan.load({f"OTEL_{name}": value for name, value in environ.items()})
    assert plan == ExportPlan(traces, metrics)


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_METRICS_EXPORTER": "otlp,console"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
    ],
)
def test_what_is_not_supported_is_an_error_that_names_it(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=list(environ)[-1]):
        ExportPlan.load(environ)


def test_the_resource_says_who_exports_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.instance.id=pod-1")
    resource = make_resource(version="1.2", instance_id="ours")
    assert resource.attributes["service.name"] == "dispatcher"
    assert resource.attributes["service.version"] == "1.2"
    assert resource.attributes["service.instance.id"] == "pod-1"
    assert resource.attributes["deployment.environment.name"] == "test"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "hooks")
    assert make_resource(version="1", instance_id="i").attributes["service.name"] == "hooks"
