"""Writes the pages under docs/ that are made from the code: `make docs`. A test compares them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from dispatcher.config import Settings, display, is_secret, variable_of
from dispatcher.config.groups import GROUPS
from dispatcher.telemetry.catalog import METRICS, SCHEMA_URL

FOLDER = Path(__file__).parent
TELEMETRY_PAGE = """\
# Telemetry

<!-- Made by `make docs` from src/dispatcher/telemetry/catalog.py and docs/generate.py; a test compares. -->

Semantic conventions: <{schema_url}>.

## Export

Traces and metrics leave by OTLP as the standard `OTEL_*` variables say: `OTEL_EXPORTER_OTLP_ENDPOINT`,
`OTEL_EXPORTER_OTLP_PROTOCOL` (`grpc`, the default, or `http/protobuf`), `OTEL_TRACES_EXPORTER` and
`OTEL_METRICS_EXPORTER` (`otlp`, `console`, `none`), `OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES`,
`OTEL_SERVICE_NAME`, `OTEL_BSP_*`, `OTEL_METRIC_EXPORT_INTERVAL`, `OTEL_SDK_DISABLED`. Nothing is exported unless an
exporter or an endpoint is named. Prometheus finds the same metrics at `/metrics` of `DISPATCHER_OPS_LISTEN`, with
dots as underscores and the unit in the name (`dispatcher_delivery_latency_seconds`).

## Metrics

No metric has an attribute per endpoint, save the two that name the worst few: the SDK drops all attributes beyond
2,000 series. What is not a metric is there for the asking, from what is on record anyway: `GetEndpointStatus` and
`GetTenantStatus` of DeliveryService tell, for any endpoint and over all endpoints of a tenant, the backlog and the age
of its oldest delivery, and of the last 300 s (`DISPATCHER_STATISTICS_WINDOW_S`) the success ratio, the rates in and
out, percentiles of attempt durations, payload sizes and the time to drain. Each call reads a bounded number of rows;
the path of an event pays nothing for it.

| name | kind | unit | attributes | meaning |
|---|---|---|---|---|
{metrics}

## Traces

| span | kind | made for | attributes |
|---|---|---|---|
| `<package>.<Service>/<Method>` | SERVER | a gRPC call, child of the caller's `traceparent` | `rpc.system.name`, \
`rpc.method`, `rpc.response.status_code`, `error.type`; on Publish also `messaging.*` |
| `POST` | CLIENT | one attempt; a new trace with a link to the Publish call, or its child where the endpoint says \
CONTINUE | `http.request.method`, `http.request.resend_count` (from the second attempt), `http.request.body.size`, \
`http.response.status_code`, `error.type`, `url.full` (without user, password and values of the query), \
`server.address`, `server.port`, `messaging.system`, `messaging.operation.name`, `messaging.operation.type`, \
`messaging.destination.name`, `messaging.message.id`, `messaging.message.body.size`, `dispatcher.event.type`, \
`dispatcher.sequence`, `dispatcher.attempt.outcome` |
| `<operation>` | CLIENT | a database operation inside another span; polling has none, nor a group commit, which many \
calls share | `db.system.name`, `db.operation.name`, `error.type` |

The `traceparent` of the Publish call is stored with the event. `tracestate` and `baggage` are neither read nor sent.

## Logs

On stderr: JSON, one object per line, or text in a terminal (`DISPATCHER_LOG_FORMAT`). Fields: `time`, `level`,
`logger`, `message`, `trace_id` and `span_id` inside a span, those of the event logged, and on errors `exception` and
`stack`. Secrets are masked, long values cut.
"""


def render_configuration() -> str:
    """configuration.md: every setting with its default, bounds and meaning."""
    lines = [
        "# Configuration",
        "",
        "<!-- Made by `make docs` from src/dispatcher/config/groups.py; a test compares. -->",
        "",
        "Every setting is an environment variable. An unknown `DISPATCHER_*` variable or a value out of bounds stops",
        "the service at start with an error that names it. An empty variable counts as not set; lists are",
        "comma-separated; names end in their unit. A setting marked *secret* may also be read from a file:",
        "append `_FILE` to its name and give the path. `dispatcher config` prints the settings in effect, secrets",
        "masked. `DISPATCHER_TEST_*` belongs to the test suite, and variables that Kubernetes makes for a Service",
        "called dispatcher (`DISPATCHER_SERVICE_HOST`, `DISPATCHER_PORT_…`) are ignored.",
    ]
    for group in GROUPS:
        title = group.__name__.removesuffix("Settings")
        lines += ["", f"## {title}", "", str(group.__doc__), "", "| variable | default | bounds | meaning |"]
        lines.append("|---|---|---|---|")
        lines += [_markdown_row(name) for name in group.model_fields]
    return "\n".join(lines) + "\n"


def _markdown_row(name: str) -> str:
    field = Settings.model_fields[name]
    default = display(field.default)
    meaning = f"{'*Secret.* ' if is_secret(name) else ''}{field.description}"
    return f"| `{variable_of(name)}` | {f'`{default}`' if default else 'unset'} | {_bounds(name)} | {meaning} |"


def _bounds(name: str) -> str:
    field = Settings.model_fields[name]
    limits = {key: getattr(item, key) for item in field.metadata for key in ("ge", "le") if hasattr(item, key)}
    if "ge" in limits:
        return f"{display(limits['ge'])} to {display(limits['le'])}"
    choices = re.findall(r"'(\w+)'", str(field.annotation)) if "Literal" in str(field.annotation) else []
    return ", ".join(choices)


def render_telemetry() -> str:
    """telemetry.md: every metric, every span, every field of a log line."""
    rows = [
        f"| `{metric.name}` | {metric.kind.value} | `{metric.unit}` | "
        f"{', '.join(f'`{name}`' for name in metric.attributes)} | {metric.meaning} |"
        for metric in METRICS
    ]
    return TELEMETRY_PAGE.format(schema_url=SCHEMA_URL, metrics="\n".join(rows))


PAGES: dict[str, Callable[[], str]] = {"configuration.md": render_configuration, "telemetry.md": render_telemetry}


def main() -> int:
    """Write every generated page; with --check only name those that are not current, and fail."""
    stale = [name for name, render in PAGES.items() if (FOLDER / name).read_text() != render()]
    for name in stale:
        if "--check" in sys.argv:
            print(f"docs/{name} is not what the code says: run `make docs`", file=sys.stderr)
        else:
            (FOLDER / name).write_text(PAGES[name]())
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
