"""Who reaches the pods, and what they reach: NetworkPolicies, and the ways past, through and around a sidecar."""

from __future__ import annotations

import random
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

from dispatcher.config import Settings
from dispatcher.security import addresses
from dispatcher.security.addresses import METADATA_ADDRESSES, IPAddress, address_kind
from tests.support.chart import CI_VALUES, NAME, Object, Rendered, needs_helm, refusal, render

pytestmark = needs_helm
RANDOM_ADDRESSES = 2000


def egress_rules(rendered: Rendered) -> list[Object]:
    found: list[Object] = rendered.one("NetworkPolicy")["spec"]["egress"]
    return found


def world_rule(rendered: Rendered) -> Object:
    """The rule that webhooks leave by."""
    (rule,) = (rule for rule in egress_rules(rendered) if any("ipBlock" in peer for peer in rule.get("to", ())))
    return rule


class Blocks:
    """The ip blocks of a rule."""

    def __init__(self, rule: Object) -> None:
        blocks = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
        self._blocks = [
            (ip_network(block["cidr"]), [ip_network(text) for text in block.get("except", ())]) for block in blocks
        ]

    def __contains__(self, address: IPAddress) -> bool:
        """Whether they let an address out, as Kubernetes reads them."""
        return any(
            address in network and not any(address in excepted for excepted in exceptions)
            for network, exceptions in self._blocks
        )


def edges() -> Iterator[IPAddress]:
    """Both sides of every border of the service's own tables."""
    for network, _ in (*addresses._IPV4_KINDS, *addresses._IPV6_KINDS):
        first, last = int(network[0]), int(network[-1])
        for value in (first - 1, first, last, last + 1):
            if 0 <= value < 1 << network.max_prefixlen:
                yield type(network[0])(value)


def anywhere() -> Iterator[IPAddress]:
    chance = random.Random(7)
    for _ in range(RANDOM_ADDRESSES):
        yield IPv4Address(chance.getrandbits(32))
        yield IPv6Address((0b001 << 125) | chance.getrandbits(125))
        yield IPv6Address(chance.getrandbits(128))


CARRIERS = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
"""IPv4 inside of IPv6, which the service judges by what it holds, and the NetworkPolicy does not let out at all."""


def test_the_world_is_what_the_service_itself_calls_public() -> None:
    world = Blocks(world_rule(render()))
    wrong = [
        address
        for address in (*edges(), *METADATA_ADDRESSES, *anywhere())
        if not any(address in carrier for carrier in CARRIERS) and (address in world) != (address_kind(address) is None)
    ]
    assert wrong == []
    assert not any(ip_address(text) in world for text in ("::ffff:8.8.8.8", "64:ff9b::808:808"))
    assert ip_address("8.8.8.8") in world


def test_every_exception_is_within_its_network() -> None:
    for block in (peer["ipBlock"] for peer in world_rule(render("production"))["to"]):
        assert all(
            ip_network(text).subnet_of(ip_network(block["cidr"])) and text != block["cidr"]  # type: ignore[arg-type]
            for text in block.get("except", ())
        )


def test_webhooks_may_go_to_the_ports_and_networks_that_the_service_allows() -> None:
    rule = world_rule(render("production"))
    assert rule["ports"] == [
        {"protocol": "TCP", "port": 443},
        {"protocol": "TCP", "port": 8443},
        {"protocol": "TCP", "port": 9000, "endPort": 9999},
    ]
    assert ip_address("10.20.1.1") in Blocks(rule)
    assert ip_address("10.21.1.1") not in Blocks(rule)
    alone = world_rule(render("minimal", {"config": {"DISPATCHER_EGRESS_ALLOWED_NETWORKS": "10.1.1.1, fd00::1"}}))
    assert [peer["ipBlock"]["cidr"] for peer in alone["to"][2:]] == ["10.1.1.1/32", "fd00::1/128"]


