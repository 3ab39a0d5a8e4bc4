"""Names, selectors and ports agree, over all objects that speak of the same pods."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from typing import Any

import pytest

from dispatcher.api.scaler import TARGETS
from dispatcher.api.server import CALLER_SERVICES
from dispatcher.config import Settings
from dispatcher.config.groups import split_address
from dispatcher.telemetry.catalog import METRICS
from tests.support.chart import CI_VALUES, NAME, NAMESPACE, Object, Rendered, check_custom, needs_helm, render

pytestmark = needs_helm


def selectors(rendered: Rendered) -> dict[str, dict[str, str]]:
    """What each object selects pods by."""
    found: dict[str, dict[str, str]] = {}
    for each in rendered.objects:
        spec, key = each.get("spec", {}), f"{each['kind']} {each['metadata']['name']}"
        match each["kind"]:
            case "Service":
                found[key] = spec["selector"]
            case "Deployment" | "PodDisruptionBudget" | "PodMonitor" | "PeerAuthentication":
                found[key] = spec["selector"]["matchLabels"]
            case "AuthorizationPolicy" if "selector" in spec:
                found[key] = spec["selector"]["matchLabels"]
            case "Sidecar":
                found[key] = spec["workloadSelector"]["labels"]
            case "NetworkPolicy" | "Server" if not each["metadata"]["name"].endswith("-migrate"):
                found[key] = spec["podSelector"]["matchLabels"]
    return found


@pytest.mark.parametrize("name", CI_VALUES)
def test_everything_selects_the_same_pods(name: str) -> None:
    rendered = render(name)
    found = selectors(rendered)
    labels = rendered.pod["metadata"]["labels"]
    assert len(found) >= 5
    assert len({tuple(sorted(each.items())) for each in found.values()}) == 1
    for each in found.values():
        assert each.items() <= labels.items()


@pytest.mark.parametrize("name", CI_VALUES)
def test_a_migration_s_policy_selects_its_pods(name: str) -> None:
    for mode in ("job", "hook"):
        if mode == "hook" and name == "production":
            continue  # its database comes with the chart: refused
        rendered = render(name, {"migrations": {"mode": mode}})
        (job,) = rendered.all("Job")
        selected = rendered.one("NetworkPolicy", "-migrate")["spec"]["podSelector"]["matchLabels"]
        assert selected.items() <= job["spec"]["template"]["metadata"]["labels"].items()


def container_ports(rendered: Rendered) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in rendered.container["ports"]}


@pytest.mark.parametrize("name", CI_VALUES)
def test_each_port_of_a_service_is_one_of_the_container_s(name: str) -> None:
    rendered = render(name)
    ports = container_ports(rendered)
    for service in rendered.all("Service"):
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports
            assert port["appProtocol"] == ("http" if port["name"] == "http-ops" else "grpc")
    for server in rendered.all("Server"):
        assert server["spec"]["port"] in ports
    for monitor in rendered.all("PodMonitor"):
        assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in ports


@pytest.mark.parametrize("name", CI_VALUES)
def test_the_service_listens_on_the_ports_that_the_container_names(name: str) -> None:
    rendered = render(name)
    told = rendered.settings
    listened = {
        "grpc": told["DISPATCHER_GRPC_LISTEN"],
        "http-ops": told["DISPATCHER_OPS_LISTEN"],
        "grpc-admin": told.get("DISPATCHER_ADMIN_LISTEN"),
        "grpc-scaler": told.get("DISPATCHER_SCALER_LISTEN"),
    }
    expected = {port: split_address(address)[1] for port, address in listened.items() if address}
    assert container_ports(rendered) == expected


def test_where_nothing_says_otherwise_operators_come_by_loopback() -> None:
    assert "DISPATCHER_ADMIN_LISTEN" not in render().settings
    assert Settings.model_fields["admin_listen"].default == "127.0.0.1:50052"  # NOTES: port-forward
    assert not render().has("Service", "-admin")


def test_pods_with_ipv6_listen_there() -> None:
    assert render("minimal", {"listenHost": "[::]"}).settings["DISPATCHER_GRPC_LISTEN"] == "[::]:50051"


def test_the_headless_service_names_each_pod_and_a_monitor_finds_it() -> None:
    rendered = render("production")
    headless = rendered.one("Service", "-headless")
    assert headless["spec"]["clusterIP"] == "None"
    monitor = rendered.one("ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= headless["metadata"]["labels"].items()
    others = [each for each in rendered.all("Service") if each is not headless]
    assert not any(monitor["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items() for each in others)
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in headless["spec"]["ports"]}


# -- scaling -----------------------------------------------------------------------------------------------------------


def test_scaled_pods_have_no_number_of_their_own() -> None:
    assert render().one("Deployment")["spec"]["replicas"] == 2
    for name, kind in (("production", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")):
        rendered = render(name)
        assert "replicas" not in rendered.one("Deployment")["spec"]
        assert rendered.one(kind)["spec"]["scaleTargetRef"]["name"] == NAME


@pytest.mark.parametrize(
    ("mode", "kinds"), [("none", []), ("hpa", ["HorizontalPodAutoscaler"]), ("keda", ["ScaledObject"])]
)
def test_one_thing_scales_the_pods_or_none(mode: str, kinds: list[str]) -> None:
    rendered = render("minimal", {"autoscaling": {"mode": mode}})
    assert [each["kind"] for each in rendered.all("HorizontalPodAutoscaler", "ScaledObject")] == kinds


def test_keda_asks_the_service_by_what_it_understands() -> None:
    rendered = render("keda")
    (trigger,) = rendered.one("ScaledObject")["spec"]["triggers"]
    told = dict(trigger["metadata"])
    assert told.pop("scalerAddress") == f"{NAME}-scaler.{NAMESPACE}.svc.cluster.local:50053"
    assert rendered.one("Service", "-scaler")["spec"]["ports"][0]["port"] == 50053
    assert told == {"dueBacklogPerInstance": "2000", "oldestDueAgeMaxS": "30"}
    assert set(told) == {name for name, _ in TARGETS.values()}
    defaults = render("minimal", {"autoscaling": {"mode": "keda"}}).one("ScaledObject")["spec"]["triggers"][0][
        "metadata"
    ]
    assert {name: float(defaults[name]) for name, _ in TARGETS.values()} == dict(TARGETS.values())


def test_the_fleet_never_shrinks_to_nothing_even_where_the_scaler_fails() -> None:
    spec = render("keda").one("ScaledObject")["spec"]
    assert spec["minReplicaCount"] >= 1
    assert "idleReplicaCount" not in spec
    assert render("production").one("HorizontalPodAutoscaler")["spec"]["minReplicas"] == 3


@pytest.mark.parametrize("trigger", ["external", "prometheus"])
def test_a_trigger_that_fails_leaves_the_pods_as_they_are(trigger: str) -> None:
    """KEDA before 2.17 knows a fallback to a fixed number only, which would be fewer pods than there are."""
    spec = render("minimal", BY_PROMETHEUS if trigger == "prometheus" else {"autoscaling": {"mode": "keda"}}).one(
        "ScaledObject"
    )["spec"]
    assert {each["type"] for each in spec["triggers"]} == {trigger}
    assert "fallback" not in spec


BY_PROMETHEUS: dict[str, Any] = {
    "autoscaling": {"mode": "keda", "keda": {"trigger": "prometheus", "prometheusAddress": "http://p:9090"}}
}


def test_without_any_series_the_number_of_pods_stays() -> None:
    scaled = render("minimal", BY_PROMETHEUS).one("ScaledObject")
    check_custom(scaled)
    triggers = scaled["spec"]["triggers"]
    assert [trigger["metadata"]["ignoreNullValues"] for trigger in triggers] == ["false", "false"]


def test_another_installation_s_pods_do_not_count_although_its_name_begins_alike() -> None:
    triggers = render("minimal", BY_PROMETHEUS).one("ScaledObject")["spec"]["triggers"]
    patterns = [text for each in triggers for text in re.findall(r'pod=~"([^"]+)"', each["metadata"]["query"])]
    assert len(patterns) == 3
    for pattern in patterns:
        assert re.fullmatch(pattern, f"{NAME}-7d9f8c6b54-x2x9z")
        assert not re.fullmatch(pattern, f"{NAME}-eu-7d9f8c6b54-x2x9z")
        assert not re.fullmatch(pattern, f"{NAME}-migrate-0a1b2c3d-7d9f8-x2x9z")


def test_metrics_that_scaling_asks_for_are_the_service_s() -> None:
    known = {f"{metric.name.replace('.', '_')}{'_seconds' if metric.unit == 's' else ''}" for metric in METRICS}
    spec = render("minimal", BY_PROMETHEUS).one("ScaledObject")["spec"]
    queries = " ".join(trigger["metadata"]["query"] for trigger in spec["triggers"])
    named = {word for word in queries.replace("(", " ").replace("{", " ").split() if word.startswith("dispatcher_")}
    assert named == {"dispatcher_backlog_due", "dispatcher_backlog_due_age_seconds", "dispatcher_partitions_owned"}
    assert named <= known
    assert not render("minimal", BY_PROMETHEUS).has("Service", "-scaler")
    pods, age, _cpu = render("production").one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert pods["pods"]["metric"]["name"] in known
    assert age["external"]["metric"]["name"].removesuffix("_max") in known


@pytest.mark.parametrize("monitor", ["podMonitor", "serviceMonitor"])
def test_the_oldest_of_this_release_is_what_an_hpa_asks_for_where_our_monitor_marks_its_series(monitor: str) -> None:
    hpa: dict[str, Any] = {"autoscaling": {"mode": "hpa"}}
    rendered = render("minimal", hpa | {"monitoring": {"monitor": monitor}})
    (spec,) = (each["spec"] for each in rendered.all("PodMonitor", "ServiceMonitor"))
    (copied,) = spec["podTargetLabels"]
    (external,) = (each["external"] for each in oldest_of(rendered))
    label, value = next(iter(external["metric"]["selector"]["matchLabels"].items()))
    assert label == re.sub(r"[^a-zA-Z0-9_]", "_", copied)  # as Prometheus' operator writes it
    assert value == rendered.pod["metadata"]["labels"][copied]
    (other,) = (each["external"] for each in oldest_of(render("minimal", hpa)))
    assert "selector" not in other["metric"]


def oldest_of(rendered: Rendered) -> list[Object]:
    return [each for each in rendered.one("HorizontalPodAutoscaler")["spec"]["metrics"] if each["type"] == "External"]


# -- policies ----------------------------------------------------------------------------------------------------------


def test_a_pod_that_is_broken_does_not_hold_up_a_node_and_one_at_a_time_may_be_evicted() -> None:
    spec = render().one("PodDisruptionBudget")["spec"]
    assert spec["maxUnavailable"] == 1
    assert "minAvailable" not in spec
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_a_gateway_opens_callers_services_and_no_others() -> None:
    (rule,) = render("istio").one("GRPCRoute")["spec"]["rules"]
    assert [match["method"]["service"] for match in rule["matches"]] == list(CALLER_SERVICES)
    assert rule["backendRefs"] == [{"name": NAME, "port": 50051}]


def test_istio_takes_mtls_only_save_for_prometheus_and_from_those_named() -> None:
    rendered = render("istio")
    peers = rendered.one("PeerAuthentication")["spec"]
    assert peers["mtls"] == {"mode": "STRICT"}
    assert peers["portLevelMtls"] == {"8080": {"mode": "PERMISSIVE"}}
    rules = rendered.one("AuthorizationPolicy")["spec"]["rules"]
    opened = {rule["to"][0]["operation"]["ports"][0]: rule.get("from") for rule in rules}
    assert set(opened) == {"50051", "50052", "8080"}
    assert opened["50052"] == [{"source": {"principals": ["cluster.local/ns/platform/sa/webhooks"]}}]
    assert opened["8080"] is None


PLATFORM_PODS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "platform"}}}
AMBIENT: dict[str, Any] = {
    "istio": {
        "ambient": True,
        "authorizationPolicy": {
            "principals": ["cluster.local/ns/shop/sa/*"],
            "operators": ["cluster.local/ns/platform/sa/webhooks"],
        },
    },
    "adminService": {"enabled": True},
    "networkPolicy": {"operators": [PLATFORM_PODS]},
    "autoscaling": {"mode": "keda"},
}
SHOP, PLATFORM = "cluster.local/ns/shop/sa/web", "cluster.local/ns/platform/sa/webhooks"
PROMETHEUS, KEDA = "cluster.local/ns/monitoring/sa/prometheus", "cluster.local/ns/keda/sa/keda-operator"
PORTS = (50051, 50052, 50053, 8080)


def ztunnel_lets_in(rendered: Rendered, principal: str | None) -> set[int]:
    """The ports that the AuthorizationPolicy opens to an identity; None is somebody outside of the mesh."""
    policy = rendered.one("AuthorizationPolicy")
    check_custom(policy)
    assert policy["spec"]["action"] == "ALLOW"
    return {port for port in PORTS if any(_allows(rule, port, principal) for rule in policy["spec"]["rules"])}


def _allows(rule: Object, port: int, principal: str | None) -> bool:
    (to,) = rule["to"]
    assert set(to["operation"]) == {"ports"}  # it knows nothing of HTTP
    sources = [each["source"] for each in rule.get("from", [])]
    return str(port) in to["operation"]["ports"] and (not sources or any(_is_from(each, principal) for each in sources))


def _is_from(source: dict[str, list[str]], principal: str | None) -> bool:
    namespace = principal and principal.split("/")[2]
    asked = {"principals": principal, "notPrincipals": principal, "namespaces": namespace}
    return all(
        (found is not None and any(fnmatch(found, pattern) for pattern in patterns)) != key.startswith("not")
        for key, patterns in source.items()
        for found in [asked[key]]
    )


def test_in_ambient_mode_ztunnel_tells_ports_apart_that_are_one_to_the_network_policy() -> None:
    rendered = render("minimal", AMBIENT)
    assert not rendered.has("PeerAuthentication")
    opened = {who: ztunnel_lets_in(rendered, who) for who in (SHOP, PLATFORM, PROMETHEUS, KEDA, None)}
    assert opened == {SHOP: {50051}, PLATFORM: {50052}, PROMETHEUS: {8080}, KEDA: {50053}, None: {8080, 50053}}


def test_in_ambient_mode_callers_are_all_that_have_an_identity_and_operators_nobody_unless_it_is_said() -> None:
    rendered = render("minimal", {"istio": {"ambient": True}})
    assert ztunnel_lets_in(rendered, SHOP) == {50051}
    assert ztunnel_lets_in(rendered, PROMETHEUS) == {50051, 8080}
    assert ztunnel_lets_in(rendered, None) == {8080}


@pytest.mark.parametrize(
    ("peer", "opened"),
    [
        ({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop", "team": "a"}}}, True),
        ({"namespaceSelector": {}}, True),
        ({"namespaceSelector": {}, "podSelector": {}}, True),
        ({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "prometheus"}}}, False),
        ({"namespaceSelector": {"matchLabels": {"team": "a"}}}, False),
        ({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}}, False),
        ({"podSelector": {"matchLabels": {"app": "prometheus"}}}, False),
        ({"ipBlock": {"cidr": "10.0.0.0/8"}}, False),
    ],
)
def test_in_ambient_mode_peers_are_taken_by_the_names_of_their_namespaces(peer: dict[str, Any], opened: bool) -> None:
    rendered = render("minimal", {"istio": {"ambient": True}, "networkPolicy": {"monitoring": [peer]}})
    assert (8080 in ztunnel_lets_in(rendered, SHOP)) == opened
    if set(peer) == {"podSelector"}:
        assert 8080 in ztunnel_lets_in(rendered, f"cluster.local/ns/{NAMESPACE}/sa/prometheus")


def test_in_ambient_mode_without_a_network_policy_the_ports_for_those_outside_are_open() -> None:
    rendered = render("minimal", AMBIENT | {"networkPolicy": {"enabled": False}})
    assert ztunnel_lets_in(rendered, SHOP) == {50051, 50053, 8080}
    assert ztunnel_lets_in(rendered, None) == {50053, 8080}


def test_in_ambient_mode_one_s_own_policies_can_take_the_place_of_the_chart_s() -> None:
    off = {"istio": {"ambient": True, "authorizationPolicy": {"enabled": False}}}
    assert not render("minimal", off).has("AuthorizationPolicy")


def test_outlier_detection_is_off_unless_it_is_asked_for() -> None:
    rule = render("istio").one("DestinationRule")["spec"]
    assert rule["host"] == f"{NAME}.{NAMESPACE}.svc.cluster.local"
    assert "outlierDetection" not in rule["trafficPolicy"]
    asked = {"istio": {"destinationRule": {"outlierDetection": {"consecutive5xxErrors": 5}}}}
    assert render("istio", asked).one("DestinationRule")["spec"]["trafficPolicy"]["outlierDetection"]


def test_linkerd_lets_in_whom_its_policies_name() -> None:
    rendered = render("linkerd")
    servers = {server["metadata"]["name"]: server["spec"] for server in rendered.all("Server")}
    assert {each["accessPolicy"] for each in servers.values()} == {"deny"}
    authentications = {
        (each["kind"], each["metadata"]["name"])
        for each in rendered.all("MeshTLSAuthentication", "NetworkAuthentication")
    }
    guarded: set[str] = set()
    for policy in rendered.all("AuthorizationPolicy"):
        guarded.add(policy["spec"]["targetRef"]["name"])
        (reference,) = policy["spec"]["requiredAuthenticationRefs"]
        assert (reference["kind"], reference["name"]) in authentications
    assert guarded == set(servers) == {f"{NAME}-grpc", f"{NAME}-grpc-admin", f"{NAME}-http-ops"}


def test_an_external_secret_makes_what_the_pods_mount() -> None:
    rendered = render("production")
    spec = rendered.one("ExternalSecret")["spec"]
    made = {entry["secretKey"] for entry in spec["data"]}
    volume = next(each for each in rendered.pod["spec"]["volumes"] if each["name"] == "secrets")
    mounted: dict[str, set[str]] = {}
    for source in volume["projected"]["sources"]:
        mounted.setdefault(source["secret"]["name"], set()).update(item["key"] for item in source["secret"]["items"])
    assert mounted == {spec["target"]["name"]: made, f"{NAME}-db-app": {"uri"}}


def test_the_database_of_the_chart_outlives_the_release_and_waits_for_a_standby() -> None:
    cluster: Object = render("production").one("Cluster", "-db")
    assert cluster["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert cluster["spec"]["postgresql"]["synchronous"] == {"method": "any", "number": 1}
    single = render("production", {"cnpg": {"instances": 1}}).one("Cluster", "-db")
    assert "synchronous" not in single["spec"]["postgresql"]


@pytest.mark.parametrize(
    ("name", "overlay", "expected"),
    [
        ("production", {}, "500"),  # 12 pods that come, 12 that leave, 1 beyond, of 16 each; the Job's, the operator's
        ("minimal", {"cnpg": {"enabled": True}}, "100"),
        ("keda", {"cnpg": {"enabled": True}, "migrations": {"mode": "job"}}, "500"),
        ("keda", {"cnpg": {"enabled": True}, "migrations": {"mode": "none"}, "maxSurge": "50%"}, "600"),
        ("production", {"cnpg": {"parameters": {"max_connections": "219"}}}, "219"),
    ],
)
def test_the_database_of_the_chart_has_connections_for_all_pods(
    name: str, overlay: dict[str, Any], expected: str
) -> None:
    parameters = render(name, overlay).one("Cluster", "-db")["spec"]["postgresql"]["parameters"]
    assert parameters["max_connections"] == expected
    assert name != "production" or parameters["shared_buffers"] == "1GB"


def test_a_long_name_of_the_release_still_makes_names_that_kubernetes_takes() -> None:
    name = "a-name-that-is-rather-long-for-anything-at-all"
    rendered = render("production", {"fullnameOverride": name})
    names = [found["metadata"]["name"] for found in rendered.objects]
    assert max(map(len, names)) <= 63
    assert not any(found.endswith("-") for found in names)
