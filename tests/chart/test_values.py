"""values.yaml, its schema, Chart.yaml and the README say the same, and what the service says."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from dispatcher.config import Settings, is_secret, variable_of
from docs.chart import documented_values, render_readme, setting_schema
from tests.support.chart import CHART, CI_VALUES, needs_helm, refusal, render, values_file
from tests.support.readme import ROOT

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
OF_A_PARENT = {"enabled", "global"}
"""Keys that a parent chart adds: in the schema, not among the values."""
SETTINGS = {variable_of(name) for name in Settings.model_fields}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema behind a reference."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return resolved(SCHEMA["definitions"][name]) if name else schema


def differences(values: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Every key that only one of the two has; of Kubernetes' own objects the values may show a part."""
    properties = resolved(schema).get("properties")
    if (
        not isinstance(values, dict)
        or not values
        or properties is None
        or schema.get("$ref", "").endswith("/resources")
    ):
        return
    for key in set(values) ^ set(properties):
        yield f"{path}{key}"
    for key in set(values) & set(properties):
        yield from differences(values[key], properties[key], f"{path}{key}.")


def test_the_schema_has_every_value_and_no_other() -> None:
    assert set(differences(VALUES, SCHEMA)) == OF_A_PARENT


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every part of the schema that names properties."""
    if isinstance(schema, list):
        for each in schema:
            yield from objects(each)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield schema
        for each in schema.values():
            yield from objects(each)


def test_the_schema_is_closed_wherever_it_names_keys() -> None:
    found = list(objects(SCHEMA))
    assert len(found) > 40
    assert [each for each in found if each.get("additionalProperties") is not False] == []


def test_every_value_has_a_comment_and_a_row_in_the_readme() -> None:
    values = list(documented_values((CHART / "values.yaml").read_text()))
    assert len(values) > 120
    readme = (CHART / "README.md").read_text()
    assert all(f"| `{value.path}` |" in readme for value in values)
    assert "{{" not in readme


def test_a_value_without_a_comment_is_found() -> None:
    with pytest.raises(ValueError, match=r"b\.c has no comment"):
        list(documented_values("# -- one\na: 1\nb:\n  c: 2\n"))


def test_a_comment_may_go_over_lines_and_ends_at_its_value() -> None:
    text = "# not this\n\n# -- one\n# and two\na: {b: 1}\n# -- three\nc: []\n"
    assert [(value.path, value.default, value.description) for value in documented_values(text)] == [
        ("a", {"b": 1}, "one and two"),
        ("c", [], "three"),
    ]


def test_the_readme_is_made_of_its_template() -> None:
    assert render_readme() == (CHART / "README.md").read_text()


def test_files_that_the_readme_names_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (CHART / "README.md").read_text()):
        assert (CHART / target).exists(), target
    for name in CI_VALUES:
        assert f"ci/{name}-values.yaml" in (CHART / "README.md").read_text()
        yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text())
    assert {path.name for path in (CHART / "ci").iterdir()} == {f"{name}-values.yaml" for name in CI_VALUES}
    assert values_file("keda").endswith("helm/dispatcher/ci/keda-values.yaml")


def test_the_chart_has_the_project_s_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]
    assert chart["description"] == project["description"]


def test_config_takes_each_setting_within_the_service_s_own_bounds() -> None:
    assert set(SCHEMA["definitions"]["settings"]["properties"]) == SETTINGS
    assert setting_schema("workers") | {"description": ""} == {
        "type": ["integer", "string"],
        "minimum": 1,
        "maximum": 64,
        "pattern": "^[0-9]*$",
        "description": "",
    }
    assert setting_schema("log_level")["enum"] == ["debug", "info", "warning", "error", ""]
    assert setting_schema("egress_allow_http")["enum"] == [True, False, "true", "false", ""]
    assert setting_schema("egress_allowed_ports")["type"] == ["string", "number"]


def elsewhere() -> dict[str, str]:
    """Settings that config may not hold, with what is said of each."""
    template = (CHART / "templates" / "_settings.tpl").read_text()
    block = template.partition('define "dispatcher.settingsElsewhere" -}}')[2].partition("{{- end -}}")[0]
    found: dict[str, str] = yaml.safe_load(block)
    return found


def test_what_config_may_not_hold_are_secrets_and_what_the_chart_sets_itself() -> None:
    assert set(elsewhere()) <= SETTINGS
    secrets = {variable_of(name) for name in Settings.model_fields if is_secret(name)}
    assert {name for name, said in elsewhere().items() if said.startswith("it is a secret")} == secrets
    files = {name for name in SETTINGS if name.endswith("_FILE") and not name.startswith("DISPATCHER_CLIENT_")}
    listens = {name for name in SETTINGS if name.endswith("_LISTEN")}
    assert files | listens <= set(elsewhere())


def test_where_a_setting_goes_instead_is_a_value() -> None:
    paths = {value.path for value in documented_values((CHART / "values.yaml").read_text())}
    for said in elsewhere().values():
        if where := re.search(r"use ([\w.]+)", said):
            assert where[1] in paths, said


@needs_helm
def test_a_setting_of_any_kind_that_is_empty_is_not_set() -> None:
    named = sorted(SETTINGS - set(elsewhere()))
    assert render("minimal", {"config": dict.fromkeys(named, "")}).objects == render("minimal").objects


@needs_helm
@pytest.mark.parametrize("variable", sorted(elsewhere()))
def test_config_may_not_hold_what_has_a_place_of_its_own(variable: str) -> None:
    assert f"config.{variable}: {elsewhere()[variable]}" in refusal({"config": {variable: "none"}})
