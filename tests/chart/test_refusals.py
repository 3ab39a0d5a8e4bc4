"""What can't work is refused when it is rendered, with a sentence that says why."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from dispatcher.config import Settings, is_secret, variable_of
from tests.support.chart import CHART, needs_helm, nested, refusal, render

pytestmark = needs_helm

BY_SCHEMA: list[tuple[dict[str, Any], str]] = [
    ({"replicaCounts": 3}, "additional properties 'replicaCounts' not allowed"),
    ({"image": {"repo": "x"}}, "additional properties 'repo' not allowed"),
    ({"istio": {"sidecar": {"enable": True}}}, "additional properties 'enable' not allowed"),
    ({"networkPolicy": {"callers": [{"namespace": "shop"}]}}, "additional properties 'namespace' not allowed"),
    ({"networkPolicy": {"callers": [{}]}}, "at '/networkPolicy/callers/0': minProperties: got 0, want 1"),
    ({"resources": {"limit": {}}}, "additional properties 'limit' not allowed"),
    ({"image": {"repository": ""}}, "at '/image/repository': minLength"),
    ({"image": {"digest": "sha256:123"}}, "at '/image/digest'"),
    ({"auth": {"mode": ""}}, "value must be one of 'mtls', 'xfcc', 'linkerd', 'jwt', 'tokens', 'none'"),
    ({"replicaCount": 0}, "at '/replicaCount': minimum: got 0, want 1"),
    ({"autoscaling": {"minReplicas": 0}}, "at '/autoscaling/minReplicas': minimum: got 0, want 1"),
    ({"autoscaling": {"maxReplicas": 257}}, "maximum: got 257, want 256"),
    ({"autoscaling": {"mode": "hpa,keda"}}, "value must be one of 'none', 'hpa', 'keda'"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "/podDisruptionBudget/maxUnavailable"),
    ({"migrations": {"mode": "always"}}, "value must be one of 'initContainer', 'job', 'hook', 'none'"),
    ({"shutdown": {"preStop": {"seconds": 0}}}, "minimum: got 0, want 1"),
    ({"podSecurity": {"runAsUser": 0}}, "at '/podSecurity/runAsUser': minimum: got 0, want 1"),
    ({"config": {"DISPATCHER_WORKER": 2}}, "additional properties 'DISPATCHER_WORKER' not allowed"),
    ({"config": {"DISPATCHER_WORKERS": 65}}, "at '/config/DISPATCHER_WORKERS': maximum: got 65, want 64"),
    ({"config": {"DISPATCHER_LOG_LEVEL": "loud"}}, "value must be one of 'debug', 'info', 'warning', 'error'"),
    ({"egress": {"gateway": {"hosts": ["*.example.com"]}}}, "at '/egress/gateway/hosts/0'"),
    ({"networkPolicy": {"dnsPorts": []}}, "at '/networkPolicy/dnsPorts': minItems"),
    *(({"config": {"DISPATCHER_WORKERS": text}}, "at '/config/DISPATCHER_WORKERS'") for text in ("two", "2.5", " 2")),
    ({"config": {"DISPATCHER_DELIVERY_DRAIN_S": "abc"}}, "at '/config/DISPATCHER_DELIVERY_DRAIN_S'"),
    ({"extraEnv": [{"name": "A", "valueFrom": {"fooRef": {"name": "x"}}}]}, "additional properties 'fooRef' not"),
    ({"extraEnv": [{"name": "A", "valueFrom": {}}]}, "at '/extraEnv/0/valueFrom': minProperties"),
    ({"extraEnv": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "x"}}}]}, "missing property 'key'"),
    (
        {"monitoring": {"rules": {"runbookBaseUrl": "https://git.example.com/"}}},
        "at '/monitoring/rules/runbookBaseUrl'",
    ),
    ({"istio": {"sidecar": {"outboundTrafficPolicy": "NONE"}}}, "'REGISTRY_ONLY', 'ALLOW_ANY'"),
]

NO_POLICY = {"policy": None}
JWT = {"issuer": "https://idp", "audiences": ["a"], "keysUrl": "https://idp/keys"}
TOKENS_OFF = {"authTokens": {"key": ""}}


def mode(name: str, *, mesh: str = "", **auth: Any) -> dict[str, Any]:
    """The minimal values with another mode, and perhaps in a mesh."""
    found: dict[str, Any] = {"auth": {"mode": name, **auth}, "secrets": dict(TOKENS_OFF)}
    return found | ({mesh: {"enabled": True}} if mesh else {})


BLOCK: dict[str, Any] = {"ipBlock": {"cidr": "10.0.0.0/8"}}
PEERS = (
    *(f"networkPolicy.{name}" for name in ("callers", "operators", "monitoring", "keda", "dns")),
    *(f"networkPolicy.{name}.to" for name in ("database", "jwks", "collector")),
    "egress.proxy.to",
)


def entry(name: str) -> dict[str, Any]:
    """A host outside of Istio's mesh."""
    return {"name": name, "host": f"{name}.example.com", "port": 443, "protocol": "TLS"}


