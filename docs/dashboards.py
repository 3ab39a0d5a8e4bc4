"""Grafana dashboards as data: what helm/dispatcher/dashboards/*.json is made from (`make docs`; a test compares).

A panel is a title, what it means, and its queries by legend; places and ids follow from the order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
HERE = 'namespace=~"$namespace",job=~"$job"'
ROW_UNITS = 24
SCHEMA_VERSION = 39
"""Grafana 10.3 and later."""


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries` by legend; a panel without any is `text`. `unit` is Grafana's; `kind` its panel type."""

    title: str
    queries: Mapping[str, str] = field(default_factory=dict)
    unit: str = "short"
    about: str = ""
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    text: str = ""
    stacked: bool = False
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Dashboard:
    """`sections` by title; `variables` beside data source, namespace and job: name to label_values query."""

    uid: str
    title: str
    about: str
    sections: Mapping[str, Sequence[Panel]]
    variables: Mapping[str, str] = field(default_factory=dict)


def rate(series: str, matchers: str = "", by: str = "") -> str:
    """The sum of a counter's rate, by labels."""
    return f"sum{_by(by)} (rate({series}{{{_and(matchers)}}}[$__rate_interval]))"


def total(series: str, matchers: str = "", by: str = "") -> str:
    """The sum of a gauge over instances."""
    return f"sum{_by(by)} ({series}{{{_and(matchers)}}})"


def most(series: str, matchers: str = "", by: str = "") -> str:
    """The greatest of a gauge over instances."""
    return f"max{_by(by)} ({series}{{{_and(matchers)}}})"


def quantile(q: float, histogram: str, matchers: str = "", by: str = "") -> str:
    """A percentile of a histogram."""
    inner = rate(f"{histogram}_bucket", matchers, ", ".join(filter(None, ("le", by))))
    return f"histogram_quantile({q}, {inner})"


def share(series: str, matchers: str, window: str) -> str:
    """The share of a counter's increase over a window that has these labels."""
    part = f"sum (increase({series}{{{_and(matchers)}}}[{window}]))"
    return f"{part} / sum (increase({series}{{{HERE}}}[{window}]))"


def _and(matchers: str) -> str:
    return ",".join(filter(None, (HERE, matchers)))


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def stat(title: str, query: str, unit: str = "short", about: str = "", threshold: float | None = None) -> Panel:
    """One number now."""
    return Panel(title, {"": query}, unit, about, "stat", 4, 4, threshold=threshold)


def words(text: str, height: int = 8, width: int = ROW_UNITS) -> Panel:
    """Markdown."""
    return Panel("", text=text, kind="text", width=width, height=height)


