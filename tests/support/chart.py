"""The chart, rendered by a real helm as an operator would; nothing is sent to a cluster.

A machine without helm skips these tests and says why. `.ci/run` sets DISPATCHER_TEST_TOOLS=required: there they fail.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.commands import TOOLS_REQUIRED
from tests.support.readme import ROOT

CHART = ROOT / "helm" / "dispatcher"
SCHEMAS = ROOT / "tests" / "chart" / "schemas"
CI_VALUES = ("minimal", "production", "istio", "linkerd", "keda")
RELEASE, NAMESPACE = "d", "webhooks"
NAME = "d-dispatcher"
KUBE_VERSION = "1.37.0"
HELM_TIMEOUT_S = 60.0
_PATH = f"{ROOT / '.tools'}:{os.environ['PATH']}"
HELMS: Mapping[str, str] = {name: found for name in ("helm", "helm3") if (found := shutil.which(name, path=_PATH))}
"""Those that are here. helm3 is helm's third version beside the fourth."""
needs_helm = pytest.mark.skipif(
    "helm" not in HELMS and not TOOLS_REQUIRED, reason="helm is not installed: `make tools`"
)

Object = dict[str, Any]


class OnceLoader(yaml.SafeLoader):
    """Refuses a mapping that holds a key twice, as server-side apply does; PyYAML's own takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is there twice: {sorted(keys)}"
        return super().construct_mapping(node, deep)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The objects of one rendering, in the order of helm's output."""

    objects: tuple[Object, ...]

    def all(self, *kinds: str) -> list[Object]:
        """Every object of these kinds."""
        return [found for found in self.objects if found["kind"] in kinds]

    def one(self, kind: str, suffix: str = "") -> Object:
        """The object of a kind by the end of its name."""
        (found,) = (each for each in self.all(kind) if each["metadata"]["name"] == NAME + suffix)
        return found

    def has(self, kind: str, suffix: str = "") -> bool:
        """Whether there is such an object."""
        return any(each["metadata"]["name"] == NAME + suffix for each in self.all(kind))

    @property
    def pod(self) -> Object:
        """The template of the pods that serve."""
        template: Object = self.one("Deployment")["spec"]["template"]
        return template

    @property
    def container(self) -> Object:
        """Their only container."""
        (container,) = self.pod["spec"]["containers"]
        found: Object = container
        return found

    @property
    def settings(self) -> dict[str, str]:
        """What the ConfigMap tells the service."""
        data: dict[str, str] = self.one("ConfigMap")["data"]
        return data

    @property
    def annotations(self) -> dict[str, str]:
        """Annotations of the pods that serve."""
        found: dict[str, str] = self.pod["metadata"]["annotations"]
        return found


def run_helm(
    *arguments: str, helm: str = "helm", stdin: str = "", cluster: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run helm without any cluster within its reach, save for one that is made up (`kube_api`)."""
    assert helm in HELMS, f"{helm} is not installed: `make tools`"
    command = [HELMS[helm], *arguments]
    environment = {**os.environ, "KUBECONFIG": "/nonexistent", **(cluster or {})}
    return subprocess.run(
        command, env=environment, input=stdin, capture_output=True, text=True, timeout=HELM_TIMEOUT_S, check=False
    )


def values_file(name: str) -> str:
    """The path of one of the chart's sets of values."""
    return str(CHART / "ci" / f"{name}-values.yaml")


def render(
    name: str = "minimal", overlay: Mapping[str, Any] | None = None, *, kube: str = KUBE_VERSION, chart: Path = CHART
) -> Rendered:
    """What `helm template` makes of a set of values, with others laid over."""
    return Rendered(tuple(_documents(name, yaml.safe_dump(dict(overlay or {})), kube, chart, "helm")))


@functools.lru_cache(maxsize=256)
def _documents(name: str, overlay: str, kube: str, chart: Path, helm: str) -> tuple[Object, ...]:
    done = _template(name, overlay, kube, chart, helm)
    assert done.returncode == 0, done.stderr
    return tuple(found for found in yaml.load_all(done.stdout, OnceLoader) if found)


def rendered_text(name: str, helm: str) -> str:
    """The very output of one helm."""
    done = _template(name, "{}", KUBE_VERSION, CHART, helm)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(overlay: Mapping[str, Any], name: str = "minimal", *, kube: str = KUBE_VERSION, chart: Path = CHART) -> str:
    """What helm says where it must not render."""
    done = _template(name, yaml.safe_dump(dict(overlay)), kube, chart, "helm")
    assert done.returncode != 0, "it was rendered"
    return done.stderr


def _template(name: str, overlay: str, kube: str, chart: Path, helm: str) -> subprocess.CompletedProcess[str]:
    target = [RELEASE, str(chart), "--namespace", NAMESPACE, "--kube-version", kube]
    return run_helm("template", *target, "--values", values_file(name), "--values", "-", helm=helm, stdin=overlay)


def nested(path: str, value: Any) -> dict[str, Any]:
    """An overlay that sets one key, by its path with dots."""
    for key in reversed(path.split(".")):
        value = {key: value}
    overlay: dict[str, Any] = value
    return overlay


def notes(name: str, overlay: Mapping[str, Any] | None = None) -> str:
    """What an operator reads after the installation."""
    done = run_helm(
        *("install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--dry-run=client"),
        *("--values", values_file(name), "--values", "-"),
        stdin=yaml.safe_dump(dict(overlay or {})),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:\n")[2]


@functools.cache
def custom_schemas() -> dict[str, Any]:
    """By `apiVersion/kind`: the closed schema of a custom resource's spec."""
    found: dict[str, Any] = {}
    for path in sorted(SCHEMAS.glob("*.yaml")):
        page = closed(yaml.safe_load(path.read_text()))
        for kind, schema in page["kinds"].items():
            found[kind] = {**schema, "definitions": page.get("definitions", {})}
    return found


def closed(schema: Any) -> Any:
    """The schema with every object that names its properties closed to others."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        inner |= {"type": "object", "additionalProperties": False}
    return inner


def schema_of(found: Object) -> Any | None:
    """The schema of a custom resource; None for Kubernetes' own."""
    return custom_schemas().get(f"{found['apiVersion']}/{found['kind']}")


def check_custom(found: Object) -> None:
    """Raises jsonschema.ValidationError."""
    assert set(found) == {"apiVersion", "kind", "metadata", "spec"}
    jsonschema.Draft202012Validator(schema_of(found)).validate(found["spec"])
