"""Tenants, endpoints and a backlog by the million, written by set-based statements in the shape that publish() leaves.

What is timed never runs on anything that these statements do, so they may take the straight way.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

import asyncpg

from dispatcher.model import EndpointKey, EndpointSettings, OrderingMode, TracePropagation
from dispatcher.security.secrets import Keyring, SealContext
from dispatcher.store.settings_json import settings_to_json

SECRET_KEYS = f"bench:{base64.b64encode(b'b' * 32).decode()}"
SIGNING_SECRET = b"a signing secret of 32 bytes ..."
TENANT = "bench"
DATA_BYTES = 400
DATA = b'{"note":"'.ljust(DATA_BYTES - 2, b"x") + b'"}'
KEYS_PER_ENDPOINT = 10

TYPES = 10


def type_of(number: int, types: int = TYPES) -> str:
    """One of so many event types in turn."""
    return f"bench.type{number % types}"


INSERT_TENANT = """
INSERT INTO tenant (tenant_id, name, display_name, labels, require_registered_event_types, routing_version, etag,
                    create_time, update_time)
VALUES ($1, $2, $2, '{}', false, gen_random_uuid(), gen_random_uuid(), now() - interval '1 hour',
        now() - interval '1 hour')"""
INSERT_ENDPOINTS = """
INSERT INTO endpoint (tenant_id, endpoint_id, name, partition, description, labels, event_types, state, state_reason,
                      revision, settings, etag, create_time, update_time)
SELECT $1, e.id, 'e' || e.n, e.partition, '', '{}', ARRAY[e.pattern], 'ACTIVE', '', 1, e.settings, gen_random_uuid(),
       now() - interval '1 hour', now() - interval '1 hour'
FROM unnest($2::uuid[], $3::int[], $4::smallint[], $5::text[], $6::jsonb[]) e(id, n, partition, pattern, settings)"""
INSERT_REVISIONS = """
INSERT INTO endpoint_revision (tenant_id, endpoint_id, revision, settings, create_time)
SELECT tenant_id, endpoint_id, 1, settings, create_time FROM endpoint WHERE tenant_id = $1"""
INSERT_CURSORS = """
INSERT INTO cursor (tenant_id, endpoint_id, seq, time)
SELECT tenant_id, endpoint_id, 0, create_time FROM endpoint WHERE tenant_id = $1"""
INSERT_SIGNING_KEYS = """
INSERT INTO signing_key (tenant_id, endpoint_id, key_id, sealed, create_time)
SELECT $1, k.id, 'k1', k.sealed, now() FROM unnest($2::uuid[], $3::bytea[]) k(id, sealed)"""
# One event a row, in the order in which a fair stream of publishes would have come: the n-th of every endpoint in turn.
INSERT_EVENTS = """
INSERT INTO event (tenant_id, event_id, time, type, ordering_key, content_type, data)
SELECT $1, 'e' || e.n || '-' || s, now(), 'order.paid', CASE WHEN $4 > 0 THEN 'key' || s % $4 END, 'application/json',
       convert_to(rpad('{"order":"e' || e.n || '-' || s || '","note":"', $5 - 2, 'x') || '"}', 'UTF8')
FROM generate_series($2::int, $3::int) s, unnest($6::int[]) e(n)"""
INSERT_OUTBOX = """
INSERT INTO outbox (tenant_id, endpoint_id, seq, time, event_id, event_time, type, ordering_key, revision, data_bytes)
SELECT $1, e.id, s, now(), 'e' || e.n || '-' || s, now(), 'order.paid', CASE WHEN $4 > 0 THEN 'key' || s % $4 END, 1, $5
FROM generate_series($2::int, $3::int) s, unnest($6::uuid[], $7::int[]) e(id, n)"""


@dataclass(frozen=True, slots=True)
class Fleet:
    """A tenant's endpoints, in the order of their numbers, which count from 0 (`e0`, `e1`, …)."""

    tenant_id: UUID
    endpoints: tuple[UUID, ...]

    def key(self, number: int) -> EndpointKey:
        return EndpointKey(self.tenant_id, self.endpoints[number])


def settings_of(url: str, mode: OrderingMode, timeout_s: float = 15.0) -> EndpointSettings:
    """Those of a benchmark's endpoint."""
    return EndpointSettings(
        url=url,
        timeout_s=timeout_s,
        headers={},
        max_in_flight=32,
        ordering_mode=mode,
        trace_propagation=TracePropagation.NONE,
    )


async def seed_endpoints(
    connection: asyncpg.Connection,
    urls: Sequence[str],
    mode: OrderingMode = OrderingMode.ORDERED,
    *,
    tenant: str = TENANT,
    patterns: Sequence[str] | None = None,
) -> Fleet:
    """A tenant with one endpoint for each URL; `patterns` are the event types that each wants (all of them)."""
    fleet = Fleet(uuid.uuid4(), tuple(uuid.uuid4() for _ in urls))
    keyring = Keyring.parse(SECRET_KEYS)
    base = settings_of("", mode)
    settings = [settings_to_json(replace(base, url=url)) for url in urls]
    sealed = [
        keyring.seal(SIGNING_SECRET, SealContext(fleet.tenant_id, endpoint, "k1")) for endpoint in fleet.endpoints
    ]
    partitions = [fleet.key(number).partition for number in range(len(urls))]
    async with connection.transaction():
        await connection.execute(INSERT_TENANT, fleet.tenant_id, tenant)
        wanted = list(patterns or ["*"] * len(urls))
        numbers = list(range(len(urls)))
        await connection.execute(
            INSERT_ENDPOINTS, fleet.tenant_id, fleet.endpoints, numbers, partitions, wanted, settings
        )
        await connection.execute(INSERT_REVISIONS, fleet.tenant_id)
        await connection.execute(INSERT_CURSORS, fleet.tenant_id)
        await connection.execute(INSERT_SIGNING_KEYS, fleet.tenant_id, fleet.endpoints, sealed)
    return fleet


async def seed_backlog(
    connection: asyncpg.Connection, fleet: Fleet, per_endpoint: int, *, keys: int = 0, rows_max: int = 500_000
) -> int:
    """`per_endpoint` pending events for each endpoint, `keys` ordering keys among them; how many in all."""
    numbers = list(range(len(fleet.endpoints)))
    step = max(1, rows_max // len(numbers))
    for first in range(1, per_endpoint + 1, step):
        last = min(per_endpoint, first + step - 1)
        async with connection.transaction():  # one now() for event and outbox
            shape = (fleet.tenant_id, first, last, keys, DATA_BYTES)
            await connection.execute(INSERT_EVENTS, *shape, numbers)
            await connection.execute(INSERT_OUTBOX, *shape, fleet.endpoints, numbers)
    return per_endpoint * len(numbers)
