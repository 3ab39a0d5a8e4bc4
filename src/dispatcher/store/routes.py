"""What publishing needs of a tenant: version, subscriptions and registered types, of one instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from dispatcher.model import EndpointKey
from dispatcher.policy import NO_PUBLISH_QUOTA, PublishQuota
from dispatcher.store.database import Database
from dispatcher.store.settings_json import tenant_settings_from_json


@dataclass(frozen=True, slots=True)
class StoredRoutes:
    """A tenant's routing as it was when `version` was current.

    `subscriptions` maps a pattern to its endpoints, ascending and distinct; paused and disabled endpoints are among
    them, since their deliveries are held and not discarded. `registered_event_types` holds the types not archived,
    and is empty where registration is not required.
    """

    tenant_id: UUID
    version: UUID
    require_registered_event_types: bool
    registered_event_types: frozenset[str]
    subscriptions: Mapping[str, tuple[EndpointKey, ...]]
    publish_quota: PublishQuota = NO_PUBLISH_QUOTA


# One statement, so one snapshot: with two, subscriptions newer or older than the version would pass publish()'s check.
SELECT_ROUTES = """
SELECT t.tenant_id, t.routing_version, t.require_registered_event_types, t.settings, r.pattern, r.endpoint_ids,
       r.event_types
FROM tenant t
CROSS JOIN LATERAL (
    SELECT p.pattern, array_agg(DISTINCT e.endpoint_id ORDER BY e.endpoint_id) AS endpoint_ids,
           NULL::text[] AS event_types
    FROM endpoint e CROSS JOIN LATERAL unnest(e.event_types) p(pattern)
    WHERE e.tenant_id = t.tenant_id AND e.delete_time IS NULL
    GROUP BY p.pattern
    UNION ALL
    SELECT NULL, NULL, array_agg(x.name)
    FROM event_type x
    WHERE x.tenant_id = t.tenant_id AND t.require_registered_event_types AND NOT x.archived
) r
WHERE t.name = $1 AND t.delete_time IS NULL"""


async def load(db: Database, tenant: str) -> StoredRoutes | None:
    """The routes of the live tenant with this name; None where there is none."""
    rows = await db.fetch(SELECT_ROUTES, tenant)
    if not rows:
        return None
    return StoredRoutes(
        tenant_id=rows[0]["tenant_id"],
        version=rows[0]["routing_version"],
        require_registered_event_types=rows[0]["require_registered_event_types"],
        registered_event_types=frozenset(name for row in rows for name in row["event_types"] or ()),
        subscriptions=_subscriptions(rows),
        publish_quota=tenant_settings_from_json(rows[0]["settings"])[1],
    )


def _subscriptions(rows: list[asyncpg.Record]) -> dict[str, tuple[EndpointKey, ...]]:
    """One key object per endpoint, however many patterns name it."""
    keys: dict[UUID, EndpointKey] = {}
    return {
        row["pattern"]: tuple(keys.setdefault(e, EndpointKey(row["tenant_id"], e)) for e in row["endpoint_ids"])
        for row in rows
        if row["pattern"] is not None
    }
