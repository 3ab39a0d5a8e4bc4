"""Event types: checks of requests, and messages of records. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from webhooks.v1 import event_type_pb2

from dispatcher.api.convert import checks
from dispatcher.api.convert.checks import Violations
from dispatcher.api.convert.masks import Maskable, leaves_to_change
from dispatcher.api.convert.names import read_name
from dispatcher.api.convert.times import timestamp
from dispatcher.model import EventType
from dispatcher.routing.patterns import is_reserved, type_problem
from dispatcher.store.event_types import NewEventType

PATTERN = "tenants/{tenant}/eventTypes/{event_type}"


def _description(event_type: event_type_pb2.EventType, violations: Violations) -> str:
    return checks.text(
        event_type.description,
        "event_type.description",
        violations,
        chars_max=checks.DESCRIPTION_CHARS_MAX,
        lines=True,
    )


def _labels(event_type: event_type_pb2.EventType, violations: Violations) -> dict[str, str]:
    return checks.labels(event_type.labels, "event_type.labels", violations)


def _archived(event_type: event_type_pb2.EventType, _: Violations) -> bool:
    return event_type.archived


_READERS: dict[str, Callable[[event_type_pb2.EventType, Violations], Any]] = {
    "description": _description,
    "labels": _labels,
    "archived": _archived,
}
MASKABLE = Maskable(tuple(_READERS))


def read_create(request: event_type_pb2.CreateEventTypeRequest) -> tuple[str, NewEventType]:
    """The tenant's id, and the event type to register. Errors: InvalidRequestError."""
    violations = Violations()
    (tenant,) = read_name(request.parent, "tenants/{tenant}", violations, field="parent")
    problem = type_problem(request.event_type_id)
    if problem is not None:
        violations.add("event_type_id", problem)
    elif is_reserved(request.event_type_id):
        violations.add("event_type_id", "must not begin with `dispatcher.`: these types are the service's own")
    if not request.HasField("event_type"):
        violations.add("event_type", "must be set; it may be empty")
    values = {leaf: read(request.event_type, violations) for leaf, read in _READERS.items()}
    violations.raise_if_any()
    return tenant, NewEventType(name=request.event_type_id, **values)


def read_update(
    request: event_type_pb2.UpdateEventTypeRequest,
) -> tuple[str, str, Callable[[EventType], EventType]]:
    """The ids of tenant and event type, and the change. Errors: InvalidRequestError."""
    violations = Violations()
    tenant, name = read_name(request.event_type.name, PATTERN, violations, field="event_type.name")
    checks.etag(request.event_type.etag, "event_type.etag", violations)
    changed = leaves_to_change(request.update_mask, request.event_type, MASKABLE, violations)
    values = {leaf: _READERS[leaf](request.event_type, violations) for leaf in sorted(changed)}
    violations.raise_if_any()
    return tenant, name, lambda before: replace(before, **values)


def event_type_message(tenant: str, event_type: EventType) -> event_type_pb2.EventType:
    """An event type as the API shows it."""
    return event_type_pb2.EventType(
        name=f"tenants/{tenant}/eventTypes/{event_type.name}",
        description=event_type.description,
        labels=event_type.labels,
        archived=event_type.archived,
        create_time=timestamp(event_type.create_time),
        update_time=timestamp(event_type.update_time),
        etag=str(event_type.etag),
    )
