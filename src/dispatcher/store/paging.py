"""Pages of lists (AIP-158): sizes, and opaque tokens that hold a position and what they were made for; pure.

A token is not secret and grants nothing: it only says where to go on. It holds a digest of the query, so that one used
with another parent, filter or view is refused instead of skipping items.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar
from uuid import UUID

import asyncpg
import orjson

from dispatcher.errors import FieldViolation, InvalidRequestError

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1000
SCAN_ROWS_MAX = 10_000
"""Index entries one page may read; a page that reaches it may be short, even empty, and still have a next one."""
TOKEN_CHARS_MAX = 1024
_FORMAT = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

T = TypeVar("T")
Position = tuple[str | int | UUID | datetime, ...]
"""Where a page ended: the sort key of its last item."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What a caller asks of a list. `size` is in items, from `page_size`; `token` and `filter` are as received."""

    size: int = PAGE_SIZE_DEFAULT
    token: str = ""
    filter: str = ""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items and the token of the next page; empty on the last page."""

    items: tuple[T, ...]
    next_token: str


def page_size(requested: int, default: int = PAGE_SIZE_DEFAULT, maximum: int = PAGE_SIZE_MAX) -> int:
    """The size to use: 0 is the default, too large is the maximum. Errors: InvalidRequestError where negative."""
    if requested < 0:
        raise InvalidRequestError([FieldViolation("page_size", "must not be negative")])
    return min(requested or default, maximum)


def cut(
    rows: Sequence[asyncpg.Record], size: int, scan_rows: int, key: Sequence[str]
) -> tuple[Sequence[asyncpg.Record], Position | None]:
    """Of the rows of a list sorted by `key`: those of the page, and where it ends; None where nothing can follow.

    Each row holds `scan_count`, the entries read, of at most `scan_rows`, and in `scan_…` the key of the last of them;
    a page without items is one row without a key.
    """
    found = [row for row in rows if row[key[0]] is not None]
    if len(found) > size:
        return found[:size], tuple(found[size - 1][column] for column in key)
    is_bound = rows[0]["scan_count"] == scan_rows
    return found, tuple(rows[0][f"scan_{column}"] for column in key) if is_bound else None


def encode_token(query: Sequence[str], position: Position) -> str:
    """The token of the page after `position`, valid only with the same `query` (method, parent, filter, …)."""
    payload = orjson.dumps([_FORMAT, _digest(query), [_to_json(value) for value in position]])
    return base64.urlsafe_b64encode(payload).rstrip(b"=").decode()


def decode_token(query: Sequence[str], token: str, kinds: Sequence[type]) -> Position | None:
    """The position in a token, its values of these `kinds`; None for the first page. Errors: InvalidRequestError."""
    if not token:
        return None
    digest, values = _unpack(token)
    if len(values) != len(kinds):
        raise _bad_token("is malformed")
    if digest != _digest(query):
        raise _bad_token("belongs to a request with other parameters")
    try:
        return tuple(_from_json(value, kind) for value, kind in zip(values, kinds, strict=True))
    except (TypeError, ValueError, OverflowError):
        raise _bad_token("is malformed") from None


def _unpack(token: str) -> tuple[str, list[object]]:
    if len(token) > TOKEN_CHARS_MAX:
        raise _bad_token("is malformed")
    try:
        payload = orjson.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        raise _bad_token("is malformed") from None
    match payload:
        case [int(version), str(digest), list(values)] if version == _FORMAT:
            return digest, values
        case _:
            raise _bad_token("is malformed")


def _digest(query: Sequence[str]) -> str:
    return hashlib.sha256(orjson.dumps(list(query))).hexdigest()[:16]


def _to_json(value: str | int | UUID | datetime) -> str | int:
    match value:
        case UUID():
            return value.hex
        case datetime():
            return (value - _EPOCH) // timedelta(microseconds=1)
        case _:
            return value


def _from_json(value: object, kind: type) -> str | int | UUID | datetime:
    if kind is UUID and isinstance(value, str):
        return UUID(hex=value)
    if kind is datetime and type(value) is int:
        return _EPOCH + timedelta(microseconds=value)
    if kind is int and type(value) is int and 0 <= value < 2**63:
        return value
    if kind is str and isinstance(value, str) and "\0" not in value:
        return value
    raise ValueError(kind)


def _bad_token(problem: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("page_token", problem)], reason="INVALID_PAGE_TOKEN")