LATE = 'dispatcher_slo_result="late"'
DEAD = 'dispatcher_delivery_outcome="dead_lettered"'
PARTITIONS_UNOWNED = f"sum (256 - {total('dispatcher_partitions_owned', by='namespace, job')})"
FLEET = Dashboard(
    "dispatcher-fleet",
    "Dispatcher / fleet",
    "All instances of one installation: is it well, and if not, where?",
    {
        "Service level": [
            stat(
                "Late, last 30 days",
                share("dispatcher_slo_deliveries_total", LATE, "30d"),
                "percentunit",
                "Of all deliveries: begun later than the SLO's threshold, and nothing but the service kept them. The "
                "objective is 1 %.",
                0.01,
            ),
            stat("Late, last hour", share("dispatcher_slo_deliveries_total", LATE, "1h"), "percentunit", "", 0.144),
            stat(
                "Longest stall",
                most("dispatcher_slo_late_age_seconds"),
                "s",
                "For how long a late delivery has waited for nothing but the service. 0 is well.",
                120,
            ),
            stat("Partitions without owner", PARTITIONS_UNOWNED, "short", "Of each installation's 256.", 1),
            stat("Endpoints halted", total("dispatcher_lanes_halted"), "short", "An operator has to decide.", 1),
            stat(
                "Dead letters, last hour",
                f"sum (increase(dispatcher_deliveries_total{{{_and(DEAD)}}}[1h]))",
                "short",
                "",
                1,
            ),
            Panel(
                "Deliveries by how they kept the threshold",
                {"{{dispatcher_slo_result}}": rate("dispatcher_slo_deliveries_total", by="dispatcher_slo_result")},
                "ops",
                "good, or what kept them at the threshold: excused, their own endpoint; slow, the answers before them; "
                "late, we.",
                width=12,
                stacked=True,
            ),
            Panel(
                "From acceptance to the receiver's success",
                {
                    "half": quantile(0.5, "dispatcher_delivery_latency_seconds"),
                    "99 of 100": quantile(0.99, "dispatcher_delivery_latency_seconds"),
                },
                "s",
                "Receivers that were away are in its tail.",
                width=12,
            ),
        ],
        "Traffic": [
            Panel(
                "Events published",
                {
                    "{{dispatcher_publish_result}}": rate(
                        "dispatcher_events_published_total", by="dispatcher_publish_result"
                    )
                },
                "ops",
            ),
            Panel(
                "Deliveries settled",
                {
                    "{{dispatcher_delivery_outcome}}": rate(
                        "dispatcher_deliveries_total", by="dispatcher_delivery_outcome"
                    )
                },
                "ops",
            ),
            Panel(
                "Attempts by outcome",
                {
                    "{{dispatcher_attempt_outcome}} {{dispatcher_http_status_class}}": rate(
                        "dispatcher_attempt_duration_seconds_count",
                        by="dispatcher_attempt_outcome, dispatcher_http_status_class",
                    )
                },
                "ops",
                stacked=True,
            ),
            Panel(
                "Attempts that the egress proxy failed",
                {
                    "{{instance}}": rate(
                        "dispatcher_attempt_duration_seconds_count",
                        'dispatcher_attempt_outcome="egress_proxy_failed"',
                        "instance",
                    )
                },
                "ops",
                "Counted against no endpoint; of each, one in DISPATCHER_EGRESS_PROXY_RECORD_INTERVAL_S is on record.",
            ),
            Panel(
                "Duration of an attempt",
                {
                    "half": quantile(0.5, "dispatcher_attempt_duration_seconds"),
                    "99 of 100": quantile(0.99, "dispatcher_attempt_duration_seconds"),
                },
                "s",
            ),
            Panel(
                "gRPC calls that failed",
                {
                    "{{rpc_method}} {{rpc_response_status_code}}": rate(
                        "rpc_server_call_duration_seconds_count",
                        'rpc_response_status_code!="OK"',
                        "rpc_method, rpc_response_status_code",
                    )
                },
                "ops",
            ),
            Panel(
                "Duration of a gRPC call, 99 of 100",
                {"{{rpc_method}}": quantile(0.99, "rpc_server_call_duration_seconds", by="rpc_method")},
                "s",
            ),
        ],
        "Backlog": [
            Panel(
                "Deliveries that wait",
                {"all": total("dispatcher_backlog"), "due": total("dispatcher_backlog_due")},
                about="Due is what more instances could make sooner: it drives autoscaling.",
            ),
            Panel(
                "Age of the oldest",
                {
                    "of all": most("dispatcher_backlog_age_seconds"),
                    "of those due": most("dispatcher_backlog_due_age_seconds"),
                },
                "s",
            ),
            Panel(
                "Endpoints in trouble",
                {
                    "circuits open": total("dispatcher_circuits_open"),
                    "throttled": total("dispatcher_endpoints_throttled"),
                    "halted": total("dispatcher_lanes_halted"),
                    "deliveries parked": total("dispatcher_deliveries_parked"),
                },
            ),
            Panel(
                "The worst endpoints by age",
                {
                    "{{dispatcher_tenant}}/{{dispatcher_endpoint}}": most(
                        "dispatcher_endpoint_backlog_age_seconds", by="dispatcher_tenant, dispatcher_endpoint"
                    )
                },
                "s",
                "At most DISPATCHER_METRICS_ENDPOINTS_WORST_MAX of each instance have a series. Prometheus sees "
                "them only with DISPATCHER_OPS_TOKEN, or in mode none; GetTenantStatus tells them without.",
                width=24,
            ),
        ],
        "Publishing and the database": [
            Panel(
                "Duration of a commit",
                {
                    "half": quantile(0.5, "dispatcher_commit_duration_seconds"),
                    "95 of 100": quantile(0.95, "dispatcher_commit_duration_seconds"),
                },
                "s",
            ),
            Panel(
                "Events that wait for a commit",
                {"{{instance}}": most("dispatcher_publish_queue_events", by="instance")},
            ),
            Panel(
                "Flush lag",
                {"{{instance}}": most("dispatcher_flush_lag_seconds", by="instance")},
                "s",
                "Over 1 s sending stops.",
            ),
            Panel(
                "Duration of a database operation, 95 of 100",
                {
                    "{{db_operation_name}}": quantile(
                        0.95, "db_client_operation_duration_seconds", by="db_operation_name"
                    )
                },
                "s",
            ),
            Panel(
                "Database operations that failed",
                {"{{error_type}}": rate("db_client_operation_duration_seconds_count", 'error_type!=""', "error_type")},
                "ops",
            ),
            Panel(
                "What keeps VACUUM from its work",
                {
                    "{{dispatcher_xmin_holder}}": most(
                        "dispatcher_database_xmin_held_seconds", by="dispatcher_xmin_holder"
                    )
                },
                "s",
            ),
            Panel(
                "Partitions past the retention that stay",
                {
                    "{{dispatcher_retention_reason}}": most(
                        "dispatcher_retention_blocked", by="dispatcher_retention_reason"
                    )
                },
            ),
            Panel(
                "Since upkeep last went through",
                {"": f"time() - {most('dispatcher_upkeep_last_success_seconds')}"},
                "s",
                "It makes the partitions of the coming days and drops the old ones.",
            ),
            Panel(
                "Events in one commit, attempts in one flush",
                {
                    "events": f"{rate('dispatcher_commit_events_sum')} / {rate('dispatcher_commit_events_count')}",
                    "attempts": f"{rate('dispatcher_flush_attempts_sum')} / {rate('dispatcher_flush_attempts_count')}",
                },
            ),
            Panel("Attempts refused for good", {"": rate("dispatcher_flush_dropped_total")}, "ops", "A bug."),
        ],
        "Instances": [
            Panel(
                "Partitions owned", {"{{instance}}": total("dispatcher_partitions_owned", by="instance")}, stacked=True
            ),
            Panel("Attempts in flight", {"{{instance}}": total("dispatcher_attempts_in_flight", by="instance")}),
            Panel("Payloads in memory", {"{{instance}}": total("dispatcher_payload_bytes", by="instance")}, "bytes"),
            Panel("Endpoints with work in memory", {"{{instance}}": total("dispatcher_lanes", by="instance")}),
            Panel(
                "Leases that change",
                {"{{dispatcher_lease_change}}": rate("dispatcher_lease_changes_total", by="dispatcher_lease_change")},
                "ops",
            ),
            Panel(
                "Workers that ended unasked",
                {"{{instance}}": rate("dispatcher_workers_ended_total", by="instance")},
                "ops",
                "Of supervisors only.",
            ),
        ],
    },
)
TENANT, ENDPOINT = 'dispatcher_tenant=~"$tenant"', 'dispatcher_endpoint=~"$endpoint"'
ONLY_WORST = """\
**Read this first.** No metric has a series for each tenant or endpoint: there may be hundreds of thousands. Only the
endpoints with the oldest backlog of each instance have one, at most `DISPATCHER_METRICS_ENDPOINTS_WORST_MAX` (10), and
only while they are among them. An empty panel says that there is no such backlog, that others are worse, or that
Prometheus does not bring `DISPATCHER_OPS_TOKEN` (the chart's `secrets.opsToken`), without which only mode `none` shows
any.
"""
ENDPOINT_CALLS = """\
What any endpoint is doing, with or without a series, the service tells itself, free of charge:

```
grpcurl -plaintext -d '{"name": "tenants/$tenant/endpoints/$endpoint/status"}' \\
  127.0.0.1:50051 webhooks.v1.DeliveryService/GetEndpointStatus
grpcurl -plaintext \\
  -d '{"parent": "tenants/$tenant/endpoints/$endpoint/deliveries/-", "filter": "outcome != SUCCEEDED"}' \\
  127.0.0.1:50051 webhooks.v1.DeliveryService/ListAttempts
```

**Traces**: attempts are spans `POST` with `messaging.destination.name = tenants/$tenant/endpoints/$endpoint`, where the
sampler took them; each links to the Publish call. **Logs**: halts and dead letters are logged with `tenant` and
`endpoint` as uids, which GetTenant and GetEndpoint tell.
"""
TENANT_CALLS = """\
A tenant's backlog, its worst endpoints and how its deliveries have gone of late (GetEndpointStatus tells it of one
endpoint); and its dead letters:

```
grpcurl -plaintext -d '{"name": "tenants/$tenant/status"}' 127.0.0.1:50051 webhooks.v1.DeliveryService/GetTenantStatus
grpcurl -plaintext -d '{"parent": "tenants/$tenant/endpoints/-", "filter": "state = OPEN"}' \\
  127.0.0.1:50051 webhooks.v1.DeadLetterService/ListDeadLetters
```

**Traces**: spans `webhooks.v1.PublisherService/Publish` with `messaging.destination.name = tenants/$tenant`.
"""
ENDPOINTS = Dashboard(
    "dispatcher-endpoint",
    "Dispatcher / endpoint",
    "One endpoint, as far as metrics know it: the worst few have series.",
    {
        "Backlog": [
            words(ONLY_WORST, 5),
            Panel(
                "Deliveries that wait",
                {
                    "{{dispatcher_tenant}}/{{dispatcher_endpoint}}": most(
                        "dispatcher_endpoint_backlog", f"{TENANT},{ENDPOINT}", "dispatcher_tenant, dispatcher_endpoint"
                    )
                },
                width=12,
            ),
            Panel(
                "Age of the oldest",
                {
                    "{{dispatcher_tenant}}/{{dispatcher_endpoint}}": most(
                        "dispatcher_endpoint_backlog_age_seconds",
                        f"{TENANT},{ENDPOINT}",
                        "dispatcher_tenant, dispatcher_endpoint",
                    )
                },
                "s",
                width=12,
            ),
        ],
        "All else": [words(ENDPOINT_CALLS, 10)],
    },
    {
        "tenant": "label_values(dispatcher_endpoint_backlog, dispatcher_tenant)",
        "endpoint": 'label_values(dispatcher_endpoint_backlog{dispatcher_tenant=~"$tenant"}, dispatcher_endpoint)',
    },
)
TENANTS = Dashboard(
    "dispatcher-tenant",
    "Dispatcher / tenant",
    "One tenant, as far as metrics know it: its endpoints that are among the worst few.",
    {
        "Its worst endpoints": [
            words(ONLY_WORST, 5),
            Panel(
                "Deliveries that wait",
                {
                    "{{dispatcher_endpoint}}": most(
                        "dispatcher_endpoint_backlog", TENANT, "dispatcher_tenant, dispatcher_endpoint"
                    )
                },
                width=12,
                stacked=True,
            ),
            Panel(
                "Age of the oldest",
                {
                    "{{dispatcher_endpoint}}": most(
                        "dispatcher_endpoint_backlog_age_seconds", TENANT, "dispatcher_tenant, dispatcher_endpoint"
                    )
                },
                "s",
                width=12,
            ),
        ],
        "All else": [words(TENANT_CALLS, 10)],
    },
    {"tenant": "label_values(dispatcher_endpoint_backlog, dispatcher_tenant)"},
)
DASHBOARDS = {"fleet": FLEET, "endpoint": ENDPOINTS, "tenant": TENANTS}