def test_networks_of_every_size_are_taken() -> None:
    sizes = [f"0.0.0.0/{bits}" for bits in range(33)] + [f"::/{bits}" for bits in range(129)]
    octets = [f"{octet}.{octet}.{octet}.{octet}/32" for octet in range(256)]
    said = ",".join([*sizes, *octets])
    rule = world_rule(render("minimal", {"config": {"DISPATCHER_EGRESS_ALLOWED_NETWORKS": said}}))
    assert [peer["ipBlock"]["cidr"] for peer in rule["to"][2:]] == said.split(",")


def test_the_default_ports_are_the_service_s() -> None:
    ports = world_rule(render())["ports"]
    text = ",".join("-".join(str(port[key]) for key in ("port", "endPort") if key in port) for port in ports)
    assert text == Settings.model_fields["egress_allowed_ports"].default


@pytest.mark.parametrize("name", CI_VALUES)
def test_what_is_not_allowed_is_denied_in_both_directions(name: str) -> None:
    rendered = render(name)
    selected = rendered.one("Deployment")["spec"]["selector"]["matchLabels"]
    spec = rendered.one("NetworkPolicy")["spec"]
    assert spec["podSelector"]["matchLabels"] == selected
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    for rule in (*spec["ingress"], *spec["egress"]):
        assert rule.get("from") != []
        assert rule.get("to") != []
        assert rule.get("ports") or rule.get("to")


def ingress(rendered: Rendered) -> dict[int, list[Object]]:
    """Who may reach a port, by the port."""
    rules = rendered.one("NetworkPolicy")["spec"]["ingress"]
    return {rule["ports"][0]["port"]: rule["from"] for rule in rules}


def test_each_port_is_open_to_those_it_is_for() -> None:
    opened = ingress(render("production"))
    assert set(opened) == {50051, 50052, 8080}
    assert opened[50052][0]["podSelector"] == {"matchLabels": {"app": "console"}}
    assert set(ingress(render("keda"))) == {50051, 8080, 50053}


def test_an_empty_list_of_peers_opens_the_port_to_nobody() -> None:
    none: dict[str, Any] = {"networkPolicy": {"callers": [], "monitoring": [], "keda": []}}
    scaled = {"autoscaling": {"mode": "keda"}}
    assert render("minimal", none | scaled).one("NetworkPolicy")["spec"]["ingress"] == []


OPERATORS = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "platform"}}}]


@pytest.mark.parametrize("name", CI_VALUES)
def test_each_port_of_a_service_is_open_to_somebody(name: str) -> None:
    rendered = render(name)
    numbers = {port["name"]: port["containerPort"] for port in rendered.container["ports"]}
    offered = {numbers[port["targetPort"]] for each in rendered.all("Service") for port in each["spec"]["ports"]}
    assert (50052 in offered) == (name in {"production", "istio", "linkerd"})
    assert offered <= set(ingress(rendered))


@pytest.mark.parametrize(
    "policy",
    [{"operators": OPERATORS}, {"extraIngress": [{"from": OPERATORS}]}, {"enabled": False}],
    ids=["operators", "rule", "no policy"],
)
def test_a_service_for_operators_is_taken_where_something_lets_them_in(policy: dict[str, Any]) -> None:
    rendered = render("minimal", {"adminService": {"enabled": True}, "networkPolicy": policy})
    assert rendered.has("Service", "-admin")


def test_the_database_is_the_chart_s_own_where_it_makes_one() -> None:
    for suffix in ("", "-migrate"):
        rules = render("production").one("NetworkPolicy", suffix)["spec"]["egress"]
        (rule,) = (rule for rule in rules if {"protocol": "TCP", "port": 5432} in rule["ports"])
        assert rule["to"] == [{"podSelector": {"matchLabels": {"cnpg.io/cluster": f"{NAME}-db"}}}]
    assert render("production").has("Cluster", "-db")


def test_a_migration_reaches_the_database_and_names_and_nothing_else() -> None:
    spec = render("production").one("NetworkPolicy", "-migrate")["spec"]
    assert spec["ingress"] == []
    ports = {port["port"] for rule in spec["egress"] for port in rule["ports"]}
    assert ports == {53, 5432}


OPENSHIFT_DNS = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}}}]


