"""Events of Publish: every rule for one, its digest, and the way back when it is read. Pure.

The limits are those of the comments in event.proto.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from uuid import UUID

from uuid_utils.compat import uuid7
from webhooks.v1 import event_pb2, publisher_pb2

from dispatcher.api.convert.checks import Violations, has_control, shown
from dispatcher.api.convert.names import is_event_id, read_name
from dispatcher.api.convert.times import is_valid_timestamp, timestamp, to_datetime
from dispatcher.model import NewEvent, PublishedEvent, StoredEvent
from dispatcher.routing.patterns import is_reserved, type_problem

CONTENT_TYPE_DEFAULT = "application/json"
CONTENT_TYPE_CHARS_MAX = 256
TEXT_CHARS_MAX = 1024
ATTRIBUTES_MAX = 32
CLOUDEVENTS_NAMES = frozenset(
    {
        "data",
        "data_base64",
        "datacontenttype",
        "dataschema",
        "id",
        "source",
        "specversion",
        "subject",
        "time",
        "type",
    }
)
DIGEST_VERSION = b"\x01"

_ATTRIBUTE_NAME = re.compile(r"[a-z0-9]{1,20}")
# It travels as a header, which loses spaces at its edges: two keys would look like one (RFC 9110 section 5.5).
_ORDERING_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")
# RFC 9110 sections 5.6.2 (token), 5.6.4 (quoted-string) and 8.3.1 (media-type), ASCII only
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 - a grammar's token, no secret
_QUOTED = r'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e]|\\[\t\x20-\x7e])*"'
_MEDIA_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))*")


@dataclass(frozen=True, slots=True)
class PublishLimits:
    """The settings that bound a Publish: bytes of one payload, events of one request."""

    data_bytes_max: int
    events_max: int


def read_publish(
    parent: str,
    events: Sequence[event_pb2.Event],
    limits: PublishLimits,
    traceparent: str | None,
    violations: Violations,
    make_id: Callable[[], UUID] = uuid7,
) -> tuple[str, tuple[NewEvent, ...]]:
    """Tenant and events of a request. What is wrong goes to `violations`; then the result is not to be used."""
    (tenant,) = read_name(parent, "tenants/{tenant}", violations, field="parent")
    if not 1 <= len(events) <= limits.events_max:
        violations.add("events", f"must hold 1 to {limits.events_max} events, holds {len(events)}")
        return tenant, ()
    _check_ids(events, violations)
    read = tuple(
        _read_event(event, f"events[{i}]", limits, traceparent, violations, make_id) for i, event in enumerate(events)
    )
    return tenant, read


def _check_ids(events: Sequence[event_pb2.Event], violations: Violations) -> None:
    first: dict[str, int] = {}
    for i, event in enumerate(events):
        if event.id and first.setdefault(event.id, i) != i:
            violations.add(f"events[{i}].id", f"is the id of events[{first[event.id]}], too")


def _read_event(
    event: event_pb2.Event,
    field: str,
    limits: PublishLimits,
    traceparent: str | None,
    violations: Violations,
    make_id: Callable[[], UUID],
) -> NewEvent:
    data = event.data_text.encode() if event.WhichOneof("payload") == "data_text" else event.data
    _check_event(event, len(data), field, limits, violations)
    content_type = event.data_content_type or CONTENT_TYPE_DEFAULT
    has_time = event.HasField("time")
    is_time = has_time and is_valid_timestamp(event.time)
    if has_time and not is_time:
        violations.add(f"{field}.time", "must be a time from year 1 to 9999 with 0 to 999,999,999 nanoseconds")
    return NewEvent(
        event_id=event.id or str(make_id()),
        digest=digest(event, data, content_type) if event.id else None,
        type=event.type,
        data=data,
        content_type=content_type,
        ordering_key=event.ordering_key or None,
        attributes=_read_attributes(event.attributes, f"{field}.attributes", violations),
        source=event.source or None,
        subject=event.subject or None,
        time=to_datetime(event.time) if is_time else None,
        traceparent=traceparent,
    )


def _check_event(
    event: event_pb2.Event, data_bytes: int, field: str, limits: PublishLimits, violations: Violations
) -> None:
    if event.id and not is_event_id(event.id):
        violations.add(f"{field}.id", "must be 1 to 64 of A-Z a-z 0-9 _ -, without dots")
    _check_type(event.type, f"{field}.type", violations)
    if event.WhichOneof("payload") is None:
        violations.add(f"{field}.data", "either data or data_text must be set; it may be empty")
    elif data_bytes > limits.data_bytes_max:
        violations.add(f"{field}.data", f"must have at most {limits.data_bytes_max} bytes, has {data_bytes}")
    if event.data_content_type and not is_content_type(event.data_content_type):
        violations.add(
            f"{field}.data_content_type",
            f"must be a media type of at most {CONTENT_TYPE_CHARS_MAX} characters, such as application/json",
        )
    if event.ordering_key and not _ORDERING_KEY.fullmatch(event.ordering_key):
        violations.add(f"{field}.ordering_key", "must be 1 to 128 printable ASCII characters, no space at either end")
    for name, text in (("source", event.source), ("subject", event.subject)):
        if len(text) > TEXT_CHARS_MAX or has_control(text):
            violations.add(
                f"{field}.{name}", f"must have at most {TEXT_CHARS_MAX} characters, none of them a control character"
            )


def _check_type(event_type: str, field: str, violations: Violations) -> None:
    problem = type_problem(event_type)
    if problem is not None:
        violations.add(field, problem)
    elif is_reserved(event_type):
        violations.add(field, "must not begin with `dispatcher.`: these types are the service's own")


def is_content_type(text: str) -> bool:
    """Whether `text` is a media type that may stand in a header."""
    return len(text) <= CONTENT_TYPE_CHARS_MAX and _is_media_type(text)


@lru_cache(maxsize=1024)
def _is_media_type(text: str) -> bool:
    return _MEDIA_TYPE.fullmatch(text) is not None


def _read_attributes(attributes: Mapping[str, str], field: str, violations: Violations) -> dict[str, str]:
    if not attributes:
        return {}
    if len(attributes) > ATTRIBUTES_MAX:
        violations.add(field, f"must have at most {ATTRIBUTES_MAX} entries, has {len(attributes)}")
    for name, value in islice(attributes.items(), ATTRIBUTES_MAX):
        where = f"{field}[{shown(name)}]"
        if name in CLOUDEVENTS_NAMES:
            violations.add(where, "is a name of CloudEvents' own")
        elif not _ATTRIBUTE_NAME.fullmatch(name):
            violations.add(where, "the name must be 1 to 20 of a-z 0-9")
        if len(value) > TEXT_CHARS_MAX or has_control(value):
            violations.add(
                where, f"the value must have at most {TEXT_CHARS_MAX} characters, none of them a control character"
            )
    return dict(attributes)


def digest(event: event_pb2.Event, data: bytes, content_type: str) -> bytes:
    """SHA-256 over what makes two events the same content, each part with its length, so that none runs into another.

    Whether the payload came as bytes or as text does not matter, nor whether a default was spelled out.
    """
    time = struct.pack(">qi", event.time.seconds, event.time.nanos) if event.HasField("time") else b""
    parts = [
        event.type.encode(),
        data,
        content_type.encode(),
        event.ordering_key.encode(),
        event.source.encode(),
        event.subject.encode(),
        time,
    ]
    for name in sorted(event.attributes):
        parts += (name.encode(), event.attributes[name].encode())
    hashed = hashlib.sha256(DIGEST_VERSION)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big"))
        hashed.update(part)
    return hashed.digest()


def publish_results(tenant: str, published: Sequence[PublishedEvent]) -> list[publisher_pb2.PublishResult]:
    """The answer's results, one per event."""
    return [
        publisher_pb2.PublishResult(
            event=f"tenants/{tenant}/events/{event.event_id}",
            event_id=event.event_id,
            duplicate=event.duplicate,
            endpoint_count=event.endpoint_count,
        )
        for event in published
    ]


def event_message(tenant: str, event: StoredEvent) -> event_pb2.Event:
    """An event as read back; bytes that are UTF-8 come as text."""
    message = event_pb2.Event(
        name=f"tenants/{tenant}/events/{event.event_id}",
        id=event.event_id,
        type=event.type,
        data_content_type=event.content_type,
        ordering_key=event.ordering_key or "",
        attributes=event.attributes,
        source=event.source or "",
        subject=event.subject or "",
        publish_time=timestamp(event.publish_time),
    )
    if event.time is not None:
        message.time.CopyFrom(timestamp(event.time))
    if event.expunge_time is not None:
        message.expunge_time.CopyFrom(timestamp(event.expunge_time))
    elif event.data is not None:
        try:
            message.data_text = event.data.decode()
        except UnicodeDecodeError:
            message.data = event.data
    return message
