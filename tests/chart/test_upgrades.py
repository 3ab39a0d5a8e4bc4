"""What a real helm makes of an upgrade, where a cluster (made up) can be asked what lives there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import (
    CHART,
    HELMS,
    NAME,
    NAMESPACE,
    RELEASE,
    Object,
    Rendered,
    needs_helm,
    render,
    run_helm,
    values_file,
)
from tests.support.commands import TOOLS_REQUIRED
from tests.support.kube_api import cluster

pytestmark = needs_helm
JOB: dict[str, Any] = {"migrations": {"mode": "job"}}


def living(replicas: int) -> Object:
    """The Deployment as it is in the cluster."""
    where = {"name": NAME, "namespace": NAMESPACE}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": where, "spec": {"replicas": replicas}}


def upgraded(
    folder: Path, overlay: Mapping[str, Any], *found: Object, helm: str = "helm", revision: int = 1
) -> Rendered:
    """What helm would send for the release after `revision`."""
    if helm not in HELMS and not TOOLS_REQUIRED:
        pytest.skip(f"{helm} is not installed: `make tools`")
    with cluster(folder, *found, revision=revision) as environment:
        done = run_helm(
            *("upgrade", RELEASE, str(CHART), "--namespace", NAMESPACE, "--dry-run=server", "--no-hooks"),
            *("--values", values_file("minimal"), "--values", "-"),
            helm=helm,
            stdin=yaml.safe_dump(dict(overlay)),
            cluster=environment,
        )
    assert done.returncode == 0, done.stderr
    assert f"REVISION: {revision + 1}\n" in done.stdout
    manifest = done.stdout.partition("MANIFEST:\n")[2].partition("\nNOTES:\n")[0]
    return Rendered(tuple(each for each in yaml.safe_load_all(manifest) if each))


@pytest.mark.parametrize("helm", ["helm", "helm3"])
@pytest.mark.parametrize("mode", ["hpa", "keda"])
def test_a_fleet_that_a_scaler_takes_over_keeps_its_pods(mode: str, helm: str, tmp_path: Path) -> None:
    scaled: dict[str, Any] = {"autoscaling": {"mode": mode}, "replicaCount": 3}
    for replicas in (9, 0):
        assert upgraded(tmp_path, scaled, living(replicas), helm=helm).one("Deployment")["spec"]["replicas"] == replicas
    assert "replicas" not in upgraded(tmp_path, scaled, helm=helm).one("Deployment")["spec"]
    assert upgraded(tmp_path, {"replicaCount": 3}, living(9), helm=helm).one("Deployment")["spec"]["replicas"] == 3


def job_name(rendered: Rendered) -> str:
    (job,) = rendered.all("Job")
    found: str = job["metadata"]["name"]
    return found


@pytest.mark.parametrize("helm", ["helm", "helm3"])
def test_each_release_migrates_by_a_job_of_its_own_so_that_one_that_failed_is_tried_again(
    helm: str, tmp_path: Path
) -> None:
    names = {job_name(upgraded(tmp_path, JOB, helm=helm, revision=revision)) for revision in (4, 4, 5)}
    assert len(names) == 2


@pytest.mark.parametrize(
    "changed",
    [{"secrets": {"revision": "2"}}, {"migrations": {"backoffLimit": 9}}, {"migrations": {"activeDeadlineSeconds": 9}}],
)
def test_where_nothing_counts_releases_a_changed_value_makes_another_job(changed: dict[str, Any]) -> None:
    overlay = {key: {**JOB.get(key, {}), **value} for key, value in {**JOB, **changed}.items()}
    assert job_name(render("minimal", overlay)) != job_name(render("minimal", JOB))
    same = {**JOB, "autoscaling": {"maxReplicas": 7}}
    assert job_name(render("minimal", same)) == job_name(render("minimal", JOB))
