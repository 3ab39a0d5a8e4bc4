"""The pods: what they may, how they start and end, and that the service understands what they tell it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from dispatcher.config import SERVE_REQUIRES, Settings, is_secret, variable_of
from dispatcher.security.access import load_access
from dispatcher.store.migrate import LOCK_WAIT_S
from dispatcher.telemetry import ExportPlan
from tests.support.chart import CI_VALUES, NAME, Object, Rendered, needs_helm, render
from tests.support.chart_pods import DSN, MOUNTED, with_files
from tests.support.readme import ROOT

pytestmark = needs_helm


def pod_specs(rendered: Rendered) -> Iterator[tuple[str, Object]]:
    """Every pod that the chart makes, by its component."""
    for found in rendered.all("Deployment", "Job"):
        template = found["spec"]["template"]
        yield template["metadata"]["labels"]["app.kubernetes.io/component"], template["spec"]


def containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", ()), *spec["containers"]]


@pytest.mark.parametrize("name", CI_VALUES)
def test_the_service_takes_the_settings_that_are_rendered(name: str, tmp_path: Path) -> None:
    made = with_files(render(name), tmp_path)
    settings = Settings.load(made, required=SERVE_REQUIRES)
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == DSN
    access = load_access(settings)
    assert (access.policy is None) == (settings.auth_mode == "none")
    ExportPlan.load(made)


def test_the_file_of_a_setting_that_the_service_does_not_know_would_be_found(tmp_path: Path) -> None:
    rendered = render("minimal", {"secrets": {"databasePassword": {"key": "password"}}})
    made = with_files(rendered, tmp_path)
    assert Settings.load(made).database_password_file == str(tmp_path / "secrets" / "database-password")


@pytest.mark.parametrize("name", CI_VALUES)
def test_no_secret_is_in_a_config_map_or_in_the_environment(name: str) -> None:
    rendered = render(name)
    secrets = {variable_of(setting) for setting in Settings.model_fields if is_secret(setting)}
    assert rendered.all("Secret") == []
    for found in rendered.all("ConfigMap"):
        assert secrets & set(found["data"]) == set()
    for _, spec in pod_specs(rendered):
        for container in containers(spec):
            assert secrets & {entry["name"] for entry in container["env"]} == set()


@pytest.mark.parametrize("name", CI_VALUES)
def test_every_mounted_secret_is_named_with_its_key_and_every_named_file_is_mounted(name: str) -> None:
    rendered = render(name)
    for _, spec in pod_specs(rendered):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        paths = {
            item["path"] for source in volumes["secrets"]["projected"]["sources"] for item in source["secret"]["items"]
        }
        for container in containers(spec):
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            named = {
                entry["value"].rpartition("/")[2]
                for entry in container["env"]
                if entry.get("value", "").startswith(f"{MOUNTED}/secrets/")
            }
            assert named <= paths
            assert named == paths or container["name"] == "migrate"


@pytest.mark.parametrize("name", CI_VALUES)
def test_every_container_keeps_to_the_restricted_profile(name: str) -> None:
    for _, spec in pod_specs(render(name, {"migrations": {"mode": "initContainer"}})):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(spec):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
            }
        assert {next(iter(set(volume) - {"name"})) for volume in spec["volumes"]} <= {
            *("projected", "secret", "configMap", "emptyDir")
        }


@pytest.mark.parametrize("name", CI_VALUES)
def test_what_a_linter_of_kubernetes_asks_for(name: str) -> None:
    rendered = render(name)
    for component, spec in pod_specs(rendered):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for container in containers(spec):
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"]["memory"]
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            assert tag
            assert tag != "latest"
        assert component == "migrate" or {"livenessProbe", "readinessProbe"} <= set(spec["containers"][0])
    assert {service["spec"]["type"] for service in rendered.all("Service")} == {"ClusterIP"}
    assert rendered.all("Ingress", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding") == []
    assert all(account["automountServiceAccountToken"] is False for account in rendered.all("ServiceAccount"))


MERGED_BY: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
"""Lists that server-side apply, helm 4's way, merges by a key: it refuses one that holds a key twice."""


