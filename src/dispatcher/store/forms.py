"""Statements about rows of many tenants, in two forms.

Plain PostgreSQL takes the rows of all tenants in one round trip. Citus, which keeps each tenant's rows on one worker,
refuses to lock rows of several tenants in one statement, and a lateral with LIMIT over several. There each statement is
about one tenant, whose id it carries as `$1`, and is run once for each, inside the same transaction.

Which form a connection uses is known when it is made: see `Database`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from dispatcher.store.database import Connection, columns, is_one_tenant

_ROWS = re.compile(r"unnest\(\$1::uuid\[\],\s*([^()]*)\)(\s+(?:WITH ORDINALITY\s+)?)(\w+)\(tenant_id, ")


@dataclass(frozen=True, slots=True)
class TenantStatement:
    """`many`: `$1` are the tenants of the rows, the further arrays run along it. `one`: `$1` is the tenant of them
    all."""

    many: str
    one: str
    parameter_count: int


def by_tenant(many: str) -> TenantStatement:
    """Both forms of a statement whose rows come as `unnest($1::uuid[], …) x(tenant_id, …)`, once.

    Raises ValueError, at import, for a text that is not so, or that would be about more than one tenant afterwards.
    """
    found = _ROWS.findall(many)
    if len(found) != 1:
        raise ValueError(f"{len(found)} sources of rows by tenant in {many!r}")
    alias = found[0][2]
    one = _ROWS.sub(lambda m: f"unnest({m[1]}){m[2]}{m[3]}(", many)
    one, count = re.subn(rf"\b{alias}\.tenant_id\b", "$1::uuid", one)
    if not count or "$1::uuid[]" in one:
        raise ValueError(f"the tenant of {alias} is never asked for in {many!r}")
    return TenantStatement(many, one, len(set(re.findall(r"\$\d+", many))))


async def fetch(
    connection: Connection, statement: TenantStatement, rows: Sequence[Sequence[Any]]
) -> list[asyncpg.Record]:
    """Run it for these rows, the tenant first in each. The answers for one tenant stand together, in their order."""
    if not is_one_tenant(connection):
        return await connection.fetch(statement.many, *columns(rows, statement.parameter_count))
    found: list[asyncpg.Record] = []
    for tenant, own in _tenants(rows):
        found += await connection.fetch(statement.one, tenant, *columns(own, statement.parameter_count - 1))
    return found


async def execute(connection: Connection, statement: TenantStatement, rows: Sequence[Sequence[Any]]) -> None:
    """`fetch` without an answer."""
    if not is_one_tenant(connection):
        await connection.execute(statement.many, *columns(rows, statement.parameter_count))
        return
    for tenant, own in _tenants(rows):
        await connection.execute(statement.one, tenant, *columns(own, statement.parameter_count - 1))


def _tenants(rows: Sequence[Sequence[Any]]) -> Iterator[tuple[UUID, list[Sequence[Any]]]]:
    """The rows of each tenant, without it, tenants in the order of their ids: whoever locks, locks in that order."""
    groups: dict[UUID, list[Sequence[Any]]] = {}
    for row in rows:
        groups.setdefault(row[0], []).append(row[1:])
    yield from sorted(groups.items())
