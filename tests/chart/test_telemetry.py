"""Monitors, alert rules and dashboards: what is in rules/ and dashboards/ reaches the cluster unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import CHART, NAME, Object, check_custom, needs_helm, refusal, render
from tests.support.readme import ROOT

pytestmark = needs_helm
ON: dict[str, Any] = {
    "monitoring": {
        "monitor": "podMonitor",
        "labels": {"release": "prometheus"},
        "rules": {"enabled": True},
        "dashboards": {"enabled": True, "annotations": {"folder": "Webhooks"}},
    }
}
RULES = """\
# A comment, and Prometheus' own templates.
groups:
  - name: deliveries
    rules:
      - alert: DeliveriesAreLate
        expr: max(dispatcher_backlog_age_seconds) > 300
        for: 5m
        labels: {severity: page}
        annotations:
          summary: "{{ $labels.namespace }} is {{ $value | humanizeDuration }} late"
"""
DASHBOARD = '{"title": "Fleet", "panels": [{"targets": [{"legendFormat": "{{pod}}"}]}]}\n'


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The chart without any rule or dashboard."""
    return Path(shutil.copytree(CHART, tmp_path / "dispatcher", ignore=shutil.ignore_patterns("rules", "dashboards")))


@pytest.fixture
def filled(bare: Path) -> Path:
    """The chart with one of each."""
    for path, text in (("rules/slo.yaml", RULES), ("dashboards/fleet.json", DASHBOARD)):
        (bare / path).parent.mkdir()
        (bare / path).write_text(text)
    return bare


def test_a_rule_file_becomes_a_prometheus_rule_with_its_own_templates_untouched(filled: Path) -> None:
    rule = render("minimal", ON, chart=filled).one("PrometheusRule", "-slo")
    check_custom(rule)
    assert rule["spec"] == yaml.safe_load(RULES)
    assert rule["metadata"]["labels"]["release"] == "prometheus"


def test_a_dashboard_becomes_a_config_map_of_its_own_byte_by_byte(filled: Path) -> None:
    found = render("minimal", ON, chart=filled).one("ConfigMap", "-dashboard-fleet")
    assert found["data"] == {"dispatcher-fleet.json": DASHBOARD}
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"folder": "Webhooks"}


def test_without_any_file_there_is_nothing_to_wrap(bare: Path) -> None:
    rendered = render("minimal", ON, chart=bare)
    assert rendered.all("PrometheusRule") == []
    assert len(rendered.all("ConfigMap")) == 2


def test_a_file_that_is_no_rule_file_is_refused(filled: Path) -> None:
    (filled / "rules" / "slo.yaml").write_text("rules: []\n")
    assert "rules/slo.yaml has no groups" in refusal(ON, chart=filled)


def wrapped(kind: str, prefix: str) -> list[Object]:
    return [found for found in render("minimal", ON).all(kind) if found["metadata"]["name"].startswith(prefix)]


def test_every_file_that_the_chart_ships_is_wrapped() -> None:
    rules = sorted((CHART / "rules").glob("*.yaml"))
    found = {rule["metadata"]["name"]: rule for rule in wrapped("PrometheusRule", NAME)}
    assert set(found) == {f"{NAME}-{path.stem}" for path in rules}
    for path in rules:
        check_custom(found[f"{NAME}-{path.stem}"])
        assert found[f"{NAME}-{path.stem}"]["spec"]["groups"] == yaml.safe_load(path.read_text())["groups"]
    dashboards = sorted((CHART / "dashboards").glob("*.json"))
    shown = wrapped("ConfigMap", f"{NAME}-dashboard-")
    assert {next(iter(each["data"])) for each in shown} == {f"dispatcher-{path.name}" for path in dashboards}
    for path, each in zip(dashboards, sorted(shown, key=lambda each: each["metadata"]["name"]), strict=True):
        assert json.loads(each["data"][f"dispatcher-{path.name}"]) == json.loads(path.read_text())


def test_a_runbook_is_a_link_where_it_is_said_where_they_are() -> None:
    base = "https://git.example.com/dispatcher/blob/main"
    overlay = {"monitoring": {"rules": {"enabled": True, "runbookBaseUrl": base}}}
    found = {
        rule["metadata"]["name"]: rule["spec"]["groups"] for rule in render("minimal", overlay).all("PrometheusRule")
    }
    linked = 0
    for path in sorted((CHART / "rules").glob("*.yaml")):
        groups = yaml.safe_load(path.read_text())["groups"]
        for rule in (
            rule for group in groups for rule in group["rules"] if "runbook_url" in rule.get("annotations", {})
        ):
            assert (ROOT / rule["annotations"]["runbook_url"]).is_file()
            rule["annotations"]["runbook_url"] = f"{base}/{rule['annotations']['runbook_url']}"
            linked += 1
        assert found[f"{NAME}-{path.stem}"] == groups  # and nothing else is another
    assert linked > 10


def test_nothing_of_it_is_there_unless_it_is_asked_for() -> None:
    rendered = render()
    assert rendered.all("PodMonitor", "ServiceMonitor", "PrometheusRule") == []
    assert not any("dashboard" in found["metadata"]["name"] for found in rendered.objects)


@pytest.mark.parametrize(("monitor", "kind"), [("podMonitor", "PodMonitor"), ("serviceMonitor", "ServiceMonitor")])
def test_the_monitor_brings_the_token_for_metrics_that_name_a_tenant(monitor: str, kind: str) -> None:
    overlay = {"monitoring": {"monitor": monitor}, "secrets": {"opsToken": {"key": "ops-token"}}}
    spec = render("minimal", overlay).one(kind)["spec"]
    (endpoint,) = spec.get("podMetricsEndpoints") or spec["endpoints"]
    assert endpoint["authorization"] == {
        "type": "Bearer",
        "credentials": {"name": "dispatcher", "key": "ops-token"},
    }
    assert endpoint["path"] == "/metrics"
    without = render("minimal", {"monitoring": {"monitor": monitor}}).one(kind)["spec"]
    assert "authorization" not in (without.get("podMetricsEndpoints") or without["endpoints"])[0]


def test_spans_and_metrics_say_which_pod_they_are_of() -> None:
    entries = {entry["name"]: entry for entry in render().container["env"]}
    assert entries["OTEL_RESOURCE_ATTRIBUTES"]["value"] == (
        "k8s.namespace.name=$(POD_NAMESPACE),k8s.pod.name=$(POD_NAME)"
    )
    names = list(entries)
    assert names.index("POD_NAME") < names.index("OTEL_RESOURCE_ATTRIBUTES")  # or it would not be expanded
    attributes = "deployment.environment.name=prod"
    own = render("minimal", {"config": {"OTEL_RESOURCE_ATTRIBUTES": attributes}})
    assert "OTEL_RESOURCE_ATTRIBUTES" not in {entry["name"] for entry in own.container["env"]}
    more = render("minimal", {"extraEnv": [{"name": "OTEL_RESOURCE_ATTRIBUTES", "value": attributes}]})
    values = [each["value"] for each in more.container["env"] if each["name"] == "OTEL_RESOURCE_ATTRIBUTES"]
    assert values == [attributes]
