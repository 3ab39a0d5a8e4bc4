"""What each call needs: every method is in the table, and what a caller lacks is named."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pool, message_factory
from webhooks.v1 import endpoint_pb2, tenant_pb2

from dispatcher.api.permissions import RULES, MethodRule, require, resource_of, tenant_of
from dispatcher.api.server import ADMIN_SERVICES, CALLER_SERVICES
from dispatcher.errors import PermissionDeniedError
from dispatcher.security.authorization import AccessPolicy
from dispatcher.security.callers import AuthMode, Caller

READS = ("Get", "List")
METHODS = [
    (f"{service}/{method.name}", method)
    for service in (*CALLER_SERVICES, *ADMIN_SERVICES)
    for method in descriptor_pool.Default().FindServiceByName(service).methods
]


def test_every_method_is_in_the_table_and_nothing_else() -> None:
    assert {name for name, _ in METHODS} == set(RULES)


@pytest.mark.parametrize(("name", "method"), METHODS, ids=[name for name, _ in METHODS])
def test_a_method_names_its_resource_and_tells_whether_it_changes_anything(name: str, method: object) -> None:
    rule = RULES[name]
    request = message_factory.GetMessageClass(method.input_type)()  # type: ignore[attr-defined]
    if not rule.asks_each:
        assert resource_of(rule, request) == "", "the field exists, and is empty"
        fields = set(request.DESCRIPTOR.fields_by_name)
        assert rule.name or not fields & {"parent", "name"}, "a request that names a resource is judged by it"
    is_read = name.rpartition("/")[2].startswith(READS)
    assert rule.is_change is not (is_read or "PublisherService" in name)


def test_the_tenant_is_read_as_the_services_read_it() -> None:
    assert tenant_of("tenants/acme/endpoints/billing") == "acme"
    assert tenant_of("tenants/acme") == "acme"
    for name in ("", "tenants", "tenants/", "tenants//endpoints/x", "Tenants/acme", "/tenants/acme", "x/acme"):
        assert tenant_of(name) is None


def test_nested_names_and_new_tenants_are_found() -> None:
    update = endpoint_pb2.UpdateEndpointRequest(endpoint=endpoint_pb2.Endpoint(name="tenants/acme/endpoints/b"))
    assert resource_of(RULES["webhooks.v1.EndpointService/UpdateEndpoint"], update) == "tenants/acme/endpoints/b"
    create = RULES["webhooks.v1.TenantService/CreateTenant"]
    assert resource_of(create, tenant_pb2.CreateTenantRequest(tenant_id="acme")) == "tenants/acme"
    assert resource_of(create, tenant_pb2.CreateTenantRequest()) == ""


def test_what_is_missing_is_named() -> None:
    rule: MethodRule = RULES["webhooks.v1.EndpointService/GetEndpoint"]
    with pytest.raises(PermissionDeniedError) as caught:
        require(AccessPolicy(()), Caller("billing", AuthMode.TOKENS), rule, "tenants/acme/endpoints/b")
    assert "endpoints.manage or deliveries.read" in caught.value.message
    assert caught.value.metadata["resource"] == "tenants/acme"