BY_THE_CHART: list[tuple[dict[str, Any], str]] = [
    ({"auth": NO_POLICY}, "auth.mode=tokens needs auth.policy or auth.policyConfigMap"),
    (mode("none"), "auth.mode=none heeds no policy"),
    ({"auth": {"policyConfigMap": "p"}}, "auth.policy and auth.policyConfigMap: keep one"),
    (mode("jwt"), "auth.mode=jwt needs auth.jwt.issuer"),
    (mode("jwt", jwt=JWT | {"keys": "{}"}), "auth.jwt.keysUrl and auth.jwt.keys: keep one"),
    ({"auth": {"jwt": JWT}}, "auth.jwt means nothing with auth.mode=tokens"),
    (mode("mtls"), "auth.mode=mtls needs tls.secretName"),
    ({"secrets": TOKENS_OFF}, "auth.mode=tokens needs secrets.authTokens.key"),
    (mode("linkerd"), "auth.mode=linkerd needs linkerd.enabled"),
    (mode("xfcc", mesh="linkerd"), "auth.mode=xfcc with linkerd.enabled"),
    (mode("xfcc"), "auth.mode=xfcc needs istio.enabled, or the Envoy that tells who calls"),
    (
        mode("xfcc") | {"config": {"DISPATCHER_AUTH_TRUSTED_PEERS": ""}},
        "auth.mode=xfcc needs istio.enabled, or the Envoy",
    ),
    (mode("mtls", mesh="istio") | {"tls": {"secretName": "t"}}, "auth.mode=mtls in a mesh: the sidecar ends TLS"),
    *(
        (mode(name, mesh=mesh, **more) | {"tls": {"secretName": "t"}}, "tls.secretName in a mesh")
        for mesh, name, more in (
            ("istio", "xfcc", {}),
            ("linkerd", "linkerd", {}),
            ("istio", "jwt", {"jwt": JWT}),
            ("linkerd", "tokens", {}),
        )
    ),
    ({"istio": {"enabled": True}, "linkerd": {"enabled": True}}, "a pod is in one mesh"),
    ({"secrets": {"existingSecret": ""}}, "secrets: where is DISPATCHER_DATABASE_URL?"),
    ({"secrets": {"secretKeys": {"key": ""}}}, "secrets.secretKeys.key must be set"),
    ({"secrets": {"externalSecret": {"enabled": True}}}, "secrets.existingSecret and secrets.externalSecret.enabled"),
    (
        {"secrets": {"existingSecret": "", "externalSecret": {"enabled": True, "store": {"name": "vault"}}}},
        "secrets.externalSecret.data lacks database-url, which DISPATCHER_DATABASE_URL is to come from",
    ),
    (
        {"secrets": {"existingSecret": "", "externalSecret": {"enabled": True}}, "migrations": {"mode": "hook"}},
        "migrations.mode=hook runs before the ExternalSecret is there",
    ),
    ({"cnpg": {"enabled": True}, "migrations": {"mode": "hook"}}, "runs before the database is there"),
    (
        {"istio": {"enabled": True, "nativeSidecars": False}},
        "migrations.mode=initContainer has no network with istio.nativeSidecars=false: use job",
    ),
    (
        {"linkerd": {"enabled": True, "nativeSidecars": False}},
        "migrations.mode=initContainer has no network with linkerd.nativeSidecars=false: use job",
    ),
    (
        {"shutdown": {"terminationGracePeriodSeconds": 30}},
        "terminationGracePeriodSeconds=30 is too short: a drain may take 81 s",
    ),
    (
        {"config": {"DISPATCHER_DELIVERY_DRAIN_S": "60"}, "shutdown": {"terminationGracePeriodSeconds": 231}},
        "terminationGracePeriodSeconds=231 is too short: a drain may take 231 s",
    ),
    ({"probes": {"readiness": "grpc"}, "tls": {"secretName": "t"}}, "a kubelet speaks plain gRPC"),
    ({"probes": {"readiness": "grpc"}, "linkerd": {"enabled": True}}, "lets a kubelet's HTTP probes in, no others"),
    (
        {"probes": {"readiness": "grpc"}, "config": {"DISPATCHER_HEALTH_ACCESS": "authenticated"}},
        "a kubelet has no credentials",
    ),
    ({"egress": {"mode": "proxy"}}, "egress.mode=proxy needs secrets.egressProxyUrl.key"),
    ({"secrets": {"egressProxyUrl": {"key": "k"}}}, "secrets.egressProxyUrl means nothing with egress.mode=direct"),
    ({"egress": {"mode": "gateway"}}, "egress.mode=gateway needs istio.enabled"),
    ({"egress": {"mode": "gateway"}, "istio": {"enabled": True}}, "egress.mode=gateway needs egress.gateway.hosts"),
    (
        {"egress": {"mode": "gateway"}, "config": {"DISPATCHER_EGRESS_ALLOW_HTTP": True}},
        "config.DISPATCHER_EGRESS_ALLOW_HTTP: egress.mode=gateway sets it",
    ),
    ({"config": {"DISPATCHER_EGRESS_ALLOWED_HOSTS": "svc.cluster.local"}}, "a NetworkPolicy knows no names"),
    ({"adminService": {"enabled": True}}, "adminService.enabled with networkPolicy.operators empty"),
    (
        {"cnpg": {"enabled": True}, "networkPolicy": {"database": {"port": 6432}}},
        "networkPolicy.database.port=6432 with cnpg.enabled: its pods listen on 5432",
    ),
    (
        {"cnpg": {"enabled": True, "parameters": {"max_connections": "39"}}},
        "cnpg.parameters.max_connections=39 is too few: there may be 30",
    ),
    *(
        (mode("jwt", jwt=JWT | {"keysUrl": f"https://idp:{port}/keys"}), f"auth.jwt.keysUrl: {port} is no port")
        for port in ("99999999", "65536", "0")
    ),
    *(
        ({"config": {name: url}}, f"config.{name}: networkPolicy.collector.ports lacks {port}")
        for name, url, port in (
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otlp:443", "443"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://[fd00::1]:9317/v1/traces", "9317"),
        )
    ),
    *(
        (nested(path, [BLOCK, BLOCK | {selector: {}}]), f"{path}: ipBlock 10.0.0.0/8 stands beside a selector")
        for path, selector in zip(PEERS, itertools.cycle(["podSelector", "namespaceSelector"]), strict=False)
    ),
    ({"istio": {"enabled": True, "ambient": True}}, "istio.ambient with istio.enabled"),
    (
        {"istio": {"serviceEntries": [entry("otlp"), entry("b"), entry("otlp")]}},
        "istio.serviceEntries: otlp is there twice",
    ),
    (
        {
            "egress": {"mode": "gateway", "gateway": {"hosts": ["a.example.com"]}},
            "istio": {"enabled": True, "serviceEntries": [entry("egress")]},
        },
        "istio.serviceEntries: egress is the name of what egress.mode=gateway makes",
    ),
    ({"linkerd": {"enabled": True}, "istio": {"ambient": True}}, "istio.ambient with linkerd.enabled"),
    (mode("xfcc") | {"istio": {"ambient": True}}, "istio.ambient has none: use jwt, or mtls"),
    ({"autoscaling": {"minReplicas": 11}}, "autoscaling.minReplicas must not exceed autoscaling.maxReplicas"),
    (
        {"autoscaling": {"mode": "keda", "keda": {"trigger": "prometheus"}}},
        "autoscaling.keda.trigger=prometheus needs autoscaling.keda.prometheusAddress",
    ),
    ({"grpcRoute": {"enabled": True}}, "grpcRoute.enabled needs grpcRoute.parentRefs"),
    ({"config": {"OTEL_EXPORTER_OTLP_HEADERS": "a=b"}}, "headers hold credentials"),
    (
        {"extraEnv": [{"name": "DISPATCHER_WORKERS", "value": "2"}]},
        "extraEnv: DISPATCHER_WORKERS goes into config, or into secrets",
    ),
    (
        {"secrets": {"databaseCa": {"key": "ca.crt"}}, "extraEnv": [{"name": "PGSSLROOTCERT", "value": "x"}]},
        "extraEnv: PGSSLROOTCERT is there already",
    ),
    (
        {"secrets": {"collectorCa": {"key": "c"}}, "config": {"OTEL_EXPORTER_OTLP_CERTIFICATE": "x"}},
        "config.OTEL_EXPORTER_OTLP_CERTIFICATE and secrets.collectorCa: keep one",
    ),
    (
        {"extraEnv": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]},
        "extraEnv: A has a value and a valueFrom: keep one",
    ),
    ({"config": {"DISPATCHER_WORKERS": "1000"}}, "config.DISPATCHER_WORKERS: 1000 is not between 1 and 64"),
    (
        {"config": {"DISPATCHER_DELIVERY_DRAIN_S": "300.5"}},
        "config.DISPATCHER_DELIVERY_DRAIN_S: 300.5 is not between 0 and 300",
    ),
    *(
        (
            {"config": {"DISPATCHER_EGRESS_ALLOWED_PORTS": ports}},
            f'config.DISPATCHER_EGRESS_ALLOWED_PORTS: "{wrong}" is no port and no range',
        )
        for ports, wrong in (("443, 8443", " 8443"), ("9-1", "9-1"), ("0", "0"), ("1-65536", "1-65536"), ("1,", ""))
    ),
    *(
        (
            {"config": {"DISPATCHER_EGRESS_ALLOWED_NETWORKS": f"10.0.0.0/8,{network}"}},
            f"config.DISPATCHER_EGRESS_ALLOWED_NETWORKS: {said}",
        )
        for network, said in (
            ("10.1.2.3/8", "10.1.2.3/8 has bits beyond its prefix"),
            ("10.0.0.0/0", "10.0.0.0/0 has bits beyond its prefix"),
            ("receiver.internal", '"receiver.internal/32" is no network'),
            *(
                (network, f'"{network}" is no network')
                for network in (
                    "10.0.0.0/33",
                    "10.256.0.0/16",
                    "999.0.0.0/8",
                    "010.0.0.0/8",
                    "fd00::/129",
                    "fd00::/999",
                )
            ),
        )
    ),
    *(
        (values, f"{path}: {own} is set by the chart itself")
        for path, own, values in (
            ("podLabels", "app.kubernetes.io/name", {"podLabels": {"app.kubernetes.io/name": "x"}}),
            ("commonLabels", "app.kubernetes.io/component", {"commonLabels": {"app.kubernetes.io/component": "x"}}),
            ("monitoring.labels", "helm.sh/chart", {"monitoring": {"labels": {"helm.sh/chart": "x"}}}),
            (
                *("monitoring.dashboards.label", "app.kubernetes.io/name"),
                {"monitoring": {"dashboards": {"label": "app.kubernetes.io/name"}}},
            ),
            ("podAnnotations", "checksum/config", {"podAnnotations": {"checksum/config": "x"}}),
        )
    ),
    ({"extraEnv": [{"name": "POD_NAME", "value": "x"}]}, "extraEnv: POD_NAME is there already"),
    ({"extraEnv": [{"name": "A", "value": "x"}, {"name": "A", "value": "z"}]}, "extraEnv: A is there already"),
]


