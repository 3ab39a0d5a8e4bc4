"""What was typed, as proto JSON: names, labels, durations, and the fields of an update. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dispatcher.cli.failure import UsageError

Fields = dict[str, Any]
"""Values by their path in proto JSON, such as {"http.url": "https://…"}; only those that were given."""

_DURATION = re.compile(r"(?P<number>\d{1,9}(\.\d{1,9})?)(?P<unit>ms|s|m|h|d)?")
_MILLISECONDS = {"ms": 1, "s": 1000, None: 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def tenant_name(tenant: str) -> str:
    """`acme` or `tenants/acme` as `tenants/acme`; UsageError for anything else."""
    name = tenant if tenant.startswith("tenants/") else f"tenants/{tenant}"
    if name.count("/") != 1 or name.endswith("/"):
        raise UsageError(f"{tenant!r} is not the name of a tenant, such as acme or tenants/acme")
    return name


def parent_of(tenant: str | None) -> str:
    """The parent of a resource below a tenant, from --tenant."""
    if not tenant:
        raise UsageError("--tenant is needed")
    return tenant_name(tenant)


def child_name(given: str, tenant: str | None, collection: str) -> str:
    """A full name such as `tenants/acme/endpoints/e1`, or an id together with --tenant, as the full name."""
    if not given.startswith("tenants/"):
        if not tenant:
            raise UsageError(f"give --tenant, or the full name: tenants/TENANT/{collection}/{given}")
        given = f"{tenant_name(tenant)}/{collection}/{given}"
    parts = given.split("/")
    if len(parts) != 4 or parts[2] != collection or not all(parts):
        raise UsageError(f"{given!r} is not a name such as tenants/acme/{collection}/ID")
    if tenant and tenant_name(tenant) != "/".join(parts[:2]):
        raise UsageError(f"{given} is not one of --tenant {tenant}")
    return given


def pairs(given: Sequence[str], option: str, separator: str = "=") -> dict[str, str]:
    """`KEY=VALUE` of a repeated option as a map; a key given twice is an error."""
    found: dict[str, str] = {}
    for text in given:
        key, mark, value = text.partition(separator)
        key = key.strip()
        if not mark or not key:
            raise UsageError(f"{option} {text!r} is not KEY{separator}VALUE")
        if key in found:
            raise UsageError(f"{option} {key!r} is given twice")
        found[key] = value.strip() if separator == ":" else value
    return found


def map_field(
    path: str, given: Sequence[str] | None, option: str, *, clear: bool = False, separator: str = "="
) -> Fields:
    """The field of a repeated option; `clear` empties the map. Neither given: no field."""
    if clear and given:
        raise UsageError(f"{option} and --clear-{path.rpartition('.')[2]} exclude each other")
    if clear:
        return {path: {}}
    return {path: pairs(given, option, separator)} if given else {}


def duration(text: str, option: str) -> str:
    """`10s`, `500ms`, `1.5m`, `24h`, `7d` or plain seconds, as proto JSON writes a Duration."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{option} {text!r} is not a duration such as 500ms, 10s, 5m, 24h or 7d")
    seconds = float(found["number"]) * _MILLISECONDS[found["unit"]] / 1000
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def given(**values: Any) -> Fields:
    """The values that are not None, by name."""
    return {name: value for name, value in values.items() if value is not None}


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Paths as the message they lie in: {"http.url": u} as {"http": {"url": u}}."""
    message: dict[str, Any] = {}
    for path, value in fields.items():
        *parents, last = path.split(".")
        inner = message
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return message


def update_request(noun: str, name: str, fields: Fields, *, etag: str | None, validate_only: bool) -> dict[str, Any]:
    """The request of an Update that changes `fields` and nothing else; `noun` is the resource's field (`eventType`)."""
    if not fields:
        raise UsageError("nothing to change: give at least one option that sets a field")
    resource = {**nested(fields), "name": name, **given(etag=etag)}
    return {noun: resource, "updateMask": ",".join(fields), **flag("validateOnly", on=validate_only)}


def flag(name: str, *, on: bool) -> dict[str, bool]:
    """A boolean of a request, only where it is set."""
    return {name: True} if on else {}
