"""What delivery needs to know of endpoints: settings by revision, state, names, sealed signing keys."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg

from dispatcher.credentials import Authentication
from dispatcher.model import (
    CatchUp,
    EndpointKey,
    EndpointSettings,
    EndpointState,
    SealedSigningKey,
    SigningAlgorithm,
    TenantState,
)
from dispatcher.policy import NO_RETRY_OVERRIDES, RetryOverrides
from dispatcher.store import forms
from dispatcher.store.authentication_json import authentication_from_json
from dispatcher.store.database import Database, is_one_tenant
from dispatcher.store.fence import probing
from dispatcher.store.forms import by_tenant
from dispatcher.store.settings_json import settings_from_json, tenant_settings_from_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EndpointRuntimeRow:
    """An endpoint as delivery sees it, deleted ones (`delete_time`) included.

    `revisions` holds the settings from that of the lowest row above the cursor up to `revision`, the present one.
    `signing_keys` are those not expired by the database's clock, oldest first; their secrets are still sealed.
    """

    key: EndpointKey
    tenant_name: str
    name: str
    state: EndpointState
    revision: int
    revisions: Mapping[int, EndpointSettings]
    signing_keys: tuple[SealedSigningKey, ...]
    update_time: datetime
    delete_time: datetime | None
    tenant_retry: RetryOverrides = NO_RETRY_OVERRIDES
    tenant_state: TenantState = TenantState.ACTIVE
    catch_ups: tuple[CatchUp, ...] = ()
    failing_since: datetime | None = None
    exhausted_heads: int = 0
    trouble: str | None = None
    authentication: Authentication | None = None
    sealed_credentials: bytes | None = field(default=None, repr=False)


# One statement, so that settings, keys and state are of one snapshot. Keys travel as arrays: each is a few rows.
LOAD_RUNTIME = by_tenant(
    """
SELECT e.tenant_id, e.endpoint_id, t.name AS tenant_name, e.name, e.state, e.revision, e.settings, e.update_time,
       e.delete_time, e.resume_rate, e.resume_time, t.settings AS tenant_settings, t.state AS tenant_state,
       t.resume_rate AS tenant_resume_rate, t.resume_time AS tenant_resume_time, h.failing_since, h.exhausted_heads,
       h.trouble, e.authentication, e.sealed_credentials, r.revisions, r.revision_settings, s.key_ids, s.sealed,
       s.create_times, s.expire_times, s.algorithms
