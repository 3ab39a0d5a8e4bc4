"""Rules, dashboards and runbooks name what the code emits, and each other."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.config import Settings, variable_of
from dispatcher.telemetry.catalog import METRICS
from docs.dashboards import DASHBOARDS, render
from tests.support.measures import exposition
from tests.support.promql import read
from tests.support.promtool import alerts, rules
from tests.support.readme import ROOT

FOLDER = ROOT / "helm" / "dispatcher" / "dashboards"
RUNBOOKS = ROOT / "docs" / "runbooks"
PAGES = sorted(RUNBOOKS.glob("*.md"))
SCRAPED = {"namespace", "job", "instance", "pod", "worker"}
"""Labels that are not the metrics' own: of the scrape, and of a supervisor's page."""
SEVERITIES = {"critical", "warning", "info"}
HEADINGS = ["## What it means", "## See it", "## Do", "## It is over when"]
SERIES = re.compile(r"\b(?:dispatcher|rpc_server|db_client)_[a-z_]+\b")
GAUGES_AS_COUNTERS = re.compile(r"_(?:bucket|count|sum)$")


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of rules and dashboards, with where it is from."""
    for rule in rules():
        yield str(rule.get("alert") or rule["record"]), rule["expr"]
    for name, dashboard in DASHBOARDS.items():
        for panels in dashboard.sections.values():
            for panel in panels:
                for query in panel.queries.values():
                    yield f"{name}: {panel.title}", query


@pytest.mark.parametrize(("where", "text"), [pytest.param(*each, id=each[0]) for each in expressions()])
def test_an_expression_names_only_what_the_service_emits(where: str, text: str) -> None:
    emitted, found = exposition(), read(text)
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    own = found.names - recorded - {"up"}
    assert found.names, where
    assert own <= emitted.labels.keys()
    known = SCRAPED | {"le"} | {label for name in own for label in emitted.labels[name]}
    assert found.grouped <= known
    for name, label, operator, value in found.matchers:
        assert label in emitted.labels[name] | SCRAPED, f"{name} has no {label}"
        if operator == "=" and label not in SCRAPED:
            assert value in emitted.values[name, label], f"{label} of {name} is never {value}"


def test_a_name_that_is_not_emitted_is_found_out() -> None:
    found = read(
        'sum by (namespace, no_such) (rate(dispatcher_deliveries_total{no_label="x"}[5m])) / dispatcher_lans > 1'
    )
    assert found.names - exposition().labels.keys() == {"dispatcher_lans"}
    assert found.grouped - SCRAPED == {"no_such"}
    assert found.matchers == (("dispatcher_deliveries_total", "no_label", "=", "x"),)


@pytest.mark.parametrize("text", ["x{a=b}", "sum(x{a='b'})", 'x{a="b" c="d"}', '{__name__="x"}'])
def test_what_is_not_understood_is_not_passed_over(text: str) -> None:
    with pytest.raises(ValueError, match="not"):
        read(text)


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in SEVERITIES
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert annotations["summary"].endswith(".")
    assert (ROOT / annotations["runbook_url"]).is_file()


def test_every_runbook_has_an_alert() -> None:
    named = {Path(rule["annotations"]["runbook_url"]).name for rule in alerts().values()}
    assert named == {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_answers_the_four_questions(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert lines[0] == f"# {page.stem}"
    assert [line for line in lines if line.startswith("## ")] == HEADINGS
    for heading in HEADINGS:
        assert page.read_text().partition(heading)[2].partition("\n## ")[0].strip(), f"nothing under {heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_names_what_exists(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"\bDISPATCHER_[A-Z_]+[A-Z]\b", text)) <= {
        variable_of(name) for name in Settings.model_fields
    }
    known = exposition().labels.keys() | {label for labels in exposition().labels.values() for label in labels}
    named = set(SERIES.findall(text)) - {"dispatcher_"}
    histograms = {GAUGES_AS_COUNTERS.sub("", name) for name in known if name.endswith("_bucket")}
    prefixes = {name for name in named if f"^{name}" in text}  # what a grep looks for
    assert {name for name in named - prefixes if name not in known | histograms} == set()
    assert all(any(known_name.startswith(name) for known_name in known) for name in prefixes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_links_to_what_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, wanted = target.partition("#")
        file = page.parent / path
        assert file.is_file(), target
        headings = [line.lstrip("# ") for line in file.read_text().splitlines() if line.startswith("#")]
        anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not wanted or wanted in anchors, target


def test_what_the_log_is_said_to_say_is_said() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src" / "dispatcher").rglob("*.py"))
    pages = " ".join(" ".join(page.read_text() for page in PAGES).split())
    said = {words for words in re.findall(r"`([a-z]+(?: [a-z]+){2,})`", pages) if not words.startswith("kubectl")}
    assert len(said) > 6
    assert {words for words in said if words not in source} == set()


def texts() -> Iterator[tuple[str, str]]:
    """Runbooks and dashboards, which show commands."""
    yield from ((page.stem, page.read_text()) for page in PAGES)
    yield from ((name, render(dashboard)) for name, dashboard in DASHBOARDS.items())


@pytest.mark.parametrize(("where", "text"), [pytest.param(*each, id=each[0]) for each in texts()])
def test_calls_that_are_shown_exist(where: str, text: str) -> None:
    for package, service, method in re.findall(r"\b(webhooks(?:\.admin)?\.v1)\.(\w+Service)/(\w+)", text):
        assert method in methods_of(package, service), f"{where}: {service}/{method}"


def methods_of(package: str, service: str) -> set[str]:
    names = ("admin",) if package == "webhooks.admin.v1" else (
        "dead_letter", "delivery", "endpoint", "event_type", "publisher", "replay", "tenant"
    )  # fmt: skip
    for name in names:
        found = importlib.import_module(f"{package}.{name}_pb2").DESCRIPTOR.services_by_name.get(service)
        if found is not None:
            return {method.name for method in found.methods}
    return set()


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_what_its_generator_says(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == render(DASHBOARDS[name]), "run `make docs`"
    assert {file.stem for file in FOLDER.glob("*.json")} == set(DASHBOARDS)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_laid_out_without_overlap_and_asks_the_chosen_source(name: str) -> None:
    document = json.loads(render(DASHBOARDS[name]))
    taken: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            assert 'namespace=~"$namespace"' in target["expr"]
    ids = [panel["id"] for panel in document["panels"]]
    assert len(ids) == len(set(ids))
    assert variables_used(document) <= {variable["name"] for variable in document["templating"]["list"]}


def variables_used(document: Any) -> set[str]:
    return set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(document["panels"])))


def test_endpoints_are_named_only_where_a_page_says_that_few_are() -> None:
    for name, dashboard in DASHBOARDS.items():
        queries = [
            query for panels in dashboard.sections.values() for panel in panels for query in panel.queries.values()
        ]
        texts = [panel.text for panels in dashboard.sections.values() for panel in panels]
        if name != "fleet":
            assert all("dispatcher_endpoint_backlog" in query for query in queries)
            assert any("No metric has a series for each tenant or endpoint" in text for text in texts)


def test_the_table_says_of_each_metric_what_to_do() -> None:
    for metric in METRICS:
        assert metric.action.endswith((".", "?")), metric.name
        assert len(metric.action) <= 200, metric.name
