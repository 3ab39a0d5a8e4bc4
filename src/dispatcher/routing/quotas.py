"""What each tenant may publish through this instance: its share of the tenant's quota. Pure but for the clock."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from dispatcher.bucket import TokenBucket
from dispatcher.errors import QuotaExceededError
from dispatcher.model import NewEvent
from dispatcher.policy import PublishQuota

TENANTS_MAX = 10_000
"""Tenants whose use is remembered; the one that published longest ago is forgotten, and has its burst again."""


@dataclass(slots=True)
class _Use:
    quota: PublishQuota
    share: int
    events: TokenBucket | None
    data_bytes: TokenBucket | None


class Quotas:
    """One second's worth may come at once. Each instance grants an equal share; `instances` says how many there are."""

    def __init__(self, instances: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._instances = instances
        self._clock = clock
        self._uses: OrderedDict[UUID, _Use] = OrderedDict()

    def charge(self, tenant_id: UUID, tenant_name: str, quota: PublishQuota, events: Sequence[NewEvent]) -> None:
        """Take what these events cost. Errors: QuotaExceededError, when nothing is taken."""
        if quota.events_per_second is None and quota.bytes_per_second is None:
            return
        now, use = self._clock(), self._use(tenant_id, quota)
        count, size = float(len(events)), float(sum(len(event.data) for event in events))
        for bucket, cost, what in ((use.events, count, "events"), (use.data_bytes, size, "bytes")):
            if bucket is not None and (opens_at := bucket.opens_at(now, cost)) > now:
                raise QuotaExceededError(
                    f"tenants/{tenant_name} may publish no more {what} for now; nothing was written",
                    retry_after_s=opens_at - now,
                    subject=f"tenants/{tenant_name}",
                )
        if use.events is not None:
            use.events.take(now, count)
        if use.data_bytes is not None:
            use.data_bytes.take(now, size)

    def _use(self, tenant_id: UUID, quota: PublishQuota) -> _Use:
        share = max(1, self._instances())
        use = self._uses.get(tenant_id)
        if use is None or (use.quota, use.share) != (quota, share):
            use = self._uses[tenant_id] = self._fresh(quota, share)
        self._uses.move_to_end(tenant_id)
        if len(self._uses) > TENANTS_MAX:
            self._uses.popitem(last=False)
        return use

    def _fresh(self, quota: PublishQuota, share: int) -> _Use:
        return _Use(
            quota, share, self._bucket(quota.events_per_second, share), self._bucket(quota.bytes_per_second, share)
        )

    def _bucket(self, per_second: float | None, share: int) -> TokenBucket | None:
        if per_second is None:
            return None
        rate = per_second / share
        return TokenBucket(rate, max(1.0, rate), self._clock())
