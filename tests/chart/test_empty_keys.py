"""A key that is left empty: helm takes it out of the defaults, and a template would read it as 0, false or nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from docs.chart import EMPTIED_BY_NULL
from tests.support.chart import CHART, needs_helm, nested, refusal, render, values_file

Keys = tuple[str, ...]

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
VALIDATOR = jsonschema.Draft7Validator(json.loads((CHART / "values.schema.json").read_text()))
ASSIGNED_BY_THE_PLATFORM = {"podSecurity.runAsUser", "podSecurity.runAsGroup", "podSecurity.fsGroup"}
TAKEN_AWAY = ("resources.", "migrations.resources.")
"""Kubernetes' own: a limit that is null is not there."""


def paths(values: dict[str, Any], above: Keys = ()) -> Iterator[Keys]:
    """Every key of values.yaml that has a default."""
    for key, value in values.items():
        if value is not None:
            yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


def merged(values: Any, over: Any) -> Any:
    """Two sets of values, as helm lays one over the other."""
    if not isinstance(values, dict) or not isinstance(over, dict):
        return over
    return values | {key: merged(values.get(key), value) for key, value in over.items()}


def without(values: dict[str, Any], path: Keys) -> dict[str, Any]:
    """The values that helm checks where this key is null."""
    found = copy.deepcopy(values)
    level = found
    for key in path[:-1]:
        level = level[key]
    del level[path[-1]]
    return found


ALL: dict[str, Any] = {"cnpg": {"enabled": True}, "monitoring": {"dashboards": {"enabled": True}}}
MINIMAL = merged(VALUES, yaml.safe_load(Path(values_file("minimal")).read_text()))


def test_every_key_that_has_a_default_is_refused_where_it_is_empty() -> None:
    VALIDATOR.validate(MINIMAL)
    taken = set()
    for path in paths(VALUES):
        said = [error.message for error in VALIDATOR.iter_errors(without(MINIMAL, path))]
        if not any(f"{path[-1]!r} is a required property" in each for each in said):
            taken.add(".".join(path))
    below = {path for path in taken if path.startswith(TAKEN_AWAY)}
    assert below == {
        f"{prefix}{rest}"
        for prefix in TAKEN_AWAY
        for rest in ("requests", "requests.cpu", "requests.memory", "limits", "limits.memory")
    }
    # The selector of a gateway is a map of one's own, and may not be empty.
    assert taken - below == EMPTIED_BY_NULL | ASSIGNED_BY_THE_PLATFORM | {"egress.gateway.selector.istio"}


@needs_helm
@pytest.mark.parametrize(
    "path",
    [
        "replicaCount",
        "listenHost",
        "config",
        "podLabels",
        "autoscaling.minReplicas",
        "shutdown.preStop",
        "shutdown.preStop.seconds",
        "service.port",
        "networkPolicy.enabled",
        "networkPolicy.database.port",
        "migrations.mode",
        "secrets.opsToken.key",
        "podSecurity",
        "resources",
        "egress.gateway.selector.istio",
    ],
)
def test_helm_names_the_key_that_is_empty(path: str) -> None:
    above, _, key = path.rpartition(".")
    told = refusal(nested(path, None))
    assert f"at '/{above.replace('.', '/')}'" in told if above else "at ''" in told
    assert f"missing property '{key}'" in told or "minProperties: got 0, want 1" in told


@needs_helm
@pytest.mark.parametrize("path", sorted(EMPTIED_BY_NULL - {"auth.policy"}))
def test_a_map_that_may_be_empty_is_rendered_as_if_it_were_not_named(path: str) -> None:
    assert render("istio", merged(ALL, nested(path, None))).objects == render("istio", ALL).objects


@needs_helm
def test_null_takes_away_what_another_file_said() -> None:
    said = render("minimal", {"auth": {"policy": None, "policyConfigMap": "p"}, "resources": {"limits": None}})
    assert not said.has("ConfigMap", "-access")
    assert set(said.container["resources"]) == {"requests"}
    assert "runAsUser" not in render("minimal", nested("podSecurity.runAsUser", None)).pod["spec"]["securityContext"]