def lists_in(part: Any) -> Iterator[tuple[str, list[Any]]]:
    """Every list below, by the name of its field."""
    for key, value in part.items() if isinstance(part, dict) else ():
        if isinstance(value, list):
            yield key, value
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from lists_in(value)


@pytest.mark.parametrize("name", CI_VALUES)
def test_no_list_that_is_merged_by_a_key_holds_one_twice(name: str) -> None:
    checked: set[str] = set()
    for _, spec in pod_specs(render(name)):
        for field, entries in lists_in(spec):
            keys = [tuple(entry.get(part) for part in MERGED_BY[field]) for entry in entries if field in MERGED_BY]
            assert len(keys) == len(set(keys)), field
            checked.add(field)
        ports = [port["containerPort"] for container in containers(spec) for port in container.get("ports", ())]
        assert len(ports) == len(set(ports))
    assert checked >= {"containers", "env", "volumes", "volumeMounts", "topologySpreadConstraints"}


def test_the_user_is_left_to_a_platform_that_assigns_one() -> None:
    nobody = {"podSecurity": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}
    assert render("minimal", nobody).pod["spec"]["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_a_digest_wins_over_the_tag_and_the_chart_s_own_version_over_none() -> None:
    digest = f"sha256:{'ab' * 32}"
    image = {"repository": "r.example.com/d", "tag": "1.2.3"}
    assert render("minimal", {"image": {**image, "digest": digest}}).container["image"] == f"r.example.com/d@{digest}"
    assert render("minimal", {"image": image}).container["image"] == "r.example.com/d:1.2.3"
    assert render("minimal").container["image"] == "registry.example.com/dispatcher:0.1.0"


# -- start and end -----------------------------------------------------------------------------------------------------


def test_a_lost_database_restarts_no_pod_and_a_slow_start_is_waited_for() -> None:
    container = render().container
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http-ops"}
    assert container["startupProbe"]["httpGet"] == {"path": "/livez", "port": "http-ops"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http-ops"}
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60


def test_readiness_by_grpc_asks_the_callers_port() -> None:
    readiness = render("minimal", {"probes": {"readiness": "grpc"}}).container["readinessProbe"]
    assert readiness["grpc"] == {"port": 50051}
    assert "httpGet" not in readiness


@pytest.mark.parametrize(
    ("action", "kube", "expected"),
    [
        ("auto", "1.37.0", {"sleep": {"seconds": 10}}),
        ("auto", "1.30.0-eks-1", {"sleep": {"seconds": 10}}),
        ("auto", "1.29.9", {"exec": {"command": ["dispatcher", "prestop", "--sleep-s", "10"]}}),
        ("exec", "1.37.0", {"exec": {"command": ["dispatcher", "prestop", "--sleep-s", "10"]}}),
    ],
)
def test_a_pod_goes_on_for_a_while_after_it_was_told_to_go(action: str, kube: str, expected: Mapping[str, Any]) -> None:
    rendered = render("minimal", {"shutdown": {"preStop": {"action": action}}}, kube=kube)
    assert rendered.container["lifecycle"] == {"preStop": expected}


def drain_s(rendered: Rendered, folder: Path) -> float:
    """The longest end by the service's own sum (docs/mesh.md): that of a supervisor, which waits for its workers'."""
    settings = Settings.load(with_files(rendered, folder))
    return settings.model_copy(update={"workers": max(2, settings.workers)}).stop_max_s


@pytest.mark.parametrize("name", CI_VALUES)
def test_a_pod_is_given_more_time_than_its_longest_drain(name: str, tmp_path: Path) -> None:
    rendered = render(name)
    grace_s = rendered.pod["spec"]["terminationGracePeriodSeconds"]
    slept_s = rendered.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert slept_s >= 5
    assert grace_s > slept_s + drain_s(rendered, tmp_path)


@pytest.mark.parametrize(("grpc", "delivery"), [(0, 0), ("7", "12.5"), (300, 300)])
def test_the_grace_follows_the_drains_that_are_set(grpc: Any, delivery: Any, tmp_path: Path) -> None:
    drains = {"DISPATCHER_GRPC_DRAIN_S": grpc, "DISPATCHER_DELIVERY_DRAIN_S": delivery}
    rendered = render("minimal", {"config": drains, "shutdown": {"preStop": {"seconds": 25}}})
    needed_s = 25 + drain_s(rendered, tmp_path)
    assert needed_s < rendered.pod["spec"]["terminationGracePeriodSeconds"] < needed_s + 2  # whole seconds, and one


def test_a_setting_that_was_emptied_is_the_default_as_the_service_reads_it(tmp_path: Path) -> None:
    names = ("GRPC_DRAIN_S", "DELIVERY_DRAIN_S", "WORKERS", "EGRESS_ALLOWED_PORTS", "EGRESS_ALLOWED_NETWORKS")
    emptied = render("minimal", {"config": {f"DISPATCHER_{name}": "" for name in names}})
    assert emptied.pod["spec"] == render("minimal").pod["spec"]
    assert emptied.one("NetworkPolicy") == render("minimal").one("NetworkPolicy")
    needed_s = 10 + drain_s(emptied, tmp_path)
    assert emptied.pod["spec"]["terminationGracePeriodSeconds"] > needed_s
    peers = {"config": {"DISPATCHER_AUTH_TRUSTED_PEERS": ""}}
    assert render("istio", peers).container["env"] == render("istio").container["env"]
    ports = {"config": {"DISPATCHER_EGRESS_ALLOWED_PORTS": ""}}
    assert render("istio", ports).settings == render("istio").settings  # egress.mode=gateway sets it


def test_the_page_says_how_long_that_is_by_default() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    assert f"and one more: {render().pod['spec']['terminationGracePeriodSeconds']} s by default" in page


def test_no_pod_is_taken_away_before_its_successor_is_ready() -> None:
    spec = render("production").one("Deployment")["spec"]
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert spec["minReadySeconds"] == 5


# -- migrations --------------------------------------------------------------------------------------------------------


def migration(mode: str, name: str = "minimal") -> Rendered:
    return render(name, {"migrations": {"mode": mode}})


def test_by_default_each_pod_migrates_first() -> None:
    spec = render().pod["spec"]
    (init,) = spec["initContainers"]
    assert init["args"] == ["migrate"]
    assert init["image"] == spec["containers"][0]["image"]
    assert render().all("Job") == []
    assert LOCK_WAIT_S > 60  # pods that start together queue behind one that migrates


@pytest.mark.parametrize("mode", ["job", "hook", "none"])
def test_in_the_other_modes_no_pod_does(mode: str) -> None:
    assert "initContainers" not in migration(mode).pod["spec"]
    assert len(migration(mode).all("Job")) == (mode != "none")


def test_a_hook_needs_nothing_of_the_chart_s_own() -> None:
    (job,) = migration("hook").all("Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    spec = job["spec"]["template"]["spec"]
    assert "serviceAccountName" not in spec
    assert "envFrom" not in spec["containers"][0]
    (source,) = next(volume for volume in spec["volumes"] if volume["name"] == "secrets")["projected"]["sources"]
    assert source["secret"]["name"] == "dispatcher"
    policy = migration("hook").one("NetworkPolicy", "-migrate")
    hook = job["metadata"]["annotations"]
    before = policy["metadata"]["annotations"]
    assert int(before["helm.sh/hook-weight"]) < int(hook["helm.sh/hook-weight"])


@pytest.mark.parametrize("mode", ["job", "hook"])
def test_a_migration_s_pod_has_the_labels_and_the_place_that_are_asked_for(mode: str) -> None:
    asked = {
        "affinity": {"nodeAffinity": {}},
        "nodeSelector": {"disk": "ssd"},
        "priorityClassName": "critical",
        "tolerations": [{"key": "dedicated"}],
    }
    labels = {"commonLabels": {"team": "all", "unit": "7"}, "podLabels": {"team": "pods"}}
    (job,) = render("minimal", {**asked, **labels, "migrations": {"mode": mode}}).all("Job")
    template = job["spec"]["template"]
    assert template["metadata"]["labels"].items() >= {"team": "pods", "unit": "7"}.items()
    assert template["metadata"]["labels"]["app.kubernetes.io/component"] == "migrate"
    assert template["spec"].items() >= asked.items()
    assert template["spec"]["restartPolicy"] == "Never"  # a failed pod stays, with its log


def test_another_image_makes_another_job_and_the_same_one_none() -> None:
    names = [
        render("minimal", {"migrations": {"mode": "job"}, "image": {"tag": tag}}).all("Job")[0]["metadata"]["name"]
        for tag in ("1", "2", "1")
    ]
    assert names[0] == names[2] != names[1]


@pytest.mark.parametrize("mode", ["initContainer", "job", "hook"])
def test_a_migration_is_told_of_the_database_and_of_no_other_secret(mode: str, tmp_path: Path) -> None:
    rendered = render("minimal", {"migrations": {"mode": mode}, "config": {"DISPATCHER_DATABASE_POOLED": True}})
    found = [c for _, spec in pod_specs(rendered) for c in containers(spec) if c["name"] == "migrate"]
    (container,) = found
    variables = {entry["name"]: entry["value"].replace(MOUNTED, str(tmp_path)) for entry in container["env"]}
    assert all(name.startswith("DISPATCHER_DATABASE_") for name in variables)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "database-url").write_text(DSN)
    settings = Settings.load(variables, required=("database_url",))
    assert settings.database_pooled is True


@pytest.mark.parametrize("mode", ["initContainer", "job", "hook"])
def test_a_database_with_roots_of_its_own_is_checked_by_the_service_and_by_the_migration(mode: str) -> None:
    roots = {"databaseCa": {"secretName": "db-ca", "key": "ca.crt"}, "collectorCa": {"key": "otlp.crt"}}
    rendered = render("minimal", {"migrations": {"mode": mode}, "secrets": roots})
    projected = {"secret": {"name": "db-ca", "items": [{"key": "ca.crt", "path": "database-ca"}]}}
    for component, spec in pod_specs(rendered):
        (volume,) = (volume["projected"] for volume in spec["volumes"] if volume["name"] == "secrets")
        assert projected in volume["sources"]
        assert component == "server" or "collector-ca" not in str(volume)
        for container in containers(spec):
            told = {entry["name"]: entry.get("value") for entry in container["env"]}
            assert told["PGSSLROOTCERT"] == f"{MOUNTED}/secrets/database-ca"
            assert ("OTEL_EXPORTER_OTLP_CERTIFICATE" in told) == (container["name"] == "dispatcher")


def test_a_migration_s_pod_is_no_pod_of_the_service() -> None:
    rendered = migration("job")
    (job,) = rendered.all("Job")
    selected = rendered.one("Deployment")["spec"]["selector"]["matchLabels"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert not selected.items() <= labels.items()


# -- labels and annotations --------------------------------------------------------------------------------------------


def test_a_label_or_annotation_that_is_given_twice_is_there_once_and_the_nearest_word_counts() -> None:
    overlay = {
        "commonLabels": {"release": "all", "team": "all"},
        "podLabels": {"team": "pods"},
        "podAnnotations": {"sidecar.istio.io/nativeSidecar": "false"},
        "monitoring": {"labels": {"release": "prometheus"}, "dashboards": {"enabled": True, "label": "team"}},
    }
    rendered = render("istio", overlay)
    assert rendered.one("PodMonitor")["metadata"]["labels"]["release"] == "prometheus"
    assert rendered.one("PodMonitor")["metadata"]["labels"]["team"] == "all"
    assert rendered.pod["metadata"]["labels"].items() >= {"release": "all", "team": "pods"}.items()
    assert rendered.annotations["sidecar.istio.io/nativeSidecar"] == "false"
    assert rendered.one("ConfigMap", "-dashboard-fleet")["metadata"]["labels"]["team"] == "1"


# -- roll-outs ---------------------------------------------------------------------------------------------------------


def checksums(overlay: Mapping[str, Any]) -> tuple[str, ...]:
    found = render("minimal", overlay).annotations
    return tuple(found[f"checksum/{what}"] for what in ("config", "secrets"))


def test_a_changed_setting_or_secret_rolls_the_pods_and_a_changed_policy_does_not() -> None:
    binding = {"principals": ["shop"], "roles": ["publisher"], "tenants": ["acme"]}
    plain = checksums({})
    assert checksums({"auth": {"policy": {"bindings": [binding]}}}) == plain
    for changed in ({"config": {"DISPATCHER_WORKERS": 2}}, {"secrets": {"revision": "2"}}):
        assert checksums(changed) != plain


def test_a_large_number_is_told_in_digits() -> None:
    config = {"DISPATCHER_PAYLOAD_BYTES_BUDGET": 134217728, "DISPATCHER_FLUSH_INTERVAL_S": 0.05}
    told = render("minimal", {"config": config}).settings
    assert told["DISPATCHER_PAYLOAD_BYTES_BUDGET"] == "134217728"
    assert told["DISPATCHER_FLUSH_INTERVAL_S"] == "0.05"


def test_pods_are_spread_by_the_selector_that_finds_them() -> None:
    rendered = render("production")
    selected = rendered.one("Deployment")["spec"]["selector"]["matchLabels"]
    for constraint in rendered.pod["spec"]["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"] == selected
        assert constraint["matchLabelKeys"] == ["pod-template-hash"]


@pytest.mark.parametrize("mode", ["mtls", "xfcc", "linkerd", "jwt", "tokens", "none"])
def test_every_mode_of_knowing_callers_can_be_rendered(mode: str, tmp_path: Path) -> None:
    policy = {"bindings": [{"principals": ["*"], "roles": ["reader"], "tenants": ["*"]}]}
    jwt = {"issuer": "https://idp", "audiences": ["a", "b"], "keys": '{"keys": []}', "ca": "PEM"}
    overlay: dict[str, Any] = {
        "auth": {"mode": mode, "policy": None if mode == "none" else policy, **({"jwt": jwt} if mode == "jwt" else {})},
        "secrets": {"authTokens": {"key": "tokens.yaml" if mode == "tokens" else ""}},
        "tls": {"secretName": "tls" if mode == "mtls" else ""},
        "istio": {"enabled": mode == "xfcc"},
        "linkerd": {"enabled": mode == "linkerd"},
    }
    settings = Settings.load(with_files(render("minimal", overlay), tmp_path), required=SERVE_REQUIRES)
    assert settings.auth_mode == mode
    assert settings.auth_jwt_audiences == (("a", "b") if mode == "jwt" else ())


@pytest.mark.parametrize(("name", "address"), [("linkerd", "10.1.2.3"), ("linkerd", "fd00::3"), ("istio", "127.0.0.6")])
def test_the_sidecar_s_word_is_believed_by_the_address_it_calls_from(name: str, address: str, tmp_path: Path) -> None:
    settings = Settings.load(with_files(render(name), tmp_path))
    assert any(ip_address(address) in network for network in settings.auth_trusted_peers)
    assert not any(ip_address("10.9.9.9") in network for network in settings.auth_trusted_peers)


def test_ports_have_names_of_their_own() -> None:
    ports = list(
        itertools.chain.from_iterable(c.get("ports", ()) for c in containers(render("production").pod["spec"]))
    )
    assert len({port["name"] for port in ports}) == len(ports) == 3
    assert render("production").container["args"] == ["serve"]
    assert render("production").one("Deployment")["metadata"]["name"] == NAME
