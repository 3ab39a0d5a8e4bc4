"""Every set of values renders, by every helm, and what it renders is what Kubernetes and its extensions take."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.chart import (
    CHART,
    CI_VALUES,
    HELMS,
    NAMESPACE,
    check_custom,
    custom_schemas,
    needs_helm,
    render,
    rendered_text,
    run_helm,
    schema_of,
    values_file,
)
from tests.support.commands import TOOLS_REQUIRED

pytestmark = needs_helm
KUBE_VERSIONS = ("1.27", "1.30", "1.34", "1.37")
"""The oldest that Chart.yaml takes, the first with a preStop `sleep`, a middle one, the newest that is known."""


@pytest.mark.parametrize("helm", ["helm", "helm3"])
@pytest.mark.parametrize("name", CI_VALUES)
def test_lint_finds_nothing(name: str, helm: str) -> None:
    if helm not in HELMS and not TOOLS_REQUIRED:
        pytest.skip(f"{helm} is not installed: `make tools`")
    done = run_helm("lint", "--strict", str(CHART), "--values", values_file(name), helm=helm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("name", CI_VALUES)
def test_helm_3_and_helm_4_render_the_same(name: str) -> None:
    if "helm3" not in HELMS and not TOOLS_REQUIRED:
        pytest.skip("helm3 is not installed: `make tools`")
    texts = [rendered_text(name, helm) for helm in ("helm", "helm3")]
    documents = [sorted(part.strip() for part in text.split("---\n") if part.strip()) for text in texts]
    assert documents[0] == documents[1]


@pytest.mark.parametrize("kube", KUBE_VERSIONS)
@pytest.mark.parametrize("name", CI_VALUES)
def test_kubernetes_takes_every_object_to_the_last_field(name: str, kube: str) -> None:
    own = [found for found in render(name, kube=f"{kube}.0").objects if schema_of(found) is None]
    assert len(own) > 6
    for found in own:
        kubernetes_validate.validate(found, kube, strict=True)


@pytest.mark.parametrize("name", CI_VALUES)
def test_custom_resources_have_known_fields_only_and_all_that_are_required(name: str) -> None:
    for found in render(name).objects:
        if schema_of(found) is not None:
            check_custom(found)


def test_every_custom_kind_is_rendered_by_some_set_of_values() -> None:
    rendered = {f"{found['apiVersion']}/{found['kind']}" for name in CI_VALUES for found in render(name).objects}
    rule = "monitoring.coreos.com/v1/PrometheusRule"  # there once rules/ holds a file: test_telemetry.py
    assert set(custom_schemas()) - rendered - {rule} == set()


@pytest.mark.parametrize("where", [("typo",), ("scaleTargetRef", "typo")])
def test_an_unknown_field_of_a_custom_resource_is_found(where: tuple[str, ...]) -> None:
    scaled = copy.deepcopy(render("keda").one("ScaledObject"))
    inner = scaled["spec"]
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = 1
    with pytest.raises(jsonschema.ValidationError, match="typo"):
        check_custom(scaled)


def test_an_unknown_field_of_kubernetes_own_is_found() -> None:
    service = copy.deepcopy(render().one("Service"))
    service["spec"]["sesionAffinity"] = "None"
    with pytest.raises(kubernetes_validate.ValidationError, match="sesionAffinity"):
        kubernetes_validate.validate(service, KUBE_VERSIONS[-1], strict=True)


def test_the_package_renders_what_the_folder_does(tmp_path: Path) -> None:
    packed = run_helm("package", str(CHART), "--destination", str(tmp_path))
    assert packed.returncode == 0, packed.stderr
    (archive,) = tmp_path.glob("dispatcher-*.tgz")
    for name in CI_VALUES:
        assert render(name, chart=archive).objects == render(name).objects


def test_as_part_of_another_chart_it_bears_what_that_adds(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(CHART, parent / "charts" / "dispatcher")
    dependency = {"name": "dispatcher", "version": "0.1.0", "condition": "dispatcher.enabled"}
    chart = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(chart))
    own = yaml.safe_load(Path(values_file("minimal")).read_text())
    values = {"global": {"region": "eu"}, "dispatcher": {**own, "enabled": True}}
    (parent / "values.yaml").write_text(yaml.safe_dump(values))
    done = run_helm("template", "d", str(parent))
    assert done.returncode == 0, done.stderr
    assert "kind: Deployment" in done.stdout


NUMBERS: dict[str, Any] = {
    "fullnameOverride": "hooks",
    "priorityClassName": "1",
    "replicaCount": 2,
    "image": {"repository": "1", "tag": "2"},
    "podLabels": {"a": "1"},
    "auth": {"policy": None, "policyConfigMap": "2024"},
    "tls": {"secretName": ""},
    "secrets": {"opsToken": {"secretName": "3", "key": "4"}, "databasePassword": {"secretName": "5", "key": "6"}},
    "serviceAccount": {"create": True, "name": "8"},
    "istio": {"namespace": "123"},
    "linkerd": {"namespace": "124"},
    "egress": {"gateway": {"namespace": "125", "service": "126"}},
    "cnpg": {"enabled": True, "imageName": "17", "storage": {"size": "20", "storageClass": "9"}},
    "grpcRoute": {"enabled": True, "parentRefs": [{"name": "1"}]},
    "monitoring": {"labels": {"release": "1"}, "dashboards": {"labelValue": "2"}},
}
MODES: dict[str, dict[str, Any]] = {
    "minimal": {"tls": {"secretName": "7"}, "grpcRoute": {"enabled": False}, "migrations": {"mode": "job"}},
    "istio": {"autoscaling": {"mode": "hpa"}},
    "linkerd": {"autoscaling": {"mode": "keda"}, "monitoring": {"monitor": "serviceMonitor"}},
    "keda": {"migrations": {"mode": "job"}},
}
VAULT: dict[str, Any] = {
    "secrets": {
        "existingSecret": "",
        "externalSecret": {
            "enabled": True,
            "refreshInterval": "0",
            "store": {"name": "11"},
            "data": {"database-url": {"key": "1"}, "secret-keys": {"key": "2"}, "tokens.yaml": {"key": "3"}},
        },
    }
}


@pytest.mark.parametrize("name", [*MODES, "vault"])
def test_a_text_that_looks_like_a_number_stays_a_text(name: str, tmp_path: Path) -> None:
    files = [values_file("minimal" if name == "vault" else name)]
    for part, values in enumerate([NUMBERS, MODES.get(name, {}), VAULT if name == "vault" else {}]):
        (tmp_path / f"{part}.yaml").write_text(yaml.safe_dump(values))
        files.append(str(tmp_path / f"{part}.yaml"))
    given = [argument for file in files for argument in ("--values", file)]
    done = run_helm("template", "2024", str(CHART), "--namespace", "2025", "--kube-version", "1.37.0", *given)
    assert done.returncode == 0, done.stderr
    for found in (each for each in yaml.safe_load_all(done.stdout) if each):
        assert found["metadata"]["namespace"] == "2025"
        assert found["metadata"]["labels"]["app.kubernetes.io/instance"] == "2024"
        assert isinstance(found["metadata"]["name"], str)
        if schema_of(found) is None:
            kubernetes_validate.validate(found, "1.37", strict=True)
        else:
            check_custom(found)


def test_a_release_whose_name_no_service_can_have_is_refused() -> None:
    done = run_helm("template", "2024", str(CHART), "--values", values_file("minimal"))
    assert "2024-dispatcher begins with no letter" in done.stderr
    dotted = ["template", "a.b", str(CHART), "--values", values_file("minimal")]
    assert "a.b-dispatcher has a dot" in run_helm(*dotted).stderr
    assert run_helm(*dotted, "--set", "fullnameOverride=hooks").returncode == 0


@pytest.mark.parametrize("name", CI_VALUES)
def test_no_two_objects_are_the_same_and_all_are_in_the_release_s_namespace(name: str) -> None:
    objects = render(name).objects
    keys = [(found["apiVersion"], found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(keys) == len(set(keys))
    assert {found["metadata"]["namespace"] for found in objects} == {NAMESPACE}
    for found in objects:
        assert len(found["metadata"]["name"]) <= 63
        assert found["metadata"]["labels"]["app.kubernetes.io/instance"] == "d"