@pytest.mark.parametrize(("overlay", "said"), BY_SCHEMA, ids=[said for _, said in BY_SCHEMA])
def test_the_schema_refuses(overlay: dict[str, Any], said: str) -> None:
    assert said in refusal(overlay)


@pytest.mark.parametrize(("overlay", "said"), BY_THE_CHART, ids=[said for _, said in BY_THE_CHART])
def test_the_chart_refuses(overlay: dict[str, Any], said: str) -> None:
    told = refusal(overlay)
    assert "these values can't work" in told
    assert said in told


def test_every_list_of_peers_is_looked_at() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(lists_of_peers(schema)) == set(PEERS)


def lists_of_peers(schema: dict[str, Any], above: str = "") -> Iterator[str]:
    """Paths of the values that are peers of a NetworkPolicy."""
    for key, each in schema.get("properties", {}).items():
        if each.get("$ref") == "#/definitions/peers":
            yield f"{above}{key}"
        yield from lists_of_peers(each, f"{above}{key}.")


def test_all_problems_are_told_at_once() -> None:
    told = refusal({"auth": NO_POLICY, "egress": {"mode": "proxy"}, "autoscaling": {"minReplicas": 11}})
    assert told.count("\n  ") == 3


@pytest.mark.parametrize("variable", sorted(variable_of(name) for name in Settings.model_fields if is_secret(name)))
def test_a_secret_is_never_taken_as_a_setting(variable: str) -> None:
    assert f"config.{variable}: it is a secret" in refusal({"config": {variable: "postgresql://u:p@h/d"}})