def render(dashboard: Dashboard) -> str:
    """The JSON that Grafana loads."""
    variables = [_datasource()]
    variables += [_variable("namespace", "label_values(dispatcher_partitions_owned, namespace)")]
    variables += [_variable("job", 'label_values(dispatcher_partitions_owned{namespace=~"$namespace"}, job)')]
    variables += [_variable(name, query) for name, query in dashboard.variables.items()]
    document = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.about,
        "tags": ["dispatcher"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["dispatcher"], "title": "Dispatcher", "asDropdown": True}],
        "templating": {"list": variables},
        "panels": _placed(dashboard.sections),
    }
    return json.dumps(document, indent=2) + "\n"


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "sort": 1,
    }


def _placed(sections: Mapping[str, Sequence[Panel]]) -> list[dict[str, Any]]:
    """Rows of panels from the left to the right, each section under its title."""
    placed: list[dict[str, Any]] = []
    y = 0
    for title, panels in sections.items():
        place = {"x": 0, "y": y, "w": ROW_UNITS, "h": 1}
        placed.append(
            {"id": len(placed) + 1, "type": "row", "title": title, "gridPos": place, "collapsed": False, "panels": []}
        )
        x, y, height = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > ROW_UNITS:
                x, y, height = 0, y + height, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            placed.append(_panel(panel, len(placed) + 1, place))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return placed


def _panel(panel: Panel, number: int, place: Mapping[str, int]) -> dict[str, Any]:
    shared = {"id": number, "type": panel.kind, "title": panel.title, "description": panel.about, "gridPos": place}
    if panel.kind == "text":
        return shared | {"options": {"mode": "markdown", "content": panel.text}}
    targets = [
        {"refId": chr(ord("A") + i), "datasource": DATASOURCE, "expr": query, "legendFormat": legend or "__auto"}
        for i, (legend, query) in enumerate(panel.queries.items())
    ]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.threshold is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.threshold}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.stacked:
        defaults["custom"] = {"stacking": {"mode": "normal"}, "fillOpacity": 30}
    return shared | {
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
    }