FROM unnest($1::uuid[], $2::uuid[]) k(tenant_id, endpoint_id)
JOIN endpoint e ON e.tenant_id = k.tenant_id AND e.endpoint_id = k.endpoint_id
JOIN tenant t ON t.tenant_id = e.tenant_id
LEFT JOIN cursor c ON c.tenant_id = e.tenant_id AND c.endpoint_id = e.endpoint_id
LEFT JOIN endpoint_health h ON h.tenant_id = e.tenant_id AND h.endpoint_id = e.endpoint_id
LEFT JOIN LATERAL (
    SELECT o.revision FROM outbox o
    WHERE o.tenant_id = c.tenant_id AND o.endpoint_id = c.endpoint_id AND o.seq > c.seq AND o.time >= c.time
    ORDER BY o.seq LIMIT 1
) f ON true
LEFT JOIN LATERAL (
    SELECT min(p.revision) AS revision FROM parked p
    WHERE p.tenant_id = e.tenant_id AND p.endpoint_id = e.endpoint_id
) p ON true
LEFT JOIN LATERAL (
    SELECT array_agg(r.revision) AS revisions, array_agg(r.settings) AS revision_settings
    FROM endpoint_revision r
    WHERE r.tenant_id = e.tenant_id AND r.endpoint_id = e.endpoint_id
      AND r.revision >= least(coalesce(f.revision, e.revision), p.revision) AND r.revision <= e.revision
) r ON true
LEFT JOIN LATERAL (
    SELECT array_agg(s.key_id ORDER BY s.create_time, s.key_id) AS key_ids,
           array_agg(s.sealed ORDER BY s.create_time, s.key_id) AS sealed,
           array_agg(s.create_time ORDER BY s.create_time, s.key_id) AS create_times,
           array_agg(s.expire_time ORDER BY s.create_time, s.key_id) AS expire_times,
           array_agg(s.algorithm ORDER BY s.create_time, s.key_id) AS algorithms
    FROM signing_key s
    WHERE s.tenant_id = e.tenant_id AND s.endpoint_id = e.endpoint_id
      AND (s.expire_time IS NULL OR s.expire_time > clock_timestamp())
) s ON true"""
)


async def load_runtime(db: Database, keys: Sequence[EndpointKey]) -> list[EndpointRuntimeRow]:
    """Read endpoints in one snapshot; unknown ones are missing from the answer."""
    if not keys:
        return []
    async with probing(db) as connection:
        rows = await forms.fetch(connection, LOAD_RUNTIME, [(k.tenant_id, k.endpoint_id) for k in keys])
    return [known for row in rows if (known := _known(row)) is not None]


CHANGE_TIME = "SELECT clock_timestamp()"
CHANGED_ENDPOINTS = """
SELECT e.tenant_id, e.endpoint_id, e.update_time
FROM unnest($1::smallint[]) p(partition)
CROSS JOIN LATERAL (
    SELECT e.tenant_id, e.endpoint_id, e.update_time FROM endpoint e
    WHERE e.partition = p.partition AND e.update_time >= $2 OFFSET 0
) e"""
# The same for Citus, which takes no lateral over several tenants; without its plan's guarantee.
CHANGED_HERE = """
SELECT e.tenant_id, e.endpoint_id, e.update_time FROM endpoint e
WHERE e.partition = ANY ($1::smallint[]) AND e.update_time >= $2"""
CHANGED_TENANTS = "SELECT tenant_id, update_time FROM tenant WHERE update_time >= $1"


@dataclass(frozen=True, slots=True)
class Changes:
    """What was changed or deleted, and when: endpoints of some partitions, tenants anywhere. `start` is the database's
    time before it was read."""

    start: datetime
    endpoints: Mapping[EndpointKey, datetime]
    tenants: Mapping[uuid.UUID, datetime]


async def changes_since(db: Database, partitions: Sequence[int], since: datetime) -> Changes:
    """What these partitions' owner may have read before it changed. Raises UnavailableError.

    Look-back is the caller's affair: an update carries the time of its statement and shows when it commits. A changed
    tenant stands for all its endpoints, which may be very many: they are not read.
    """
    async with probing(db) as connection:
        start: datetime = await connection.fetchval(CHANGE_TIME)
        text = CHANGED_HERE if is_one_tenant(connection) else CHANGED_ENDPOINTS
        endpoints = await connection.fetch(text, list(partitions), since)
        tenants = await connection.fetch(CHANGED_TENANTS, since)
    return Changes(
        start,
        {EndpointKey(row["tenant_id"], row["endpoint_id"]): row["update_time"] for row in endpoints},
        {row["tenant_id"]: row["update_time"] for row in tenants},
    )


def _known(row: asyncpg.Record) -> EndpointRuntimeRow | None:
    """None for settings that only a newer release understands: its endpoints wait for an instance that does."""
    try:
        return _runtime(row)
    except (ValueError, KeyError, TypeError) as error:
        log.error(  # noqa: TRY400 -- the reason says it all
            "an endpoint's settings are of another release",
            extra={"tenant": row["tenant_name"], "endpoint": row["name"], "error": repr(error)},
        )
        return None


def _runtime(row: asyncpg.Record) -> EndpointRuntimeRow:
    revisions = dict(zip(row["revisions"] or (), row["revision_settings"] or (), strict=True))
    revisions[row["revision"]] = row["settings"]
    algorithms = [SigningAlgorithm(word) for word in row["algorithms"] or ()]
    times = (row["create_times"] or (), row["expire_times"] or ())
    keys = zip(row["key_ids"] or (), row["sealed"] or (), *times, algorithms, strict=True)
    return EndpointRuntimeRow(
        key=EndpointKey(row["tenant_id"], row["endpoint_id"]),
        tenant_name=row["tenant_name"],
        name=row["name"],
        state=EndpointState(row["state"]),
        revision=row["revision"],
        revisions={number: settings_from_json(stored) for number, stored in sorted(revisions.items())},
        signing_keys=tuple(SealedSigningKey(*key) for key in keys),
        update_time=row["update_time"],
        delete_time=row["delete_time"],
        tenant_retry=tenant_settings_from_json(row["tenant_settings"])[0],
        tenant_state=TenantState(row["tenant_state"]),
        catch_ups=_catch_ups(row),
        failing_since=row["failing_since"],
        exhausted_heads=row["exhausted_heads"] or 0,
        trouble=row["trouble"],
        authentication=authentication_from_json(row["authentication"]),
        sealed_credentials=row["sealed_credentials"],
    )


def _catch_ups(row: asyncpg.Record) -> tuple[CatchUp, ...]:
    """What the resumes of the endpoint and of its tenant said."""
    pairs = ((row["resume_rate"], row["resume_time"]), (row["tenant_resume_rate"], row["tenant_resume_time"]))
    return tuple(CatchUp(rate, time) for rate, time in pairs if rate is not None)
