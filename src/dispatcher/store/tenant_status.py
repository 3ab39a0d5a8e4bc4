"""How all endpoints of a tenant fare: counts by state, backlogs, the worst of them, recent statistics.

Endpoints are walked by page in the order of their ids, in the time allowed. A backlog is a subtraction, as in
`store.backlog`; of the endpoints whose attempts are sampled it is corrected by what has been settled since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from dispatcher.errors import DatabaseBusyError
from dispatcher.model import EndpointKey, EndpointState, Tenant, TenantState
from dispatcher.store import recent, tenants
from dispatcher.store.database import BUSY_RETRY_S, Database
from dispatcher.store.recent import NOW, StatisticsLimits, bounded
from dispatcher.store.statistics import DeliveryStatistics, Sample, summarize, time_to_drain_s
from dispatcher.store.windows import Window

PAGE_ENDPOINTS = 5000
"""Endpoints one statement looks at."""
PAGE_MARGIN_S = 0.1
"""A page that takes too long is ended by the database so long before the whole call is: then those before it count."""
SAMPLED_ENDPOINTS_MAX = 200
"""Endpoints whose attempts are read, those with the largest backlogs first."""
TROUBLES_MAX = 100_000
"""Halts, failing endpoints and parked deliveries looked at for one page; parked deliveries counted of one endpoint."""
EXACT_ENDPOINTS_MAX = 5000
"""Endpoints of a tenant of which every day since their cursors is looked through."""
RECENT = timedelta(days=1)
"""Of a larger tenant: how far back, and to the midnight before, where an endpoint is ACTIVE and neither halted nor
failing, and nothing above its cursor was tried of late. There, what is older has been delivered."""
TRIED = timedelta(hours=2)
"""So late: longer than it takes until one of the attempts that the egress proxy fails is recorded again."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an endpoint lags behind. `oldest_time` is None without a backlog; `cursor_seq` and `highest_seq` are what
    `backlog` was reckoned from, beside parked deliveries, and `cursor_time` tells when it was last given work."""

    key: EndpointKey
    name: str
    state: EndpointState
    is_halted: bool
    backlog: int
    oldest_time: datetime | None
    cursor_seq: int
    cursor_time: datetime
    highest_seq: int

    @property
    def is_held(self) -> bool:
        return self.is_halted or self.state is not EndpointState.ACTIVE

    def settled_since(self, sample: Sample) -> int:
        """Deliveries counted as backlog that were made already."""
        return sum(self.cursor_seq < seq <= self.highest_seq for seq in sample.delivered)

    def less(self, settled: int) -> Standing:
        backlog = max(0, self.backlog - settled)
        return replace(self, backlog=backlog, oldest_time=self.oldest_time if backlog else None)


@dataclass(slots=True)
class Walk:
    """What the pages have come to so far. `standings` are the candidates: the largest and the oldest of each page;
    `at_work` counts all endpoints with a backlog, or with an event of the window that is settled."""

    total: int = 0
    active: int = 0
    paused: int = 0
    disabled: int = 0
    halted: int = 0
    failing: int = 0
    backlog: int = 0
    held: int = 0
    at_work: int = 0
    is_partial: bool = False
    standings: list[Standing] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TenantStatus:
    """`walk` after correction. `statistics` is None where the database took too long."""

    tenant: Tenant
    now: datetime
    walk: Walk
    oldest: Sequence[Standing]
    largest: Sequence[Standing]
    oldest_time: datetime | None
    statistics: DeliveryStatistics | None
    time_to_drain_s: float | None


async def read(db: Database, name: str, limits: StatisticsLimits, deadline: float) -> TenantStatus:
    """The status of a tenant, by `deadline` (the loop's clock). Errors: NotFoundError; DatabaseBusyError where not even
    one page is read in time."""
    try:
        async with asyncio.timeout_at(deadline):
            tenant = await tenants.get(db, name)
            now: datetime = await db.fetchval(NOW)
            walk = await _walk(db, tenant, Window(now - timedelta(seconds=limits.window_s), now), limits, deadline)
    except TimeoutError as error:
        raise _took_too_long() from error
    sampled = _at_work_first(walk.standings)[:SAMPLED_ENDPOINTS_MAX]
    try:
        async with asyncio.timeout_at(deadline):
            samples = await recent.read(db, [standing.key for standing in sampled], limits)
    except (DatabaseBusyError, TimeoutError):
        return _status(tenant, now, walk, limits, None)
    pairs = list(zip(sampled, samples, strict=True))
    return _status(tenant, now, corrected(walk, pairs), limits, pairs)


# $1 tenant, $2 endpoint to go on after, $3 endpoints, $4 rows of each kind of trouble, $5 start of the window, $6 and
# $7 endpoints to name by size and by age, $8 the time before which nothing is looked for where there is no trouble, or
# NULL.
#
# Rows above a cursor lie in the days from the cursor's on. Of an endpoint without a backlog each of these costs a probe
# that finds nothing: that is what takes the time, and what $8 bounds; the days since $8 are chosen once for all probes.
# Troubles are hashed once for the page: the plan of a join would be a guess at how many there are.
PAGE = """
WITH page AS MATERIALIZED (
    SELECT e.endpoint_id, e.name, e.state FROM endpoint e
    WHERE e.tenant_id = $1 AND e.endpoint_id > $2 AND e.delete_time IS NULL ORDER BY e.endpoint_id LIMIT $3
), page_end AS MATERIALIZED (
    SELECT endpoint_id FROM page ORDER BY endpoint_id DESC LIMIT 1
), marked AS MATERIALIZED (
    SELECT e.endpoint_id, e.name, e.state,
           e.endpoint_id IN (
               SELECT t.endpoint_id FROM halt t
               WHERE t.tenant_id = $1 AND t.endpoint_id > $2 AND t.endpoint_id <= (SELECT endpoint_id FROM page_end)
               ORDER BY t.endpoint_id LIMIT $4) AS is_halted,
           e.endpoint_id IN (
               SELECT h.endpoint_id FROM endpoint_health h
               WHERE h.tenant_id = $1 AND h.endpoint_id > $2 AND h.endpoint_id <= (SELECT endpoint_id FROM page_end)
                 AND h.failing_since IS NOT NULL
               ORDER BY h.endpoint_id LIMIT $4) AS is_failing,
           e.endpoint_id IN (
               SELECT p.endpoint_id FROM parked p
               WHERE p.tenant_id = $1 AND p.endpoint_id > $2 AND p.endpoint_id <= (SELECT endpoint_id FROM page_end)
               ORDER BY p.endpoint_id LIMIT $4) AS has_parked
    FROM page e
), standing AS MATERIALIZED (
    SELECT e.endpoint_id, e.name, e.state, e.is_halted, e.is_failing, c.seq, c.time, coalesce(h.seq, c.seq) AS highest,
           coalesce(h.seq - c.seq, 0) + coalesce(p.count, 0) AS backlog,
           least(p.oldest, CASE WHEN h.seq IS NOT NULL THEN coalesce((
               SELECT o.time FROM outbox o
               WHERE o.tenant_id = $1 AND o.endpoint_id = e.endpoint_id AND o.seq = c.seq + 1 AND o.time >= c.time
                 AND o.time < now() + interval '1 hour'
               LIMIT 1), c.time) END) AS oldest
    FROM marked e
    CROSS JOIN LATERAL (
        SELECT c.seq, c.time FROM cursor c WHERE c.tenant_id = $1 AND c.endpoint_id = e.endpoint_id LIMIT 1
    ) c
    CROSS JOIN LATERAL (
        SELECT CASE WHEN e.state <> 'ACTIVE' OR e.is_halted OR e.is_failing OR e.has_parked OR $8::timestamptz IS NULL
                      OR {is_tried}
            THEN (SELECT o.seq FROM outbox o
                  WHERE o.tenant_id = $1 AND o.endpoint_id = e.endpoint_id AND o.seq > c.seq AND o.time >= c.time
                    AND o.time < now() + interval '1 hour'
                  ORDER BY o.seq DESC LIMIT 1)
            ELSE (SELECT o.seq FROM outbox o
                  WHERE o.tenant_id = $1 AND o.endpoint_id = e.endpoint_id AND o.seq > c.seq AND o.time >= $8
                    AND o.time < now() + interval '1 hour'
                  ORDER BY o.seq DESC LIMIT 1) END AS seq
        OFFSET 0
    ) h
    LEFT JOIN LATERAL (
        SELECT count(*) AS count, min(a.time) AS oldest
        FROM (SELECT p.time FROM parked p WHERE e.has_parked AND p.tenant_id = $1 AND p.endpoint_id = e.endpoint_id
              ORDER BY p.seq LIMIT $4) a
        HAVING count(*) > 0
    ) p ON true
)
SELECT n.*, r.*
FROM (
    SELECT count(*) AS page_count, (SELECT endpoint_id FROM page_end) AS page_end,
           count(*) FILTER (WHERE state = 'ACTIVE') AS active, count(*) FILTER (WHERE state = 'PAUSED') AS paused,
           count(*) FILTER (WHERE state = 'DISABLED') AS disabled, count(*) FILTER (WHERE is_halted) AS halted,
           count(*) FILTER (WHERE is_failing) AS failing, coalesce(sum(backlog), 0)::bigint AS backlog_sum,
           coalesce(sum(backlog) FILTER (WHERE is_halted OR state <> 'ACTIVE'), 0)::bigint AS held,
           count(*) FILTER (WHERE backlog > 0 OR time >= $5) AS at_work
    FROM standing
) n
LEFT JOIN (
    SELECT * FROM (
        SELECT s.*, row_number() OVER (ORDER BY s.backlog DESC, s.time DESC) AS by_size,
               row_number() OVER (ORDER BY s.oldest) AS by_age
        FROM standing s WHERE s.backlog > 0 OR s.time >= $5
    ) s
    WHERE s.by_size <= $6 OR s.by_age <= $7
) r ON true"""
EXACT_PAGE = PAGE.format(is_tried="false")
# What the egress proxy fails is no trouble of the endpoint's, and the attempts are few: one in TRIED is on record.
LARGE_PAGE = PAGE.format(
    is_tried="""EXISTS (
                SELECT FROM attempt a
                WHERE a.tenant_id = $1 AND a.endpoint_id = e.endpoint_id AND a.seq > c.seq
                  AND a.time >= now() - $9::interval AND a.time < now() + interval '1 hour')"""
)


async def _walk(db: Database, tenant: Tenant, window: Window, limits: StatisticsLimits, deadline: float) -> Walk:
    """All pages, or as many as there is time for. DatabaseBusyError where there is none for the first."""
    clock = asyncio.get_running_loop().time
    walk, after, end = Walk(), UUID(int=0), min(clock() + limits.timeout_s, deadline - PAGE_MARGIN_S)
    bounds = (PAGE_ENDPOINTS, TROUBLES_MAX, window.start, SAMPLED_ENDPOINTS_MAX, limits.worst_max)
    earliest = await _earliest(db, tenant, window.end, limits)
    while (left_s := end - clock()) > 0:
        try:
            async with bounded(db, left_s) as connection:
                if earliest is None:
                    rows = await connection.fetch(EXACT_PAGE, tenant.tenant_id, after, *bounds, None)
                else:
                    rows = await connection.fetch(LARGE_PAGE, tenant.tenant_id, after, *bounds, earliest, TRIED)
        except DatabaseBusyError:
            if not walk.total:
                raise
            break
        _add(walk, tenant.tenant_id, rows)
        if rows[0]["page_count"] < PAGE_ENDPOINTS:
            return walk
        after = rows[0]["page_end"]
    if not walk.total:
        raise _took_too_long()
    walk.is_partial = True
    return walk


def _took_too_long() -> DatabaseBusyError:
    return DatabaseBusyError("the database takes too long to tell", retry_after_s=BUSY_RETRY_S)


HAS_MORE_ENDPOINTS = """
SELECT count(*) > $2 FROM (
    SELECT FROM endpoint WHERE tenant_id = $1 AND delete_time IS NULL ORDER BY endpoint_id LIMIT $2 + 1
) e"""


async def _earliest(db: Database, tenant: Tenant, now: datetime, limits: StatisticsLimits) -> datetime | None:
    """How far back a backlog is looked for where nothing is wrong, as it is with none of a tenant that is paused; None:
    to the cursors."""
    async with bounded(db, limits.timeout_s) as connection:
        is_large = await connection.fetchval(HAS_MORE_ENDPOINTS, tenant.tenant_id, EXACT_ENDPOINTS_MAX)
    return Window(now - RECENT, now).first_day if is_large and tenant.state is TenantState.ACTIVE else None


def _add(walk: Walk, tenant_id: UUID, rows: Sequence[asyncpg.Record]) -> None:
    totals = rows[0]
    walk.total += totals["page_count"]
    walk.active += totals["active"]
    walk.paused += totals["paused"]
    walk.disabled += totals["disabled"]
    walk.halted += totals["halted"]
    walk.failing += totals["failing"]
    walk.backlog += totals["backlog_sum"]
    walk.held += totals["held"]
    walk.at_work += totals["at_work"]
    walk.standings += [_standing(tenant_id, row) for row in rows if row["endpoint_id"] is not None]


def _standing(tenant_id: UUID, row: asyncpg.Record) -> Standing:
    return Standing(
        EndpointKey(tenant_id, row["endpoint_id"]),
        row["name"],
        EndpointState(row["state"]),
        row["is_halted"],
        row["backlog"],
        row["oldest"],
        row["seq"],
        row["time"],
        row["highest"],
    )


def _at_work_first(standings: Sequence[Standing]) -> list[Standing]:
    return sorted(standings, key=lambda standing: (standing.backlog, standing.cursor_time), reverse=True)


def corrected(walk: Walk, sampled: Sequence[tuple[Standing, Sample]]) -> Walk:
    """The walk without what the samples show to be settled."""
    settled = {standing.key: standing.settled_since(sample) for standing, sample in sampled}
    return replace(
        walk,
        backlog=walk.backlog - sum(settled.values()),
        held=walk.held - sum(settled[standing.key] for standing, _ in sampled if standing.is_held),
        standings=[s.less(settled.get(s.key, 0)) for s in walk.standings],
    )


def _status(
    tenant: Tenant,
    now: datetime,
    walk: Walk,
    limits: StatisticsLimits,
    sampled: Sequence[tuple[Standing, Sample]] | None,
) -> TenantStatus:
    if tenant.state is not TenantState.ACTIVE:
        walk = replace(walk, held=walk.backlog)
    waiting = [standing for standing in walk.standings if standing.oldest_time is not None]
    by_age = sorted(waiting, key=lambda standing: standing.oldest_time or now)
    statistics, drain_s = None, None
    if sampled is not None:
        is_cut = walk.is_partial or walk.at_work > len(sampled)
        statistics = summarize([sample for _, sample in sampled], limits.window_s, truncated=is_cut)
        drain_s = None if is_cut else _drain_s(walk, sampled)
    return TenantStatus(
        tenant=tenant,
        now=now,
        walk=walk,
        oldest=by_age[: limits.worst_max],
        largest=_at_work_first(waiting)[: limits.worst_max],
        oldest_time=by_age[0].oldest_time if by_age else None,
        statistics=statistics,
        time_to_drain_s=drain_s,
    )


def _drain_s(walk: Walk, sampled: Sequence[tuple[Standing, Sample]]) -> float | None:
    """By the rates of those that are not held; what only waits for an operator does not drain."""
    due = walk.backlog - walk.held
    if not due and walk.held:
        return None
    flowing = [sample for standing, sample in sampled if not standing.is_held]
    return time_to_drain_s(
        due, sum(sample.delivered_per_s for sample in flowing), sum(sample.committed_per_s for sample in flowing)
    )
