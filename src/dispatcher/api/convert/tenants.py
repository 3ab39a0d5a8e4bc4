"""Tenants: checks of requests, and messages of records. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from webhooks.v1 import tenant_pb2

from dispatcher.api.convert import checks, policies
from dispatcher.api.convert.checks import Violations
from dispatcher.api.convert.masks import Maskable, leaves_to_change
from dispatcher.api.convert.names import new_id, read_name
from dispatcher.api.convert.times import timestamp
from dispatcher.model import Tenant
from dispatcher.policy import PublishQuota, RetryOverrides
from dispatcher.store.tenants import NewTenant

PATTERN = "tenants/{tenant}"
STATE_REASON_CHARS_MAX = 256


def _display_name(tenant: tenant_pb2.Tenant, violations: Violations) -> str:
    return checks.text(tenant.display_name, "tenant.display_name", violations, chars_max=checks.DISPLAY_NAME_CHARS_MAX)


def _labels(tenant: tenant_pb2.Tenant, violations: Violations) -> dict[str, str]:
    return checks.labels(tenant.labels, "tenant.labels", violations)


def _require_registered(tenant: tenant_pb2.Tenant, _: Violations) -> bool:
    return tenant.require_registered_event_types


def _retry(tenant: tenant_pb2.Tenant, violations: Violations) -> RetryOverrides:
    return policies.read_retry(tenant.default_retry_policy, "tenant.default_retry_policy", violations)


def _quota(tenant: tenant_pb2.Tenant, violations: Violations) -> PublishQuota:
    return policies.read_quota(tenant.publish_quota, "tenant.publish_quota", violations)


_READERS: dict[str, Callable[[tenant_pb2.Tenant, Violations], Any]] = {
    "display_name": _display_name,
    "labels": _labels,
    "require_registered_event_types": _require_registered,
    "default_retry_policy": _retry,
    "publish_quota": _quota,
}
# A leaf's field of the record where it has another name.
_FIELDS = {"default_retry_policy": "retry"}
MASKABLE = Maskable(
    tuple(_READERS), frozenset({"name", "uid", "create_time", "update_time", "etag", "state", "state_reason"})
)


def read_create(request: tenant_pb2.CreateTenantRequest) -> NewTenant:
    """The tenant to create. Errors: InvalidRequestError."""
    violations = Violations()
    if not request.HasField("tenant"):
        violations.add("tenant", "must be set")
    name = new_id(request.tenant_id, "tenant_id", violations)
    values = _read(_READERS, request.tenant, violations)
    violations.raise_if_any()
    return NewTenant(name=name, **values)


def read_update(request: tenant_pb2.UpdateTenantRequest) -> tuple[str, Callable[[Tenant], Tenant]]:
    """The tenant's id, and its change. Errors: InvalidRequestError."""
    violations = Violations()
    (name,) = read_name(request.tenant.name, PATTERN, violations, field="tenant.name")
    checks.etag(request.tenant.etag, "tenant.etag", violations)
    changed = leaves_to_change(request.update_mask, request.tenant, MASKABLE, violations)
    values = _read(sorted(changed), request.tenant, violations)
    violations.raise_if_any()
    return name, lambda before: replace(before, **values)


def _read(leaves: Iterable[str], tenant: tenant_pb2.Tenant, violations: Violations) -> dict[str, Any]:
    return {_FIELDS.get(leaf, leaf): _READERS[leaf](tenant, violations) for leaf in leaves}


def read_pause(request: tenant_pb2.PauseTenantRequest) -> tuple[str, str]:
    """The tenant's id, and the reason. Errors: InvalidRequestError."""
    violations = Violations()
    (name,) = read_name(request.name, PATTERN, violations)
    checks.etag(request.etag, "etag", violations)
    reason = checks.text(request.reason, "reason", violations, chars_max=STATE_REASON_CHARS_MAX)
    violations.raise_if_any()
    return name, reason


def read_resume(request: tenant_pb2.ResumeTenantRequest) -> tuple[str, float | None]:
    """The tenant's id, and the rate to catch up at. Errors: InvalidRequestError."""
    violations = Violations()
    (name,) = read_name(request.name, PATTERN, violations)
    checks.etag(request.etag, "etag", violations)
    rate = policies.read_rate(request.max_per_second, "max_per_second", violations)
    violations.raise_if_any()
    return name, rate


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
        default_retry_policy=policies.retry_message(tenant.retry),
        publish_quota=policies.quota_message(tenant.publish_quota),
        state=tenant_pb2.Tenant.State.Value(f"STATE_{tenant.state.value}"),
        state_reason=tenant.state_reason,
    )
