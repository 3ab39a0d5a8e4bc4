"""Tenants and event types over a real channel: CRUD, masks, etags, pages, filters, validate_only."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from webhooks.v1 import event_type_pb2, tenant_pb2

from tests.support.api import Api, refused

Tenant = tenant_pb2.Tenant
EventType = event_type_pb2.EventType


def update(tenant: Tenant, *paths: str, **options: Any) -> tenant_pb2.UpdateTenantRequest:
    return tenant_pb2.UpdateTenantRequest(tenant=tenant, update_mask=FieldMask(paths=paths), **options)


async def test_a_tenant_is_created_read_changed_and_deleted(api: Api) -> None:
    created = await api.tenant(display_name="Acme", labels={"stage": "prod"})
    assert (created.name, created.display_name, dict(created.labels)) == ("tenants/acme", "Acme", {"stage": "prod"})
    assert created.uid
    assert created.etag
    assert created.create_time.seconds > 0
    get = tenant_pb2.GetTenantRequest(name="tenants/acme")
    assert await api.tenants.GetTenant(get) == created
    changed = await api.tenants.UpdateTenant(update(Tenant(name="tenants/acme", display_name="A"), "display_name"))
    assert (changed.display_name, dict(changed.labels)) == ("A", {"stage": "prod"})
    assert changed.etag != created.etag
    await api.tenants.DeleteTenant(tenant_pb2.DeleteTenantRequest(name="tenants/acme"))
    refusal = await refused(api.tenants.GetTenant(get))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert refusal.detail(error_details_pb2.ResourceInfo).resource_name == "tenants/acme"


async def test_a_tenant_without_an_id_gets_one(api: Api) -> None:
    created = await api.tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant=Tenant()))
    assert len(created.name.removeprefix("tenants/")) == 36


async def test_a_taken_id_already_exists(api: Api) -> None:
    await api.tenant()
    refusal = await refused(api.tenant())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "TENANT_EXISTS")
    assert refusal.metadata == {"resource": "tenants/acme"}


async def test_a_tenant_with_endpoints_is_not_deleted(api: Api) -> None:
    await api.tenant()
    await api.endpoint()
    refusal = await refused(api.tenants.DeleteTenant(tenant_pb2.DeleteTenantRequest(name="tenants/acme")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TENANT_NOT_EMPTY")
    (violation,) = refusal.detail(error_details_pb2.PreconditionFailure).violations
    assert (violation.type, violation.subject) == ("TENANT_NOT_EMPTY", "tenants/acme")


BAD_TENANTS: dict[str, tuple[tenant_pb2.CreateTenantRequest, list[str]]] = {
    "an id with a dot": (tenant_pb2.CreateTenantRequest(tenant_id="a.b", tenant=Tenant()), ["tenant_id"]),
    "a long id": (tenant_pb2.CreateTenantRequest(tenant_id="a" * 65, tenant=Tenant()), ["tenant_id"]),
    "an id that begins with a dash": (tenant_pb2.CreateTenantRequest(tenant_id="-a", tenant=Tenant()), ["tenant_id"]),
    "no tenant": (tenant_pb2.CreateTenantRequest(tenant_id="a"), ["tenant"]),
    "a long display name": (
        tenant_pb2.CreateTenantRequest(tenant=Tenant(display_name="a" * 129)),
        ["tenant.display_name"],
    ),
    "control characters": (
        tenant_pb2.CreateTenantRequest(tenant=Tenant(display_name="a\x00")),
        ["tenant.display_name"],
    ),
    "several bad fields": (
        tenant_pb2.CreateTenantRequest(
            tenant_id="a b", tenant=Tenant(display_name="\n", labels={"A": "x", "b": "y" * 64, "c": "\x00"})
        ),
        ["tenant_id", "tenant.display_name", "tenant.labels[A]", "tenant.labels[b]", "tenant.labels[c]"],
    ),
    "too many labels": (
        tenant_pb2.CreateTenantRequest(tenant=Tenant(labels={f"l{i}": "" for i in range(65)})),
        ["tenant.labels"],
    ),
}


@pytest.mark.parametrize("name", BAD_TENANTS)
async def test_a_bad_tenant_is_refused_field_by_field_and_not_stored(api: Api, name: str) -> None:
    request, fields = BAD_TENANTS[name]
    refusal = await refused(api.tenants.CreateTenant(request))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(refusal.fields) == sorted(fields)
    assert await api.count("tenant") == 0


async def test_validate_only_checks_and_changes_nothing(api: Api) -> None:
    request = tenant_pb2.CreateTenantRequest(tenant_id="acme", tenant=Tenant(display_name="A"), validate_only=True)
    assert (await api.tenants.CreateTenant(request)).display_name == "A"
    assert await api.count("tenant") == 0
    created = await api.tenant(display_name="A")
    planned = await api.tenants.UpdateTenant(
        update(Tenant(name="tenants/acme", display_name="B"), "display_name", validate_only=True)
    )
    assert planned.display_name == "B"
    await api.tenants.DeleteTenant(tenant_pb2.DeleteTenantRequest(name="tenants/acme", validate_only=True))
    assert await api.tenants.GetTenant(tenant_pb2.GetTenantRequest(name="tenants/acme")) == created
    refusal = await refused(api.tenants.CreateTenant(request))
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS


async def test_an_etag_that_is_not_the_present_one_aborts(api: Api) -> None:
    created = await api.tenant()
    stale = Tenant(name=created.name, display_name="B", etag=created.etag)
    await api.tenants.UpdateTenant(update(stale, "display_name"))
    refusal = await refused(api.tenants.UpdateTenant(update(stale, "display_name")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    delete = tenant_pb2.DeleteTenantRequest(name=created.name, etag=created.etag)
    assert (await refused(api.tenants.DeleteTenant(delete))).code is grpc.StatusCode.ABORTED


async def test_of_two_changes_with_one_etag_exactly_one_wins(api: Api) -> None:
    created = await api.tenant()
    attempts = [
        api.tenants.UpdateTenant(update(Tenant(name=created.name, display_name=n, etag=created.etag), "display_name"))
        for n in "abcdef"
    ]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    lost = [r for r in results if isinstance(r, grpc.aio.AioRpcError)]
    assert len(lost) == len(attempts) - 1
    assert {error.code() for error in lost} == {grpc.StatusCode.ABORTED}


async def test_masks(api: Api) -> None:
    await api.tenant(display_name="A", labels={"a": "b"}, require_registered_event_types=True)
    patch = Tenant(name="tenants/acme", display_name="B")
    implied = await api.tenants.UpdateTenant(update(patch))
    assert (implied.display_name, dict(implied.labels)) == ("B", {"a": "b"}), "an empty mask: what is set"
    ignored = await api.tenants.UpdateTenant(update(Tenant(name="tenants/acme", uid="x"), "uid", "name", "create_time"))
    assert ignored == implied, "output-only fields are ignored"
    cleared = await api.tenants.UpdateTenant(update(patch, "*"))
    assert (dict(cleared.labels), cleared.require_registered_event_types) == ({}, False)
    for paths in (["nothing"], ["labels.a"], ["*", "labels"], ["display_name", "nothing"]):
        refusal = await refused(api.tenants.UpdateTenant(update(patch, *paths)))
        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["update_mask"])
    assert await api.tenants.GetTenant(tenant_pb2.GetTenantRequest(name="tenants/acme")) == cleared


async def test_pages_and_filters(api: Api) -> None:
    for name in ("a", "b", "c"):
        await api.tenant(name, labels={"stage": "prod" if name != "b" else "test"})
    request = tenant_pb2.ListTenantsRequest(page_size=1, filter='labels.stage = "prod"')
    names = []
    while True:
        page = await api.tenants.ListTenants(request)
        names += [tenant.name for tenant in page.tenants]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert names == ["tenants/a", "tenants/c"]
    bad = {
        "page_token": tenant_pb2.ListTenantsRequest(page_token="x"),
        "filter": tenant_pb2.ListTenantsRequest(filter="color = red"),
        "page_size": tenant_pb2.ListTenantsRequest(page_size=-1),
    }
    for field, wrong in bad.items():
        refusal = await refused(api.tenants.ListTenants(wrong))
        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    other = tenant_pb2.ListTenantsRequest(page_token=request.page_token, filter="")
    assert (await refused(api.tenants.ListTenants(other))).fields == ["page_token"]


async def test_an_event_type_is_created_read_listed_changed_and_deleted(api: Api) -> None:
    await api.tenant()
    create = event_type_pb2.CreateEventTypeRequest(
        parent="tenants/acme", event_type_id="order.paid", event_type=EventType(description="Paid\nin full")
    )
    created = await api.event_types.CreateEventType(create)
    assert (created.name, created.description) == ("tenants/acme/eventTypes/order.paid", "Paid\nin full")
    assert (await refused(api.event_types.CreateEventType(create))).reason == "EVENT_TYPE_EXISTS"
    get = event_type_pb2.GetEventTypeRequest(name=created.name)
    assert await api.event_types.GetEventType(get) == created
    archive = event_type_pb2.UpdateEventTypeRequest(event_type=EventType(name=created.name, archived=True))
    assert (await api.event_types.UpdateEventType(archive)).archived
    listed = event_type_pb2.ListEventTypesRequest(parent="tenants/acme", filter="archived = true")
    assert [t.name for t in (await api.event_types.ListEventTypes(listed)).event_types] == [created.name]
    stale = event_type_pb2.DeleteEventTypeRequest(name=created.name, etag=created.etag)
    assert (await refused(api.event_types.DeleteEventType(stale))).code is grpc.StatusCode.ABORTED
    await api.event_types.DeleteEventType(event_type_pb2.DeleteEventTypeRequest(name=created.name))
    assert (await refused(api.event_types.GetEventType(get))).code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", ["", "a..b", "dispatcher.ping", "a" * 129, "ä"])
async def test_a_bad_event_type_is_refused_and_not_stored(api: Api, name: str) -> None:
    await api.tenant()
    request = event_type_pb2.CreateEventTypeRequest(
        parent="tenants/acme", event_type_id=name, event_type=EventType(description="\x00")
    )
    refusal = await refused(api.event_types.CreateEventType(request))
    assert refusal.fields == ["event_type_id", "event_type.description"]
    assert await api.count("event_type") == 0


async def test_event_types_of_an_unknown_tenant_are_not_found(api: Api) -> None:
    request = event_type_pb2.ListEventTypesRequest(parent="tenants/nobody")
    assert (await refused(api.event_types.ListEventTypes(request))).code is grpc.StatusCode.NOT_FOUND