def test_names_are_resolved_where_and_on_the_ports_that_are_said() -> None:
    policy: dict[str, Any] = {"dns": OPENSHIFT_DNS, "dnsPorts": [53, 5353]}
    rendered = render("minimal", {"networkPolicy": policy, "migrations": {"mode": "job"}})
    asked = [{"protocol": protocol, "port": port} for port in (53, 5353) for protocol in ("UDP", "TCP")]
    for suffix in ("", "-migrate"):
        rules = rendered.one("NetworkPolicy", suffix)["spec"]["egress"]
        assert rules[0] == {"to": OPENSHIFT_DNS, "ports": asked}


def test_without_anywhere_to_resolve_names_no_rule_opens_their_port_to_the_world() -> None:
    closed = {"networkPolicy": {"dns": []}, "migrations": {"mode": "job"}}
    for suffix in ("", "-migrate"):
        rules = render("minimal", closed).one("NetworkPolicy", suffix)["spec"]["egress"]
        assert rules
        assert not any(port["port"] == 53 for rule in rules for port in rule["ports"])


def lets_out(rules: list[Object], port: int, address: str = "8.8.8.8") -> bool:
    """Whether a rule lets this address out on this port; a rule without peers lets out to all."""
    return any(
        ("to" not in rule or ip_address(address) in Blocks(rule))
        and any(port in range(each["port"], each.get("endPort", each["port"]) + 1) for each in rule["ports"])
        for rule in rules
        if "ports" in rule
    )


