"""Events from JSON Lines, read in bounded memory however large the file, with the number of each line.

A line is an object: `type`; one of `data` (any JSON), `data_text`, `data_base64`; and as wanted `id`,
`data_content_type`, `ordering_key`, `attributes`, `source`, `subject`, `time` (RFC 3339). An event without an id gets
one (UUIDv7), so that it can be sent again safely.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

READ_BYTES = 256 * 1024
LINE_BYTES_MAX = 32 * 1024 * 1024
BATCH_EVENTS_MAX = 1000
BATCH_BYTES_MAX = 1024 * 1024
"""A batch holds at most so many bytes of lines, or one event."""

PAYLOADS = ("data", "data_text", "data_base64")
TEXTS = ("id", "type", "data_content_type", "ordering_key", "source", "subject")
FIELDS = (*TEXTS, *PAYLOADS, "attributes", "time")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event to publish: `line` counts from 1, `data` is the body of the webhook.

    `id_made` tells that the id was made here: where the service knows it already, it knows it from this run.
    """

    line: int
    id: str
    type: str
    data: bytes
    data_content_type: str = ""
    ordering_key: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    source: str = ""
    subject: str = ""
    time: datetime | None = None
    id_made: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of consecutive lines, at least one; `line_bytes` is what those lines take in the file."""

    records: tuple[EventRecord, ...]
    line_bytes: int

    @property
    def first_line(self) -> int:
        return self.records[0].line


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no event. After a `final` one nothing more can be read."""

    line: int
    problem: str
    final: bool = False


class BadEventError(Exception):
    """A line is no event; the message completes "line 7: …"."""


def read_items(
    read: Callable[[int], bytes | None], *, events_max: int, new_id: Callable[[], str], start_line: int = 1
) -> Iterator[Batch | BadLine]:
    """Batches and bad lines in the order of the file.

    `read(n)` answers at most n bytes, b"" at the end. What one read brings is passed on at once, so that a slow pipe
    is published as it comes. Lines before `start_line` are skipped unread.
    """
    line = 0
    for lines in _lines(read):
        if lines is None:
            yield BadLine(line + 1, f"longer than {LINE_BYTES_MAX} bytes", final=True)
            return
        yield from _batches(lines, line, events_max, new_id, start_line)
        line += len(lines)


def _lines(read: Callable[[int], bytes | None]) -> Iterator[list[bytes] | None]:
    """Complete lines, as many as a read brought; None for one that is too long to hold."""
    tail = bytearray()
    while block := read(READ_BYTES):
        tail += block
        if b"\n" in block:
            whole, _, rest = bytes(tail).rpartition(b"\n")
            tail = bytearray(rest)
            yield whole.split(b"\n")
        if len(tail) > LINE_BYTES_MAX:
            yield None
            return
    if tail:
        yield [bytes(tail)]


def _batches(
    lines: list[bytes], before: int, events_max: int, new_id: Callable[[], str], start_line: int
) -> Iterator[Batch | BadLine]:
    records: list[EventRecord] = []
    size = 0
    for number, line in enumerate(lines, before + 1):
        text = line.removeprefix(BYTE_ORDER_MARK).strip() if number == 1 else line.strip()
        if number < start_line or not text:
            size += len(line) + 1
            continue
        if records and (len(records) >= events_max or size + len(line) > BATCH_BYTES_MAX):
            yield Batch(tuple(records), size)
            records, size = [], 0
        try:
            records.append(parse_event(text, number, new_id))
            size += len(line) + 1
        except BadEventError as error:
            if records:
                yield Batch(tuple(records), size)
            yield BadLine(number, str(error))
            records, size = [], 0
    if records:
        yield Batch(tuple(records), size)


def parse_event(text: bytes, line: int, new_id: Callable[[], str]) -> EventRecord:
    """One line as a record; BadEventError says what is wrong with it. The service checks the values themselves."""
    found = _load(text)
    texts = {name: _text(found, name) for name in TEXTS}
    if not texts["type"]:
        raise BadEventError("`type` is missing")
    return EventRecord(
        line=line,
        id=texts["id"] or new_id(),
        type=texts["type"],
        data=_payload(found),
        data_content_type=texts["data_content_type"],
        ordering_key=texts["ordering_key"],
        attributes=_attributes(found.get("attributes")),
        source=texts["source"],
        subject=texts["subject"],
        time=_time(found.get("time")),
        id_made=not texts["id"],
    )


def _load(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise BadEventError("is nested too deeply") from None
    except UnicodeDecodeError:
        raise BadEventError("is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise BadEventError(f"is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(found, dict):
        raise BadEventError("is not a JSON object")
    for name in found:
        if name not in FIELDS:
            nearest = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean `{nearest[0]}`?" if nearest else f"known are {', '.join(FIELDS)}"
            raise BadEventError(f"unknown field {name[:64]!r}; {hint}")
    return found


def _refuse_constant(name: str) -> None:
    raise BadEventError(f"is not JSON: {name} is no value")


def _text(found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadEventError(f"`{name}` must be a string")
    return _encodable(value, name)


def _encodable(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadEventError(f"`{name}` holds half of a surrogate pair") from None
    return value


def _payload(found: dict[str, Any]) -> bytes:
    given = [name for name in PAYLOADS if name in found]
    if len(given) != 1:
        raise BadEventError("exactly one of `data`, `data_text`, `data_base64` is needed")
    name, value = given[0], found[given[0]]
    if name == "data":
        return _encodable(json.dumps(value, ensure_ascii=False, separators=(",", ":")), name).encode()
    if not isinstance(value, str):
        raise BadEventError(f"`{name}` must be a string")
    if name == "data_text":
        return _encodable(value, name).encode()
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise BadEventError("`data_base64` is not base64 (RFC 4648 section 4)") from None


def _attributes(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadEventError("`attributes` must be an object of strings")
    return {_encodable(name, "attributes"): _encodable(text, "attributes") for name, text in value.items()}


def _time(value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise BadEventError("`time` must be RFC 3339 with an offset, such as 2030-01-31T12:00:00Z")
    return moment
