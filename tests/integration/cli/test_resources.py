"""Commands on resources over a real channel: what is asked, what is shown, how refusals read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf import empty_pb2
from google.rpc import code_pb2, error_details_pb2
from webhooks.v1 import (
    attempt_pb2,
    delivery_pb2,
    endpoint_pb2,
    event_type_pb2,
    statistics_pb2,
    tenant_pb2,
    tenant_status_pb2,
)

from tests.support.cli import CliResult, run_cli
from tests.support.fake_service import FakeResources, bad_request, fake_service, refusal, retry_info
from tests.support.ports import closed_port

ENDPOINT = endpoint_pb2.Endpoint(
    name="tenants/acme/endpoints/e1",
    http=endpoint_pb2.HttpTarget(url="https://example.com/hook"),
    event_types=["order.*"],
    state=endpoint_pb2.Endpoint.STATE_ACTIVE,
    labels={"camelCase": "kept"},
    signing_keys=[endpoint_pb2.SigningKey(id="k1", secret="whsec_c2VjcmV0")],
)


class Served:
    """A fake and the way to it."""

    def __init__(self, target: str, resources: FakeResources) -> None:
        self.target = target
        self.resources = resources

    def run(self, *arguments: str) -> CliResult:
        return run_cli(*arguments, "--target", self.target)

    @property
    def request(self) -> Any:
        return self.resources.calls[-1][1]


@contextmanager
def served(answers: dict[str, Any]) -> Iterator[Served]:
    resources = FakeResources(answers)
    with fake_service(resources=resources) as target:
        yield Served(target, resources)


def test_create_sends_what_was_typed_and_shows_the_secret_once():
    with served({"EndpointService.CreateEndpoint": ENDPOINT}) as service:
        result = service.run(
            "endpoints",
            "create",
            "e1",
            "--tenant",
            "acme",
            "--url",
            "https://example.com/hook",
            "-e",
            "order.*",
            "--attempt-timeout",
            "500ms",
            "-H",
            "x-team: billing",
            "--ordering",
            "ordered-by-key",
            "--max-in-flight",
            "4",
            "--trace",
            "new-root",
            "-l",
            "stage=prod",
        )
    assert result.code == 0
    request = service.request
    assert (request.parent, request.endpoint_id, request.signing_secret) == ("tenants/acme", "e1", "")
    assert request.endpoint.http.url == "https://example.com/hook"
    assert list(request.endpoint.event_types) == ["order.*"]
    settings = request.endpoint.delivery_settings
    assert settings.timeout.ToMilliseconds() == 500
    assert dict(settings.headers) == {"x-team": "billing"}
    assert settings.max_in_flight == 4
    assert settings.ordering_mode == endpoint_pb2.ORDERING_MODE_ORDERED_BY_KEY
    assert settings.trace_propagation == endpoint_pb2.TRACE_PROPAGATION_NEW_ROOT
    assert dict(request.endpoint.labels) == {"stage": "prod"}
    assert "whsec_c2VjcmV0" in result.out
    assert "labels.camelCase" in result.out
    assert "only this once" in result.err


def test_a_secret_comes_from_a_file(tmp_path: Path):
    (tmp_path / "secret").write_text("whsec_bXkgc2VjcmV0\n")
    with served({"EndpointService.CreateEndpoint": ENDPOINT}) as service:
        url = ("--url", "https://example.com", "--signing-secret-file", str(tmp_path / "secret"))
        assert service.run("endpoints", "create", "-t", "acme", *url).code == 0
    assert service.request.signing_secret == "whsec_bXkgc2VjcmV0"
    assert list(service.request.endpoint.event_types) == ["*"]


def test_update_sends_only_the_given_fields_and_their_mask():
    with served({"EndpointService.UpdateEndpoint": ENDPOINT}) as service:
        result = service.run(
            "endpoints",
            "update",
            "tenants/acme/endpoints/e1",
            "--url",
            "https://new.example.com",
            "--state",
            "paused",
            "--description",
            "",
            "--clear-headers",
            "--attempt-timeout",
            "20s",
            "--etag",
            "v1",
        )
    assert result.code == 0
    assert sorted(service.request.update_mask.paths) == [
        "delivery_settings.headers",
        "delivery_settings.timeout",
        "description",
        "http.url",
        "state",
    ]
    endpoint = service.request.endpoint
    assert (endpoint.name, endpoint.etag) == ("tenants/acme/endpoints/e1", "v1")
    assert endpoint.state == endpoint_pb2.Endpoint.STATE_PAUSED
    assert endpoint.delivery_settings.timeout.seconds == 20
    assert list(endpoint.event_types) == []


def test_an_update_of_nothing_is_refused_before_any_call():
    with served({"TenantService.UpdateTenant": tenant_pb2.Tenant()}) as service:
        result = service.run("tenants", "update", "acme")
    assert result.code == 2
    assert "nothing to change" in result.err
    assert service.resources.calls == []


def test_lists_are_tables_that_cut_nothing_or_json():
    long_name = "tenants/" + "x" * 64
    page = tenant_pb2.ListTenantsResponse(
        tenants=[tenant_pb2.Tenant(name=long_name, labels={"a": "b"})], next_page_token="more"
    )
    last = tenant_pb2.ListTenantsResponse(tenants=[tenant_pb2.Tenant(name="tenants/zed")])
    with served({"TenantService.ListTenants": [page, page, page, last]}) as service:
        table = service.run("tenants", "list", "--filter", 'labels.a = "b"', "--page-size", "1")
        request = service.request
        as_json = service.run("tenants", "list", "--json")
        everything = service.run("tenants", "list", "--all", "--json")
    assert (request.filter, request.page_size) == ('labels.a = "b"', 1)
    assert long_name in table.out
    assert "--page-token more" in table.err
    assert as_json.json == {"tenants": [{"name": long_name, "labels": {"a": "b"}}], "nextPageToken": "more"}
    assert [tenant["name"] for tenant in everything.json["tenants"]] == [long_name, "tenants/zed"]
    assert service.request.page_token == "more"


def test_delete_force_and_etag_are_passed_on():
    with served({"EndpointService.DeleteEndpoint": empty_pb2.Empty()}) as service:
        result = service.run("endpoints", "delete", "e1", "-t", "acme", "--force", "--etag", "v2")
    assert result.code == 0
    assert (service.request.name, service.request.force, service.request.etag) == (
        "tenants/acme/endpoints/e1",
        True,
        "v2",
    )


def test_event_types_are_created_and_archived():
    answer = event_type_pb2.EventType(name="tenants/acme/eventTypes/order.paid", archived=True)
    with served({"EventTypeService.CreateEventType": answer, "EventTypeService.UpdateEventType": answer}) as service:
        assert service.run("event-types", "create", "order.paid", "-t", "acme", "--description", "Paid").code == 0
        created = service.request
        assert service.run("event-types", "update", "order.paid", "-t", "acme", "--archived").code == 0
    assert (created.parent, created.event_type_id, created.event_type.description) == (
        "tenants/acme",
        "order.paid",
        "Paid",
    )
    assert service.request.event_type.name == "tenants/acme/eventTypes/order.paid"
    assert list(service.request.update_mask.paths) == ["archived"]


def test_rotate_key_shows_the_new_secret():
    answer = endpoint_pb2.RotateSigningKeyResponse(
        signing_key=endpoint_pb2.SigningKey(id="k2", secret="whsec_bmV3"), endpoint=ENDPOINT
    )
    with served({"EndpointService.RotateSigningKey": answer}) as service:
        result = service.run("endpoints", "rotate-key", "e1", "-t", "acme", "--overlap", "2h")
    assert service.request.overlap.seconds == 7200
    assert "whsec_bmV3" in result.out


def test_a_ping_that_fails_ends_with_1_and_does_not_drive_the_terminal():
    answer = endpoint_pb2.TestEndpointResponse(
        outcome=attempt_pb2.ATTEMPT_OUTCOME_SUCCEEDED, status_code=200, response_excerpt=b"ok"
    )
    failed = endpoint_pb2.TestEndpointResponse(
        outcome=attempt_pb2.ATTEMPT_OUTCOME_UNSPECIFIED, status_code=500, response_excerpt=b"\x1b[2J[red]gone"
    )
    with served({"EndpointService.TestEndpoint": [answer, failed]}) as service:
        assert service.run("endpoints", "test", "e1", "-t", "acme").code == 0
        result = service.run("endpoints", "test", "e1", "-t", "acme")
    assert result.code == 1
    assert "\x1b" not in result.out
    assert r"\x1b[2J[red]gone" in result.out


def test_status_and_deliveries_name_the_endpoint():
    status = delivery_pb2.EndpointStatus(name="tenants/acme/endpoints/e1/status", last_sequence=7, backlog_count=2)
    page = delivery_pb2.ListDeliveriesResponse(
        deliveries=[delivery_pb2.Delivery(name="tenants/acme/endpoints/e1/deliveries/7")]
    )
    with served({"DeliveryService.GetEndpointStatus": status, "DeliveryService.ListDeliveries": page}) as service:
        shown = service.run("endpoints", "status", "e1", "-t", "acme")
        assert service.request.name == "tenants/acme/endpoints/e1/status"
        listed = service.run("deliveries", "list", "-t", "acme", "--endpoint", "e1")
    assert "backlog_count" in shown.out
    assert service.request.parent == "tenants/acme/endpoints/e1"
    assert "deliveries/7" in listed.out


def test_a_tenants_status_is_a_panel_and_tables_of_the_worst():
    worst = [
        tenant_status_pb2.EndpointBacklog(endpoint=f"tenants/acme/endpoints/e{n}", backlog_count=n) for n in (7, 3)
    ]
    worst[1].halted = True
    status = tenant_status_pb2.TenantStatus(
        name="tenants/acme/status",
        endpoints=tenant_status_pb2.EndpointCounts(total=4, active=4, halted=1),
        backlog_count=10,
        largest=worst,
        recent=statistics_pb2.DeliveryStatistics(attempt_count=12, success_ratio=0.75),
    )
    with served({"DeliveryService.GetTenantStatus": status}) as service:
        shown = service.run("tenants", "status", "acme")
        assert service.request.name == "tenants/acme/status"
        as_json = service.run("tenants", "status", "tenants/acme", "--json")
    assert shown.code == 0
    for expected in ("endpoints.halted", "recent.success_ratio", "worst endpoints by backlog"):
        assert expected in shown.out
    assert "worst endpoints by age" not in shown.out, "none is named"
    rows = [line.split() for line in shown.out.splitlines() if "endpoints/e" in line]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("tenants/acme/endpoints/e7", "7", "no"),
        ("tenants/acme/endpoints/e3", "3", "yes"),
    ]
    assert as_json.json["largest"][0]["backlogCount"] == "7"


def test_a_refusal_is_one_paragraph_with_reason_and_fields():
    status = refusal(
        code_pb2.INVALID_ARGUMENT,
        "endpoint.http.url: must have a host",
        "INVALID_REQUEST",
        bad_request("endpoint.http.url", "must have a host"),
    )
    with served({"EndpointService.CreateEndpoint": status}) as service:
        result = service.run("endpoints", "create", "-t", "acme", "--url", "https://")
    assert result.code == 2
    assert result.out == ""
    assert result.err.splitlines() == [
        "error: EndpointService.CreateEndpoint was refused: endpoint.http.url: must have a host",
        "  INVALID_ARGUMENT, reason INVALID_REQUEST",
        "  endpoint.http.url: must have a host",
    ]


def test_codes_become_exit_codes():
    backlog = error_details_pb2.PreconditionFailure(
        violations=[{"type": "ENDPOINT_HAS_BACKLOG", "subject": "tenants/acme/endpoints/e1", "description": "7 wait"}]
    )
    answers = {
        "TenantService.GetTenant": refusal(code_pb2.NOT_FOUND, "no such tenant", "RESOURCE_NOT_FOUND"),
        "TenantService.DeleteTenant": refusal(code_pb2.FAILED_PRECONDITION, "not empty", "TENANT_NOT_EMPTY", backlog),
    }
    with served(answers) as service:
        assert service.run("tenants", "get", "acme").code == 4
        conflict = service.run("tenants", "delete", "acme")
    assert conflict.code == 5
    assert "tenants/acme/endpoints/e1: 7 wait" in conflict.err


def test_a_call_is_repeated_only_where_nothing_was_written():
    draining = refusal(code_pb2.UNAVAILABLE, "draining", "DRAINING", retry_info(0.05))
    unknown = refusal(code_pb2.UNAVAILABLE, "unknown", "COMMIT_UNKNOWN", retry_info(0.05))
    tenant = tenant_pb2.Tenant(name="tenants/acme")
    with served({"TenantService.CreateTenant": [draining, tenant]}) as service:
        assert service.run("tenants", "create", "acme").code == 0
        assert len(service.resources.calls) == 2
    with served({"TenantService.CreateTenant": [unknown, tenant]}) as service:
        assert service.run("tenants", "create", "acme").code == 3
        assert len(service.resources.calls) == 1


def test_a_service_that_is_away_is_named():
    target = f"127.0.0.1:{closed_port()}"
    result = run_cli("tenants", "list", "--target", target)
    assert result.code == 3
    assert f"Cannot reach the service at {target}" in result.err
    assert "DISPATCHER_CLIENT_TARGET" in result.err
