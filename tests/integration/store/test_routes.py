"""Routes are read in one snapshot, and hold every endpoint that may get rows."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg

from dispatcher.model import EndpointState
from dispatcher.routing.cache import SubscriptionCache
from dispatcher.store import endpoint_deletion, event_types, routes, tenants
from dispatcher.store.database import Database
from dispatcher.store.event_types import NewEventType
from tests.support.configured import make_endpoint, make_tenant


async def test_routes_hold_live_endpoints_whatever_their_state(db: Database) -> None:
    tenant = await make_tenant(db)
    keys = [
        (await make_endpoint(db, f"e{n}", state=state, event_types=("*", "a"))).key
        for n, state in enumerate(EndpointState)
    ]
    await endpoint_deletion.delete(db, "acme", (await _named(db))[0], actor="tester")
    loaded = await routes.load(db, "acme")
    assert loaded is not None
    assert loaded.tenant_id == tenant.tenant_id
    assert loaded.version == (await tenants.get(db, "acme")).routing_version
    assert loaded.subscriptions == {"*": tuple(sorted(keys[1:])), "a": tuple(sorted(keys[1:]))}


async def _named(db: Database) -> list[str]:
    return [row["name"] for row in await db.fetch("SELECT name FROM endpoint ORDER BY name")]


async def test_a_tenant_without_endpoints_has_routes_and_a_missing_one_has_none(db: Database) -> None:
    await make_tenant(db, require_registered_event_types=True)
    await event_types.create(db, "acme", NewEventType("a", "", {}))
    await event_types.create(db, "acme", NewEventType("old", "", {}, archived=True))
    loaded = await routes.load(db, "acme")
    assert loaded is not None
    assert loaded.subscriptions == {}
    assert loaded.registered_event_types == {"a"}
    assert await routes.load(db, "nobody") is None


async def test_one_statement_reads_version_and_subscriptions(db: Database) -> None:
    """Two would let an endpoint slip in between: a version with other subscriptions than its own."""
    await make_tenant(db)
    seen: list[str] = []

    def note(query: Any) -> None:
        seen.append(query.query)

    async with db.acquire() as connection:
        assert isinstance(connection._con, asyncpg.Connection)
        connection._con.add_query_logger(note)
    await routes.load(db, "acme")
    ours = [query for query in seen if "tenant" in query or "endpoint" in query]
    assert ours == [routes.SELECT_ROUTES]


async def test_a_version_always_comes_with_the_same_subscriptions(db: Database) -> None:
    await make_tenant(db)
    done = asyncio.Event()
    loaded: dict[object, set[int]] = {}

    async def load_again_and_again() -> None:
        while not done.is_set():
            stored = await routes.load(db, "acme")
            assert stored is not None
            loaded.setdefault(stored.version, set()).add(len(stored.subscriptions.get("*", ())))

    loaders = [asyncio.create_task(load_again_and_again()) for _ in range(3)]
    for n in range(40):
        await make_endpoint(db, f"e{n}")
    done.set()
    await asyncio.gather(*loaders)
    counts = [count for seen in loaded.values() for count in seen]
    assert all(len(seen) == 1 for seen in loaded.values())
    assert len(counts) == len(set(counts)), "no two versions share a set of endpoints that only grows"
    assert len(counts) > 5


async def test_a_cache_told_of_a_change_serves_the_new_endpoint(db: Database) -> None:
    tenant = await make_tenant(db)
    cache = SubscriptionCache.over(db)
    assert (await cache.routes("acme")).matcher.endpoints_for("a") == ()
    key = (await make_endpoint(db)).key
    cache.invalidate(tenant.tenant_id)
    assert (await cache.routes("acme")).matcher.endpoints_for("a") == (key,)


async def test_a_hundred_thousand_endpoints_of_one_tenant_are_fine(db: Database) -> None:
    tenant = await make_tenant(db)
    await make_endpoint(db, event_types=("*", "order.*", "order.paid"))
    await db.execute(
        """INSERT INTO endpoint
           SELECT tenant_id, gen_random_uuid(), 'n' || g, 0, '', '{}', ARRAY['order.*'], state, '', 1, settings, etag,
                  create_time, update_time, NULL
           FROM endpoint CROSS JOIN generate_series(1, 99999) g"""
    )
    cache = SubscriptionCache.over(db)
    started = time.monotonic()
    found = (await cache.routes("acme")).matcher.endpoints_for("order.paid")
    assert len(found) == 100_000
    assert list(found) == sorted(found)
    assert time.monotonic() - started < 10
    again = time.monotonic()
    for _ in range(1000):
        assert (await cache.routes("acme")).matcher.endpoints_for("order.paid") is found
    assert time.monotonic() - again < 1
    assert found[0].tenant_id == tenant.tenant_id