def ports_named(rendered: Rendered) -> Iterator[int]:
    """Ports of the addresses that the service itself connects to by its settings."""
    for variable in ("DISPATCHER_AUTH_JWT_KEYS", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        if "//" in (url := rendered.settings.get(variable, "")):
            yield urlsplit(url).port or 443


JWT: dict[str, Any] = {
    "auth": {"mode": "jwt", "jwt": {"issuer": "https://idp", "audiences": ["a"], "keysUrl": "https://idp:8443/keys"}},
    "secrets": {"authTokens": {"key": ""}},
}


@pytest.mark.parametrize("name", CI_VALUES)
def test_every_address_that_a_setting_names_is_let_out(name: str) -> None:
    rendered = render(name)
    allowed = {port["port"] for rule in egress_rules(rendered) for port in rule.get("ports", ())}
    assert {*ports_named(rendered), 53, 5432} <= allowed
    assert list(ports_named(rendered)) == {"keda": [443], "production": [4317]}.get(name, [])


@pytest.mark.parametrize("egress", [{"egress": {"mode": "direct"}}, {}], ids=["direct", "proxy"])
def test_an_issuer_s_keys_are_fetched_whatever_way_webhooks_leave(egress: dict[str, Any]) -> None:
    way = egress | ({"secrets": {"egressProxyUrl": {"key": ""}}} if egress else {})
    assert lets_out(egress_rules(render("keda", way)), 443)
    assert not lets_out(egress_rules(render("keda", way)), 443, "10.1.2.3")
    private = {"networkPolicy": {"jwks": {"to": [{"ipBlock": {"cidr": "10.1.2.0/24"}}]}}}
    rules = egress_rules(render("keda", way | private))
    assert lets_out(rules, 443, "10.1.2.3")
    assert not lets_out(rules, 443, "10.1.3.3")


def test_an_issuer_has_the_port_of_its_url_or_another_that_is_said() -> None:
    closed = {"config": {"DISPATCHER_EGRESS_ALLOWED_PORTS": "80"}}
    assert lets_out(egress_rules(render("minimal", JWT | closed)), 8443)
    said = JWT | closed | {"networkPolicy": {"jwks": {"port": 9443}}}
    rules = egress_rules(render("minimal", said))
    assert lets_out(rules, 9443)
    assert not lets_out(rules, 8443)
    assert not lets_out(egress_rules(render("minimal", closed)), 443)


POOLER: dict[str, Any] = {
    "networkPolicy": {"database": {"port": 6432, "directPort": 5433}, "collector": {"ports": []}},
    "config": {"DISPATCHER_EGRESS_ALLOWED_PORTS": "443"},
}


def test_past_a_pooler_the_database_s_own_port_is_open_too() -> None:
    direct = {"secrets": {"databaseDirectUrl": {"key": "direct-url"}}, "migrations": {"mode": "job"}}
    for suffix in ("", "-migrate"):
        rules = render("minimal", POOLER | direct).one("NetworkPolicy", suffix)["spec"]["egress"]
        assert lets_out(rules, 6432)
        assert lets_out(rules, 5433)
    assert not lets_out(egress_rules(render("minimal", POOLER)), 5433)
    same = render("minimal", direct).one("NetworkPolicy", "-migrate")["spec"]["egress"][1]
    assert same["ports"] == [{"protocol": "TCP", "port": 5432}]


def test_a_rule_of_one_s_own_holds_for_the_migrations_as_well() -> None:
    rule = {"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}], "ports": [{"protocol": "TCP", "port": 88}]}
    rendered = render("minimal", {"networkPolicy": {"extraEgress": [rule]}, "migrations": {"mode": "job"}})
    for suffix in ("", "-migrate"):
        assert rule in rendered.one("NetworkPolicy", suffix)["spec"]["egress"]


def test_a_forward_proxy_in_linkerd_s_mesh_is_reached_by_its_proxy_s_port() -> None:
    proxy = {
        "egress": {"mode": "proxy", "proxy": {"to": [{"podSelector": {"matchLabels": {"app": "squid"}}}]}},
        "secrets": {"egressProxyUrl": {"key": "url"}},
    }
    (rule,) = (
        rule for rule in egress_rules(render("linkerd", proxy)) if rule.get("to") == proxy["egress"]["proxy"]["to"]
    )
    assert [port["port"] for port in rule["ports"]] == [3128, 4143]


def test_with_a_proxy_nothing_but_the_fetch_of_keys_leaves_for_the_world() -> None:
    rendered = render("keda")
    assert world_rule(rendered)["ports"] == [{"protocol": "TCP", "port": 443}]
    file = {"auth": {"jwt": {"keysUrl": "", "keys": "{}"}}}
    assert not any("ipBlock" in peer for rule in egress_rules(render("keda", file)) for peer in rule.get("to", ()))
    assert {"protocol": "TCP", "port": 3128} in [port for rule in egress_rules(rendered) for port in rule["ports"]]
    variables = {entry["name"] for entry in rendered.container["env"]}
    assert "DISPATCHER_EGRESS_PROXY_URL_FILE" in variables


def test_with_a_gateway_webhooks_are_https_to_the_hosts_that_are_named() -> None:
    rendered = render("istio")
    assert rendered.settings["DISPATCHER_EGRESS_ALLOWED_PORTS"] == "443"
    assert rendered.settings["DISPATCHER_EGRESS_ALLOW_HTTP"] == "false"
    hosts = rendered.one("Gateway", "-egress")["spec"]["servers"][0]["hosts"]
    assert (
        hosts == rendered.one("ServiceEntry", "-egress")["spec"]["hosts"] == ["hooks.example.com", "hooks.example.org"]
    )
    routes = rendered.one("VirtualService", "-egress")["spec"]["tls"]
    sent = {(route["match"][0]["sniHosts"][0], route["route"][0]["destination"]["host"]) for route in routes}
    gateway = "istio-egressgateway.istio-system.svc.cluster.local"
    assert sent == {(host, to) for host in hosts for to in (host, gateway)}
    assert not any("ipBlock" in peer for rule in egress_rules(rendered) for peer in rule.get("to", ()))
    assert "traffic.sidecar.istio.io/includeOutboundIPRanges" not in rendered.annotations
    assert rendered.annotations["traffic.sidecar.istio.io/excludeOutboundPorts"] == "5432"


DIRECT: dict[str, Any] = {"egress": {"mode": "direct"}}


def test_a_sidecar_that_learns_only_of_what_is_needed_knows_the_gateway() -> None:
    elsewhere = {"egress": {"gateway": {"namespace": "istio-egress"}}}
    for overlay, added in (({}, []), (elsewhere, ["istio-egress/*"]), (elsewhere | DIRECT, [])):
        (egress,) = render("istio", overlay).one("Sidecar")["spec"]["egress"]
        assert egress["hosts"] == ["./*", "istio-system/*", *added]


ALLOWED_HOSTS: dict[str, Any] = {"DISPATCHER_EGRESS_ALLOWED_HOSTS": "svc.cluster.local"}


@pytest.mark.parametrize(
    "way",
    [
        {"config": {**ALLOWED_HOSTS, "DISPATCHER_EGRESS_ALLOWED_NETWORKS": "10.0.0.0/8"}},
        {"config": ALLOWED_HOSTS, "networkPolicy": {"extraEgress": [{"to": [{"podSelector": {}}]}]}},
        {"config": ALLOWED_HOSTS, "networkPolicy": {"enabled": False}},
        {
            "config": ALLOWED_HOSTS,
            "egress": {"mode": "proxy"},
            "secrets": {"egressProxyUrl": {"key": "url"}},
        },
    ],
    ids=["networks", "rule", "no policy", "proxy"],
)
def test_hosts_that_are_not_public_are_taken_where_something_lets_out_to_them(way: dict[str, Any]) -> None:
    assert render("minimal", way).settings.items() >= ALLOWED_HOSTS.items()


HTTP = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
OTLP = "OTEL_EXPORTER_OTLP_ENDPOINT"
OTLP_TRACES, OTLP_METRICS = (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT" for signal in ("TRACES", "METRICS"))
BY_PORT: list[tuple[dict[str, str], int]] = [
    ({OTLP: "https://otlp:443"}, 443),
    ({OTLP: "https://otlp/v1"}, 443),
    ({OTLP: "http://otel-collector.obs"}, 443),
    ({OTLP: "http://[fd00::1]"}, 443),
    ({OTLP: "otel-collector.obs"}, 443),
    ({OTLP: "otlp:9317"}, 9317),
    ({OTLP: "dns:///otlp:9317"}, 9317),
    ({OTLP: "http://$(HOST_IP):9317"}, 9317),
    ({OTLP: "http://otlp:4317", OTLP_TRACES: "otlp:9317"}, 9317),
    ({OTLP: "http://otel-collector.obs"} | HTTP, 80),
    ({OTLP: "https://user:12@otlp/path:77"} | HTTP, 443),
    ({OTLP: "http://otlp:4318", OTLP_TRACES: "http://otlp/v1/traces"} | HTTP, 80),
    ({OTLP: "http://otlp"} | HTTP | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, 443),
]


@pytest.mark.parametrize(("variables", "port"), BY_PORT, ids=[" ".join(each.values()) for each, _ in BY_PORT])
@pytest.mark.parametrize("place", ["config", "extraEnv"])
def test_a_collector_is_let_out_to_by_the_port_that_its_endpoint_has(
    variables: dict[str, str], port: int, place: str
) -> None:
    said: Any = variables
    if place == "extraEnv":
        said = [{"name": name, "value": value} for name, value in variables.items()]
    assert f"networkPolicy.collector.ports lacks {port}, the port of" in refusal({place: said})
    collector: dict[str, Any] = {"networkPolicy": {"collector": {"ports": [port, 80, 4317, 4318]}}}
    (rule,) = (
        rule
        for rule in egress_rules(render("minimal", collector | {place: said}))
        if "to" not in rule and {"protocol": "TCP", "port": 4318} in rule["ports"]
    )
    assert {"protocol": "TCP", "port": port} in rule["ports"]


@pytest.mark.parametrize(
    "given",
    [
        {"config": {OTLP: "unix:///run/otlp"}},
        {"config": {OTLP: ""}},
        {
            "config": {
                OTLP: "otlp:9317",
                OTLP_TRACES: "otlp:4317",
                OTLP_TRACES.replace("TRACES", "METRICS"): "otlp:4318",
            }
        },
        {"config": {OTLP: "otlp:9317"}, "extraEnv": [{"name": OTLP, "value": "otlp:4317"}]},
        {"extraEnv": [{"name": OTLP, "value": "$(COLLECTOR)"}]},
        {"extraEnv": [{"name": OTLP, "valueFrom": {"configMapKeyRef": {"name": "otlp", "key": "endpoint"}}}]},
    ],
    ids=["file", "empty", "unused", "overridden", "filled in", "from elsewhere"],
)
def test_an_endpoint_that_has_no_port_here_is_none_of_the_chart_s(given: dict[str, Any]) -> None:
    assert egress_rules(render("minimal", given)) == egress_rules(render("minimal"))


@pytest.mark.parametrize("scheme", ["http://", "https://", ""])
def test_grpc_takes_443_where_no_port_is_named(scheme: str) -> None:
    exporter = OTLPSpanExporter(endpoint=f"{scheme}127.9.9.9")
    with grpc.insecure_channel(exporter._endpoint) as channel, pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary("/a/b")(b"", timeout=30)
    exporter.shutdown()
    assert "127.9.9.9:443" in str(failed.value)


AMBIENT: dict[str, Any] = {"istio": {"ambient": True}}
MONITORING = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


def test_in_ambient_mode_ztunnel_s_port_is_open_wherever_a_pod_of_the_mesh_may_be() -> None:
    more = {"autoscaling": {"mode": "keda"}, "migrations": {"mode": "job"}, "probes": {"readiness": "grpc"}}
    rendered = render("minimal", AMBIENT | more)
    tunnel = {"protocol": "TCP", "port": 15008}
    rules = rendered.one("NetworkPolicy")["spec"]["ingress"]
    (probes,) = (rule for rule in rules if {"ipBlock": {"cidr": "169.254.7.127/32"}} in rule["from"])
    assert [port["port"] for port in probes["ports"]] == [8080, 50051]
    assert all(ip_network(peer["ipBlock"]["cidr"]).num_addresses == 1 for peer in probes["from"])
    assert {ip_network(peer["ipBlock"]["cidr"]).version for peer in probes["from"]} == {4, 6}
    assert len(rules) == 4
    assert all(tunnel in rule["ports"] for rule in rules if rule is not probes)
    for suffix in ("", "-migrate"):
        rules = rendered.one("NetworkPolicy", suffix)["spec"]["egress"]
        (database,) = (rule for rule in rules if {"protocol": "TCP", "port": 5432} in rule["ports"])
        assert tunnel in database["ports"]
    assert tunnel not in world_rule(rendered)["ports"]
    (job,) = rendered.all("Job")
    for template in (rendered.pod, job["spec"]["template"]):
        assert template["metadata"]["labels"]["istio.io/dataplane-mode"] == "ambient"
        assert "sidecar.istio.io/inject" not in template["metadata"]["labels"]
    assert "15008" not in str(render("minimal", more).one("NetworkPolicy"))


def test_direct_webhooks_go_past_istio_s_sidecar_wherever_they_go() -> None:
    allowed = {"config": {"DISPATCHER_EGRESS_ALLOWED_NETWORKS": "10.20.0.0/16"}}
    found = render("istio", DIRECT | allowed).annotations
    captured = [ip_network(text) for text in found["traffic.sidecar.istio.io/includeOutboundIPRanges"].split(",")]
    let_out = [address for address in anywhere() if address_kind(address) is None]
    assert len(let_out) > RANDOM_ADDRESSES
    assert not any(address in network for network in captured for address in let_out)
    assert found["traffic.sidecar.istio.io/excludeOutboundIPRanges"] == "10.20.0.0/16"
    bare = {"config": {"DISPATCHER_EGRESS_ALLOWED_NETWORKS": " 10.1.1.1, fd00::1,10.2.0.0/16,"}}
    ranges = render("istio", DIRECT | bare).annotations["traffic.sidecar.istio.io/excludeOutboundIPRanges"]
    assert ranges == "10.1.1.1/32,fd00::1/128,10.2.0.0/16"  # as Istio's injector takes them
    assert found["traffic.sidecar.istio.io/excludeOutboundPorts"] == "80,443,5432"
    meshed = render("istio", {"istio": {"excludeOutboundPorts": []}}).annotations
    assert "traffic.sidecar.istio.io/excludeOutboundPorts" not in meshed


def test_direct_webhooks_go_past_linkerd_s_proxy_on_every_port_they_may_use() -> None:
    ports = {"config": {"DISPATCHER_EGRESS_ALLOWED_PORTS": "443,8000-9000"}, "linkerd": {"skipOutboundPorts": None}}
    assert render("linkerd", ports).annotations["config.linkerd.io/skip-outbound-ports"] == "443,8000-9000"
    chosen = render("linkerd").annotations
    assert chosen["config.linkerd.io/skip-outbound-ports"] == "80,443,1024-5431,5433-65535"
    assert chosen["config.linkerd.io/opaque-ports"] == "5432"


def test_between_pods_of_linkerd_the_proxy_s_port_is_the_one_that_packets_have() -> None:
    for rule in render("linkerd").one("NetworkPolicy")["spec"]["ingress"]:
        assert {"protocol": "TCP", "port": 4143} in rule["ports"]
    reached = {port["port"] for rule in egress_rules(render("linkerd")) for port in rule["ports"]}
    assert {8080, 8086, 8090} <= reached
    assert {15012} <= {port["port"] for rule in egress_rules(render("istio")) for port in rule.get("ports", ())}


@pytest.mark.parametrize(
    ("values", "overlay", "ports"),
    [
        ("minimal", {}, [8080]),
        ("istio", {}, [8080, 15020, 15090]),
        ("linkerd", {}, [8080, 4191, 4143]),
        ("minimal", AMBIENT, [8080, 15008]),
    ],
    ids=["no mesh", "istio", "linkerd", "ambient"],
)
def test_who_reads_our_metrics_reads_those_of_the_sidecar(
    values: str, overlay: dict[str, Any], ports: list[int]
) -> None:
    rules = render(values, overlay).one("NetworkPolicy")["spec"]["ingress"]
    (opened,) = (rule["ports"] for rule in rules if rule["from"] == MONITORING)
    assert opened == [{"protocol": "TCP", "port": port} for port in ports]


@pytest.mark.parametrize(
    ("mesh", "annotation"),
    [("istio", "traffic.sidecar.istio.io/excludeInboundPorts"), ("linkerd", "config.linkerd.io/skip-inbound-ports")],
)
def test_keda_reaches_the_scaler_from_outside_of_the_mesh(mesh: str, annotation: str) -> None:
    assert annotation not in render(mesh).annotations
    assert render(mesh, {"autoscaling": {"mode": "keda"}}).annotations[annotation] == "50053"


def test_without_native_sidecars_the_proxy_comes_first_stays_to_the_end_and_leaves_jobs_alone() -> None:
    job = {"migrations": {"mode": "job"}}
    istio = render("istio", {"istio": {"nativeSidecars": False}, **job})
    assert "holdApplicationUntilProxyStarts: true" in istio.annotations["proxy.istio.io/config"]
    (pod,) = (each["spec"]["template"] for each in istio.all("Job"))
    assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
    linkerd = render("linkerd", {"linkerd": {"nativeSidecars": False}, **job})
    waits_s = int(linkerd.annotations["config.alpha.linkerd.io/proxy-wait-before-exit-seconds"])
    assert 60 < waits_s < linkerd.pod["spec"]["terminationGracePeriodSeconds"]
    (pod,) = (each["spec"]["template"] for each in linkerd.all("Job"))
    assert pod["metadata"]["annotations"]["linkerd.io/inject"] == "disabled"


def test_with_native_sidecars_jobs_are_in_the_mesh() -> None:
    job = {"migrations": {"mode": "job"}}
    (pod,) = (each["spec"]["template"] for each in render("istio", job).all("Job"))
    assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "true"
    assert pod["metadata"]["annotations"]["sidecar.istio.io/nativeSidecar"] == "true"
    assert pod["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundPorts"] == "5432"
    (pod,) = (each["spec"]["template"] for each in render("linkerd", job).all("Job"))
    assert pod["metadata"]["annotations"]["linkerd.io/inject"] == "enabled"


def test_outside_of_a_mesh_there_is_no_word_of_one() -> None:
    rendered = render("production")
    words = [*rendered.annotations, *rendered.pod["metadata"]["labels"]]
    assert not any("istio" in word or "linkerd" in word for word in words)
    assert not any("istio" in found["apiVersion"] or "linkerd" in found["apiVersion"] for found in rendered.objects)
