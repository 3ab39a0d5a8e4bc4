"""Which headers an endpoint may add to its webhooks; pure. Names and values per RFC 9110 sections 5.1 and 5.5."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dispatcher.errors import FieldViolation

HEADER_COUNT_MAX = 32
HEADER_NAME_BYTES_MAX = 128
HEADER_VALUE_BYTES_MAX = 4096
HEADERS_BYTES_MAX = 16_384

RESERVED_NAMES = frozenset(
    {
        # Ours: what the service itself says about the delivery.
        "user-agent",
        "traceparent",
        "tracestate",
        "baggage",
        # The message's own framing and content (RFC 9110, RFC 9112): set from the event or by the client.
        "accept-encoding",
        "connection",
        "content-digest",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "expect",
        "host",
        "keep-alive",
        "signature",
        "signature-input",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        # Where a hop in between would believe the sender: never from a tenant.
        "forwarded",
        "x-forwarded-client-cert",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-real-ip",
        "l5d-client-id",
    }
)
"""Lower-case names an endpoint may not set."""

RESERVED_PREFIXES = ("webhook-", "proxy-", "x-envoy-", "x-b3-")
"""Lower-case beginnings of names an endpoint may not set."""

CREDENTIAL_NAMES = frozenset({"authorization", "cookie", "set-cookie"})
"""Credentials have fields of their own, which are sealed; a plain header would be stored and shown in clear."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?")


def check_endpoint_headers(headers: Mapping[str, str], field: str = "headers") -> list[FieldViolation]:
    """What is wrong with an endpoint's own headers, in their order; empty if nothing.

    `field` is the path of the map in the request; a violation of one header is at `field[name]`.
    """
    violations = _check_bounds(headers, field)
    seen: set[str] = set()
    for name, value in list(headers.items())[:HEADER_COUNT_MAX]:
        problem = _name_problem(name) or _value_problem(value)
        if problem is None and name.lower() in seen:
            problem = "is given twice; header names ignore case"
        seen.add(name.lower())
        if problem is not None:
            violations.append(FieldViolation(f"{field}[{_shown(name)}]", problem))
    return violations


def _check_bounds(headers: Mapping[str, str], field: str) -> list[FieldViolation]:
    if len(headers) > HEADER_COUNT_MAX:
        return [FieldViolation(field, f"at most {HEADER_COUNT_MAX} headers, these are {len(headers)}")]
    total_bytes = sum(len(name) + len(value) for name, value in headers.items())
    if total_bytes > HEADERS_BYTES_MAX:
        return [FieldViolation(field, f"at most {HEADERS_BYTES_MAX} bytes in all, these are {total_bytes}")]
    return []


def _name_problem(name: str) -> str | None:
    lower = name.lower()
    if len(name) > HEADER_NAME_BYTES_MAX:
        return f"the name is longer than {HEADER_NAME_BYTES_MAX} bytes"
    if not _TOKEN.fullmatch(name):
        return "is not a header name (RFC 9110: letters, digits and !#$%&'*+-.^_`|~)"
    if lower in CREDENTIAL_NAMES:
        return "credentials are not set as plain headers"
    if lower in RESERVED_NAMES or lower.startswith(RESERVED_PREFIXES):
        return "is reserved: the service sets it itself"
    return None


def _value_problem(value: str) -> str | None:
    if len(value) > HEADER_VALUE_BYTES_MAX:
        return f"the value is longer than {HEADER_VALUE_BYTES_MAX} bytes"
    if value and not _VALUE.fullmatch(value):
        return "the value may hold printable ASCII, with spaces and tabs only inside"
    return None


def _shown(name: str) -> str:
    """A name safe to repeat in an error."""
    return name[:64].encode("ascii", "backslashreplace").decode("ascii").translate(_CONTROLS)


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F)}
