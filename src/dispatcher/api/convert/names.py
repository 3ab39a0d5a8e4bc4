"""Resource names (AIP-122): reading them strictly. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from uuid import UUID

from uuid_utils.compat import uuid7

from dispatcher.api.convert.checks import Violations
from dispatcher.errors import FieldViolation, InvalidRequestError

ANY = "-"
ID_RULE = "1 to 64 of A-Z a-z 0-9 _ -, beginning with a letter or digit"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_EVENT_TYPE = re.compile(r"(?=.{1,128}\Z)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_SEQUENCE = re.compile(r"[1-9][0-9]{0,17}")

_SEGMENTS: dict[str, re.Pattern[str]] = {
    "tenant": _ID,
    "endpoint": _ID,
    "event": _EVENT_ID,
    "event_type": _EVENT_TYPE,
    "delivery": _SEQUENCE,
    "dead_letter": _SEQUENCE,
    "replay": _ID,
    "instance": _ID,
}


def parse_name(name: str, pattern: str, *, field: str = "name", wild: bool = False) -> tuple[str, ...]:
    """The variable segments of `name`, which must be of `pattern` (`tenants/{tenant}/endpoints/{endpoint}`).

    With `wild` every variable but the tenant may be `-`. Errors: InvalidRequestError.
    """
    expected, given = pattern.split("/"), name.split("/")
    values = []
    for part, value in zip(expected, given, strict=False):
        if part.startswith("{"):
            if not _fits(part[1:-1], value, wild=wild):
                raise _malformed(field, pattern)
            values.append(value)
        elif part != value:
            raise _malformed(field, pattern)
    if len(expected) != len(given):
        raise _malformed(field, pattern)
    return tuple(values)


def read_name(
    name: str, pattern: str, violations: Violations, *, field: str = "name", wild: bool = False
) -> tuple[str, ...]:
    """`parse_name` that notes what is wrong, and then gives empty segments."""
    try:
        return parse_name(name, pattern, field=field, wild=wild)
    except InvalidRequestError as error:
        violations.merge(error)
        return ("",) * pattern.count("{")


def _fits(variable: str, value: str, *, wild: bool) -> bool:
    return (wild and value == ANY and variable != "tenant") or _SEGMENTS[variable].fullmatch(value) is not None


def _malformed(field: str, pattern: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(field, f"must be of the form {pattern}")], reason="INVALID_NAME")


def new_id(value: str, field: str, violations: Violations, make: Callable[[], UUID] = uuid7) -> str:
    """The caller's id of a new resource, or one of our own where it is empty."""
    if not value:
        return str(make())
    if not _ID.fullmatch(value):
        violations.add(field, f"must be {ID_RULE}")
    return value


def is_event_id(value: str) -> bool:
    """Whether an event may have this id: it becomes `webhook-id`, where a dot would be ambiguous."""
    return _EVENT_ID.fullmatch(value) is not None