@pytest.mark.parametrize("kube", ["1.29.9", "1.27.0"])
def test_the_sleep_action_is_refused_where_kubernetes_has_none(kube: str) -> None:
    assert "needs Kubernetes 1.30" in refusal({"shutdown": {"preStop": {"action": "sleep"}}}, kube=kube)


def test_an_older_kubernetes_is_refused() -> None:
    assert ">=1.27.0-0" in refusal({}, kube="1.26.9")


def test_an_envoy_of_one_s_own_may_tell_who_calls_where_it_is_named() -> None:
    rendered = render("minimal", mode("xfcc") | {"config": {"DISPATCHER_AUTH_TRUSTED_PEERS": "10.1.0.0/16"}})
    assert rendered.settings["DISPATCHER_AUTH_TRUSTED_PEERS"] == "10.1.0.0/16"
    assert not any(entry["name"] == "DISPATCHER_AUTH_TRUSTED_PEERS" for entry in rendered.container["env"])


def test_an_entry_may_be_called_egress_where_nothing_else_is() -> None:
    overlay = mode("xfcc") | {"istio": {"enabled": True, "serviceEntries": [entry("egress")]}}
    assert render("minimal", overlay).one("ServiceEntry", "-egress")["spec"]["hosts"] == ["egress.example.com"]


def test_the_grace_that_is_just_enough_is_taken() -> None:
    spec = render("minimal", {"shutdown": {"terminationGracePeriodSeconds": 82}}).pod["spec"]
    assert spec["terminationGracePeriodSeconds"] == 82
