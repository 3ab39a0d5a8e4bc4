"""Tenants: checks of requests, and messages of records. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from webhooks.v1 import tenant_pb2

from dispatcher.api.convert import checks
from dispatcher.api.convert.checks import Violations
from dispatcher.api.convert.masks import Maskable, leaves_to_change
from dispatcher.api.convert.names import new_id, read_name
from dispatcher.api.convert.times import timestamp
from dispatcher.model import Tenant
from dispatcher.store.tenants import NewTenant

PATTERN = "tenants/{tenant}"


def _display_name(tenant: tenant_pb2.Tenant, violations: Violations) -> str:
    return checks.text(tenant.display_name, "tenant.display_name", violations, chars_max=checks.DISPLAY_NAME_CHARS_MAX)


def _labels(tenant: tenant_pb2.Tenant, violations: Violations) -> dict[str, str]:
    return checks.labels(tenant.labels, "tenant.labels", violations)


def _require_registered(tenant: tenant_pb2.Tenant, _: Violations) -> bool:
    return tenant.require_registered_event_types


_READERS: dict[str, Callable[[tenant_pb2.Tenant, Violations], Any]] = {
    "display_name": _display_name,
    "labels": _labels,
    "require_registered_event_types": _require_registered,
}
MASKABLE = Maskable(tuple(_READERS))


def read_create(request: tenant_pb2.CreateTenantRequest) -> NewTenant:
    """The tenant to create. Errors: InvalidRequestError."""
    violations = Violations()
    if not request.HasField("tenant"):
        violations.add("tenant", "must be set")
    name = new_id(request.tenant_id, "tenant_id", violations)
    values = {leaf: read(request.tenant, violations) for leaf, read in _READERS.items()}
    violations.raise_if_any()
    return NewTenant(name=name, **values)


def read_update(request: tenant_pb2.UpdateTenantRequest) -> tuple[str, Callable[[Tenant], Tenant]]:
    """The tenant's id, and its change. Errors: InvalidRequestError."""
    violations = Violations()
    (name,) = read_name(request.tenant.name, PATTERN, violations, field="tenant.name")
    checks.etag(request.tenant.etag, "tenant.etag", violations)
    changed = leaves_to_change(request.update_mask, request.tenant, MASKABLE, violations)
    values = {leaf: _READERS[leaf](request.tenant, violations) for leaf in sorted(changed)}
    violations.raise_if_any()
    return name, lambda before: replace(before, **values)


def tenant_message(tenant: Tenant) -> tenant_pb2.Tenant:
    """A tenant as the API shows it."""
    return tenant_pb2.Tenant(
        name=f"tenants/{tenant.name}",
        uid=str(tenant.tenant_id),
        display_name=tenant.display_name,
        labels=tenant.labels,
        require_registered_event_types=tenant.require_registered_event_types,
        create_time=timestamp(tenant.create_time),
        update_time=timestamp(tenant.update_time),
        etag=str(tenant.etag),
    )
