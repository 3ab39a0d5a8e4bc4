"""Writes the pages that are made from the code, and what of the chart is: `make docs`. A test compares them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dispatcher.config import Settings, display, is_secret, variable_of
from dispatcher.config.groups import GROUPS
from dispatcher.telemetry.catalog import METRICS, SCHEMA_URL
from docs.chart import render_bounds, render_readme, render_schema
from docs.dashboards import DASHBOARDS, render

FOLDER = Path(__file__).resolve().parent
TELEMETRY_PAGE = """\
# Telemetry

<!-- Made by `make docs` from src/dispatcher/telemetry/catalog.py and docs/generate.py; a test compares. -->

Names and units are OpenTelemetry's: what does not begin with `dispatcher.` is a semantic convention of
<{schema_url}>, which every export names. `db.*`, `http.*`, `url.*`, `server.*` and
`error.type` are stable there, `rpc.*` is a release candidate, `messaging.*` still in development; a later version comes
with a later release of ours, never by itself. Departures, on purpose: attempts are `dispatcher.attempt.duration` and
not `http.client.request.duration`, which demands the receiver's host as an attribute; the bounds of buckets are our
own, finer where we are fast.

## Export

Traces and metrics leave by OTLP as the standard `OTEL_*` variables say: `OTEL_EXPORTER_OTLP_ENDPOINT`,
`OTEL_EXPORTER_OTLP_PROTOCOL` (`grpc`, the default, or `http/protobuf`), `OTEL_TRACES_EXPORTER` and
`OTEL_METRICS_EXPORTER` (`otlp`, `console`, `none`), `OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES`,
`OTEL_SERVICE_NAME`, `OTEL_BSP_*`, `OTEL_METRIC_EXPORT_INTERVAL`, `OTEL_SDK_DISABLED`. Nothing is exported unless an
exporter or an endpoint is named. Prometheus finds the same metrics at `/metrics` of `DISPATCHER_OPS_LISTEN`, with
dots as underscores and the unit in the name (`dispatcher_delivery_latency_seconds`).

Alerts and recording rules are in `helm/dispatcher/rules/`, each alert with a runbook in [runbooks](runbooks), Grafana
dashboards in `helm/dispatcher/dashboards/`.

## Metrics

No metric has an attribute per endpoint, save the two that name the worst few: the SDK drops all attributes beyond
2,000 series. What is not a metric is there for the asking, from what is on record anyway: `GetEndpointStatus` and
`GetTenantStatus` of DeliveryService tell, for any endpoint and over all endpoints of a tenant, the backlog and the age
of its oldest delivery, and of the last 300 s (`DISPATCHER_STATISTICS_WINDOW_S`) the success ratio, the rates in and
out, percentiles of attempt durations, payload sizes and the time to drain. Each call reads a bounded number of rows;
the path of an event pays nothing for it.

| name | type | unit | attributes | meaning | what to do when it moves |
|---|---|---|---|---|---|
{metrics}

### Exemplars

The points of `dispatcher.attempt.duration` and `dispatcher.delivery.latency` name an attempt's trace for each bucket:
the newest since the export before, of attempts whose span was recorded; so a slow bucket leads to a trace. They leave
by OTLP only: the exporter for Prometheus shows none. An attempt without a span pays nothing for them, one with a span
0.5 µs. `rpc.server.call.duration` and the database's have none: the SDK's way, a look at the current span at each
record, would cost every call.

## The delivery SLO

99 % of deliveries have had their first attempt within `DISPATCHER_SLO_THRESHOLD_S`, 60 s, of the event's acceptance.
`dispatcher.slo.deliveries` counts each delivery once, by its owner, replays not:

| result | when it is counted | it means |
|---|---|---|
| `good` | its first attempt has ended within the threshold | it is delivered, or in a failure of its receiver that is \
on record |
| `excused` | it passes the threshold untried | its endpoint is paused, disabled, halted, bounded by a rate or a \
circuit, or what it waits for has failed |
| `slow` | the same | as many attempts as its endpoint's order, or its tenant, allows wait for their answers: a slow \
receiver, or an instance without CPU |
| `late` | the same | nothing of these kept it: the database, a full instance, a signing key that does not open |

