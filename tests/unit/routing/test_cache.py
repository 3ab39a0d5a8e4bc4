"""The cache of routes: bounded, one load per name at a time, and never older than an invalidation."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from dispatcher.errors import NotFoundError, UnavailableError
from dispatcher.model import EndpointKey
from dispatcher.routing.cache import SubscriptionCache
from dispatcher.store.routes import StoredRoutes


class FakeStore:
    """Tenants by name; a load takes its snapshot when it starts and answers when `gate` opens."""

    def __init__(self) -> None:
        self.tenants: dict[str, StoredRoutes] = {}
        self.loads: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None

    def put(self, name: str, endpoints: int = 1) -> StoredRoutes:
        tenant_id = self.tenants[name].tenant_id if name in self.tenants else uuid4()
        keys = tuple(EndpointKey(tenant_id, UUID(int=n)) for n in range(endpoints))
        self.tenants[name] = StoredRoutes(tenant_id, uuid4(), False, frozenset(), {"*": keys})
        return self.tenants[name]

    async def load(self, name: str) -> StoredRoutes | None:
        self.loads.append(name)
        snapshot = self.tenants.get(name)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return snapshot


async def test_callers_share_one_load_and_then_the_entry() -> None:
    store = FakeStore()
    store.put("acme")
    cache = SubscriptionCache(store.load)
    first, second = await asyncio.gather(cache.routes("acme"), cache.routes("acme"))
    assert first is second
    assert await cache.routes("acme") is first
    assert store.loads == ["acme"]


async def test_an_invalidated_tenant_is_loaded_anew() -> None:
    store = FakeStore()
    old = store.put("acme")
    cache = SubscriptionCache(store.load)
    await cache.routes("acme")
    new = store.put("acme")
    cache.invalidate(old.tenant_id)
    assert (await cache.routes("acme")).version == new.version


async def test_a_load_begun_before_an_invalidation_is_neither_joined_nor_kept() -> None:
    store = FakeStore()
    old = store.put("acme")
    cache = SubscriptionCache(store.load)
    store.gate.clear()
    early = asyncio.create_task(cache.routes("acme"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert store.loads == ["acme"]
    new = store.put("acme")
    cache.invalidate(old.tenant_id)
    late = asyncio.create_task(cache.routes("acme"))
    await asyncio.sleep(0)
    store.gate.set()
    assert (await early).version == old.version
    assert (await late).version == new.version
    assert (await cache.routes("acme")).version == new.version


async def test_a_late_report_of_an_old_version_leaves_the_new_entry_alone() -> None:
    store = FakeStore()
    old = store.put("acme")
    cache = SubscriptionCache(store.load)
    await cache.routes("acme")
    store.put("acme")
    for _ in range(3):
        cache.invalidate(old.tenant_id, old.version)
        await cache.routes("acme")
    assert store.loads == ["acme", "acme"]


async def test_a_missing_tenant_is_not_remembered() -> None:
    store = FakeStore()
    cache = SubscriptionCache(store.load)
    with pytest.raises(NotFoundError):
        await cache.routes("acme")
    store.put("acme")
    assert await cache.routes("acme")


async def test_a_failed_load_fails_its_waiters_only() -> None:
    store = FakeStore()
    store.put("acme")
    store.failure = UnavailableError("away")
    cache = SubscriptionCache(store.load)
    with pytest.raises(UnavailableError):
        await cache.routes("acme")
    store.failure = None
    assert await cache.routes("acme")


async def test_a_caller_that_gives_up_does_not_fail_the_others() -> None:
    store = FakeStore()
    store.put("acme")
    store.gate.clear()
    cache = SubscriptionCache(store.load)
    impatient, patient = asyncio.create_task(cache.routes("acme")), asyncio.create_task(cache.routes("acme"))
    await asyncio.sleep(0)
    impatient.cancel()
    store.gate.set()
    assert await patient
    assert impatient.cancelled()
    assert store.loads == ["acme"]


async def test_tenants_are_bounded_least_recently_used_out_first() -> None:
    store = FakeStore()
    for name in "abc":
        store.put(name)
    cache = SubscriptionCache(store.load, tenants_max=2)
    for name in "abac":
        await cache.routes(name)
    assert len(cache) == 2
    await cache.routes("a")
    assert store.loads == ["a", "b", "c"]


async def test_subscriptions_are_bounded_over_all_tenants() -> None:
    store = FakeStore()
    store.put("small", endpoints=2)
    store.put("large", endpoints=50)
    cache = SubscriptionCache(store.load, subscriptions_max=10)
    await cache.routes("small")
    await cache.routes("large")
    assert len(cache) == 1, "the large one displaces all others but is served"
    await cache.routes("large")
    assert store.loads == ["small", "large"]


async def test_a_tenant_recreated_under_its_name_is_found_by_its_new_uid() -> None:
    store = FakeStore()
    old = store.put("acme")
    cache = SubscriptionCache(store.load)
    await cache.routes("acme")
    del store.tenants["acme"]
    new = store.put("acme")
    cache.invalidate(old.tenant_id)
    assert (await cache.routes("acme")).tenant_id == new.tenant_id
    cache.invalidate(new.tenant_id)
    assert len(cache) == 0
