"""What each call needs: one table of all methods. A method that is not in it is refused to everybody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dispatcher.errors import PermissionDeniedError
from dispatcher.security.authorization import AccessPolicy, Permission
from dispatcher.security.callers import Caller

SHOWN_TYPES_MAX = 5

_PUBLISH = (Permission.PUBLISH,)
_MANAGE = (Permission.MANAGE,)
_READ = (Permission.READ,)
_OPERATE = (Permission.OPERATE,)
_RUN = (Permission.MANAGE, Permission.OPERATE)
_SEE = (Permission.MANAGE, Permission.READ, Permission.OPERATE)
_SEE_TYPES = (*_SEE, Permission.PUBLISH)


@dataclass(frozen=True, slots=True)
class MethodRule:
    """`permissions`: any one of them. `name` is the path of the field that names the resource, empty where the call is
    about the whole deployment. `is_change`: it leaves an audit record."""

    permissions: tuple[Permission, ...]
    name: str = ""
    is_change: bool = False
    asks_each: bool = False
    """A stream whose requests are judged one by one."""


def _methods(service: str, rules: Mapping[str, MethodRule]) -> dict[str, MethodRule]:
    return {f"webhooks.{service}/{method}": rule for method, rule in rules.items()}


RULES: Mapping[str, MethodRule] = {
    **_methods(
        "v1.PublisherService",
        {
            "Publish": MethodRule(_PUBLISH, "parent"),
            "PublishStream": MethodRule(_PUBLISH, asks_each=True),
        },
    ),
    **_methods(
        "v1.TenantService",
        {
            "CreateTenant": MethodRule(_OPERATE, "tenant_id", is_change=True),
            "GetTenant": MethodRule(_SEE, "name"),
            "ListTenants": MethodRule(_SEE),
            "UpdateTenant": MethodRule(_OPERATE, "tenant.name", is_change=True),
            "PauseTenant": MethodRule(_OPERATE, "name", is_change=True),
            "ResumeTenant": MethodRule(_OPERATE, "name", is_change=True),
            "DeleteTenant": MethodRule(_OPERATE, "name", is_change=True),
        },
    ),
    **_methods(
        "v1.EventTypeService",
        {
            "CreateEventType": MethodRule(_MANAGE, "parent", is_change=True),
            "GetEventType": MethodRule(_SEE_TYPES, "name"),
            "ListEventTypes": MethodRule(_SEE_TYPES, "parent"),
            "UpdateEventType": MethodRule(_MANAGE, "event_type.name", is_change=True),
            "DeleteEventType": MethodRule(_MANAGE, "name", is_change=True),
        },
    ),
    **_methods(
        "v1.EndpointService",
        {
            "CreateEndpoint": MethodRule(_MANAGE, "parent", is_change=True),
            "GetEndpoint": MethodRule(_SEE, "name"),
            "ListEndpoints": MethodRule(_SEE, "parent"),
            "UpdateEndpoint": MethodRule(_MANAGE, "endpoint.name", is_change=True),
            "DeleteEndpoint": MethodRule(_MANAGE, "name", is_change=True),
            "PauseEndpoint": MethodRule(_RUN, "name", is_change=True),
            "ResumeEndpoint": MethodRule(_RUN, "name", is_change=True),
            "EnableEndpoint": MethodRule(_RUN, "name", is_change=True),
            "RotateSigningKey": MethodRule(_MANAGE, "name", is_change=True),
            "TestEndpoint": MethodRule(_RUN, "name", is_change=True),
        },
    ),
    **_methods(
        "v1.DeliveryService",
        {
            "GetEvent": MethodRule(_READ, "name"),
            "ExpungeEvent": MethodRule(_OPERATE, "name", is_change=True),
            "ListEvents": MethodRule(_READ, "parent"),
            "GetDelivery": MethodRule(_READ, "name"),
            "ListDeliveries": MethodRule(_READ, "parent"),
            "ListAttempts": MethodRule(_READ, "parent"),
            "SkipDelivery": MethodRule(_OPERATE, "name", is_change=True),
            "RetryDelivery": MethodRule(_OPERATE, "name", is_change=True),
            "GetEndpointStatus": MethodRule(_SEE, "name"),
            "GetTenantStatus": MethodRule(_SEE, "name"),
        },
    ),
    **_methods(
        "v1.DeadLetterService",
        {
            "GetDeadLetter": MethodRule(_READ, "name"),
            "ListDeadLetters": MethodRule(_READ, "parent"),
            "RedriveDeadLetter": MethodRule(_OPERATE, "name", is_change=True),
            "RedriveDeadLetters": MethodRule(_OPERATE, "parent", is_change=True),
            "DiscardDeadLetter": MethodRule(_OPERATE, "name", is_change=True),
        },
    ),
    **_methods(
        "v1.ReplayService",
        {
            "CreateReplay": MethodRule(_OPERATE, "parent", is_change=True),
            "GetReplay": MethodRule(_SEE, "name"),
            "ListReplays": MethodRule(_SEE, "parent"),
            "CancelReplay": MethodRule(_OPERATE, "name", is_change=True),
        },
    ),
    **_methods(
        "admin.v1.AdminService",
        {
            "GetStatus": MethodRule(_OPERATE),
            "ListInstances": MethodRule(_OPERATE),
            "ListLeases": MethodRule(_OPERATE),
            "ListAuditRecords": MethodRule(_OPERATE),
            "Drain": MethodRule(_OPERATE, is_change=True),
        },
    ),
}


def resource_of(rule: MethodRule, request: Any) -> str:
    """The name of the resource that a request is about, empty for the deployment."""
    if not rule.name:
        return ""
    value = request
    for part in rule.name.split("."):
        value = getattr(value, part)
    name = str(value)
    return f"tenants/{name}" if rule.name == "tenant_id" and name else name


def tenant_of(resource: str) -> str | None:
    """The tenant in a resource's name; None where there is none, which only a permission for all tenants covers."""
    collection, _, rest = resource.partition("/")
    tenant = rest.partition("/")[0]
    return tenant if collection == "tenants" and tenant else None


def require(policy: AccessPolicy, caller: Caller, rule: MethodRule, resource: str) -> None:
    """Raises PermissionDeniedError, which names what is missing."""
    tenant = tenant_of(resource)
    if not any(policy.allows(caller, permission, tenant) for permission in rule.permissions):
        wanted = " or ".join(permission.value for permission in rule.permissions)
        place = f"tenants/{tenant}" if tenant else "all tenants"
        raise _denied(caller, wanted, place)


def require_types(policy: AccessPolicy, caller: Caller, tenant: str | None, types: frozenset[str]) -> None:
    """That a caller may publish these event types. Raises PermissionDeniedError."""
    missing = sorted(each for each in types if not policy.allows(caller, Permission.PUBLISH, tenant, (each,)))
    if missing:
        shown = ", ".join(text[:128] for text in missing[:SHOWN_TYPES_MAX])
        raise _denied(caller, Permission.PUBLISH.value, f"event types {shown} of tenants/{tenant}")


def _denied(caller: Caller, wanted: str, place: str) -> PermissionDeniedError:
    return PermissionDeniedError(
        f"{caller.principal} has no permission {wanted} for {place}",
        metadata={"permission": wanted, "resource": place, "principal": caller.principal},
    )