Only `late` spends the budget. It is counted every `DISPATCHER_METRICS_BACKLOG_INTERVAL_S`, at the threshold and not at
the end, so that what never ends counts. A stall shows for as long as it lasts in `dispatcher.slo.late.age`: for how
long the same delivery has been found at an endpoint's front with nothing to wait for. What nobody owns shows in
`dispatcher.partitions.owned`.

Where it can't be decided, nothing is counted as `late`:

- What lies in a backlog beyond an endpoint's window (`DISPATCHER_LANE_ROWS_MAX`) is counted when it comes into memory,
  by what kept the window's front when it turned late; after many changes of that (64) by nothing.
- What turns late while a backlog is worked off counts as what made the backlog (a pause, an outage: `excused`), until
  the backlog is gone or one row is found at the front, with nothing to wait for, at two rounds in a row. So a database
  that makes a catch-up slow, without stopping it, does not show here.
- What was late before its owner took it over is not counted, by whosever fault; nor is the rest of a backlog found
  then, while it moves and nothing is seen that keeps it. An owner that dies with a backlog spends no budget with it.

All this costs a delivery 0.3 µs, and a round over 10,000 endpoints with work 30 ms, in pieces, of each 10 s; 170 ms
where all of them are late.

## Traces

| span | kind | made for | attributes |
|---|---|---|---|
| `<package>.<Service>/<Method>` | SERVER | a gRPC call, child of the caller's `traceparent` | `rpc.system.name`, \
`rpc.method`, `rpc.response.status_code`, `error.type`; on Publish also `messaging.*` |
| `commit` | INTERNAL | the wait of a Publish for the group commit that holds its events; the child of its call. A \
commit is shared by many calls and has no span of its own | `error.type` |
| `POST` | CLIENT | one attempt; a new trace with a link to the Publish call, or its child where the endpoint says \
CONTINUE | `http.request.method`, `http.request.resend_count` (from the second attempt), `http.request.body.size`, \
`http.response.status_code`, `error.type`, `url.full` (without user, password and values of the query), \
`server.address`, `server.port`, `messaging.system`, `messaging.operation.name`, `messaging.operation.type`, \
`messaging.destination.name`, `messaging.message.id`, `messaging.message.body.size`, `dispatcher.event.type`, \
`dispatcher.sequence`, `dispatcher.attempt.outcome` |
| `<operation>` | CLIENT | a database operation inside another span; polling has none | `db.system.name`, \
`db.operation.name`, `error.type` |

The `traceparent` of the Publish call is stored with the event. `tracestate` and `baggage` are neither read nor sent.

**Sampling** is `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`, as everywhere; `parentbased_always_on` by default.
A call follows its caller's flag. An attempt is a root of its own and decided anew, by a ratio where one is set; under
CONTINUE it follows the flag of the publisher. `parentbased_traceidratio` with `0.05` is what the benchmarks run with.

**What it costs** ([benchmarks](benchmarks.md)): an attempt's span takes 42 to 45 µs of a core with its export, where a
whole attempt takes some 75; one that is not sampled nearly nothing. On the slower machine of the full table an instance
delivers 7,600 events/s with one span in twenty, 5,100 with every one. A `commit` span that is not recorded takes 1.3 µs
of its Publish call. Spans wait in a queue of 2,048 (`OTEL_BSP_MAX_QUEUE_SIZE`); what does not fit is dropped:
deliveries never wait for a collector.

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
        f"{', '.join(f'`{name}`' for name in metric.attributes)} | {metric.meaning} | {metric.action} |"
        for metric in METRICS
    ]
    return TELEMETRY_PAGE.format(schema_url=SCHEMA_URL, metrics="\n".join(rows))


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": render_configuration,
    "telemetry.md": render_telemetry,
    "../helm/dispatcher/README.md": render_readme,
    "../helm/dispatcher/values.schema.json": render_schema,
    "../helm/dispatcher/templates/_bounds.tpl": render_bounds,
    **{f"../helm/dispatcher/dashboards/{name}.json": partial(render, each) for name, each in DASHBOARDS.items()},
}


def main() -> int:
    """Write every generated page; with --check only name those that are not current, and fail."""
    stale = [name for name, render in PAGES.items() if (FOLDER / name).read_text() != render()]
    for name in stale:
        if "--check" in sys.argv:
            path = (FOLDER / name).resolve().relative_to(FOLDER.parent)
            print(f"{path} is not what the code says: run `make docs`", file=sys.stderr)
        else:
            (FOLDER / name).write_text(PAGES[name]())
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
