"""Every tenant's routes in memory, as old as they like: publish() compares the version and says when they are stale."""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

from dispatcher.errors import NotFoundError
from dispatcher.policy import NO_PUBLISH_QUOTA, PublishQuota
from dispatcher.routing.patterns import Matcher, is_reserved
from dispatcher.store import routes
from dispatcher.store.database import Database
from dispatcher.store.routes import StoredRoutes

TENANTS_MAX = 10_000
SUBSCRIPTIONS_MAX = 2_000_000
"""Bound of all cached tenants' subscriptions together; the tenant used last is kept even where it alone exceeds it."""

Loader = Callable[[str], Awaitable[StoredRoutes | None]]
"""Reads the routes of a tenant by name, None where there is none."""


@dataclass(frozen=True, slots=True)
class TenantRoutes:
    """Where a tenant's events go, as of `version`; publish() refuses the fan-out when that is no longer current."""

    tenant_id: UUID
    version: UUID
    matcher: Matcher
    require_registered_event_types: bool
    registered_event_types: frozenset[str]
    publish_quota: PublishQuota = NO_PUBLISH_QUOTA

    def accepts(self, event_type: str) -> bool:
        """False where the tenant requires registered types and this one is not, or is archived; the service's own types
        need no registration."""
        return (
            not self.require_registered_event_types
            or event_type in self.registered_event_types
            or is_reserved(event_type)
        )


@dataclass(slots=True, eq=False)
class _Flight:
    """A load under way, and the (tenant, stale version) invalidated since it began; None is any version."""

    task: asyncio.Task[TenantRoutes]
    invalidated: set[tuple[UUID, UUID | None]] = field(default_factory=set)

    def is_stale(self, loaded: TenantRoutes) -> bool:
        return not self.invalidated.isdisjoint({(loaded.tenant_id, loaded.version), (loaded.tenant_id, None)})


class SubscriptionCache:
    """Routes by tenant name: bounded, least recently used out first, one load at a time per name.

    A tenant that does not exist is not remembered, so one created a moment ago is found at once.
    """

    def __init__(
        self,
        load: Loader,
        *,
        tenants_max: int = TENANTS_MAX,
        subscriptions_max: int = SUBSCRIPTIONS_MAX,
    ) -> None:
        self._load_stored = load
        self._tenants_max = tenants_max
        self._subscriptions_max = subscriptions_max
        self._subscriptions = 0
        self._entries: OrderedDict[str, TenantRoutes] = OrderedDict()
        self._names: dict[UUID, str] = {}
        self._flights: dict[str, _Flight] = {}

    @classmethod
    def over(cls, db: Database) -> SubscriptionCache:
        """The cache of a service: loads from its database."""

        async def load(tenant: str) -> StoredRoutes | None:
            return await routes.load(db, tenant)

        return cls(load)

    def __len__(self) -> int:
        return len(self._entries)

    async def routes(self, tenant: str) -> TenantRoutes:
        """The tenant's routes, loaded where they are not known. Errors: NotFoundError, UnavailableError."""
        entry = self._entries.get(tenant)
        if entry is not None:
            self._entries.move_to_end(tenant)
            return entry
        # Shielded: a caller that gives up must not fail those who wait for the same load.
        return await asyncio.shield(self._flight(tenant).task)

    def invalidate(self, tenant_id: UUID, version: UUID | None = None) -> None:
        """Forget a tenant's routes; a load that began before this call is not joined any more.

        With a `version`, only that one is forgotten: of many requests that found it stale, the first has it loaded anew
        and the others leave the new one alone.
        """
        name = self._names.get(tenant_id)
        if name is not None and version in (None, self._entries[name].version):
            self._drop(name)
        for flight in self._flights.values():
            flight.invalidated.add((tenant_id, version))

    def _flight(self, tenant: str) -> _Flight:
        flight = self._flights.get(tenant)
        # Whose routes a load will bring is not known before it ends, so any invalidation makes it unfit to be joined.
        if flight is None or flight.invalidated:
            task = asyncio.create_task(self._load(tenant), name=f"load routes of {tenant}")
            flight = self._flights[tenant] = _Flight(task)
            task.add_done_callback(functools.partial(self._landed, tenant, flight))
        return flight

    async def _load(self, tenant: str) -> TenantRoutes:
        stored = await self._load_stored(tenant)
        if stored is None:
            raise NotFoundError("webhooks.dispatcher/Tenant", f"tenants/{tenant}")
        return TenantRoutes(
            tenant_id=stored.tenant_id,
            version=stored.version,
            matcher=Matcher(stored.subscriptions),
            require_registered_event_types=stored.require_registered_event_types,
            registered_event_types=stored.registered_event_types,
            publish_quota=stored.publish_quota,
        )

    def _landed(self, tenant: str, flight: _Flight, task: asyncio.Task[TenantRoutes]) -> None:
        is_current = self._flights.get(tenant) is flight
        if is_current:
            del self._flights[tenant]
        # Reading the exception also marks it as seen where every waiter has given up.
        if task.cancelled() or task.exception() is not None:
            return
        if is_current and not flight.is_stale(task.result()):
            self._keep(tenant, task.result())

    def _keep(self, tenant: str, entry: TenantRoutes) -> None:
        self._drop(tenant)
        self._entries[tenant] = entry
        self._names[entry.tenant_id] = tenant
        self._subscriptions += _weight(entry)
        while len(self._entries) > 1 and self._is_over_limits:
            self._drop(next(iter(self._entries)))

    @property
    def _is_over_limits(self) -> bool:
        return len(self._entries) > self._tenants_max or self._subscriptions > self._subscriptions_max

    def _drop(self, tenant: str) -> None:
        entry = self._entries.pop(tenant, None)
        if entry is not None:
            self._names.pop(entry.tenant_id, None)
            self._subscriptions -= _weight(entry)


def _weight(entry: TenantRoutes) -> int:
    return entry.matcher.subscription_count + len(entry.registered_event_types)
