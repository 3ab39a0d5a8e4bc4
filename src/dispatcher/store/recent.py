"""Recent attempts read for statistics: of each endpoint those of its highest sequences, down the primary keys.

No index leads to attempts by time, and none is to: each event would pay for it. An endpoint's attempts lie by sequence,
so its latest are at the end, save retries of deliveries further back. Whole days are read, as the partitions are, so
that a limit bounds what is read, not only what is found; once it is reached, nobody knows of retries below.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from dispatcher.errors import DatabaseBusyError
from dispatcher.model import EndpointKey, Outcome
from dispatcher.store import forms
from dispatcher.store.database import Connection, Database
from dispatcher.store.fence import probing
from dispatcher.store.forms import by_tenant
from dispatcher.store.statistics import SPAN_MIN_S, AttemptRead, DeliveryStatistics, Sample, summarize
from dispatcher.store.windows import Window

ENDPOINT_ATTEMPTS_MIN = 10
"""Attempts read of each endpoint at least, where many share the limit."""


@dataclass(frozen=True, slots=True)
class StatisticsLimits:
    """What statistics look at: the last `window_s`, of `attempts_max` attempts at most, for `timeout_s`; `worst_max`
    endpoints are named."""

    window_s: float = 300.0
    attempts_max: int = 2000
    timeout_s: float = 2.0
    worst_max: int = 10

    @property
    def call_s(self) -> float:
        """For all of a tenant's status: the wait for a turn, the walk over its endpoints, what is read of their
        attempts."""
        return 3 * self.timeout_s


SET_TIMEOUT = "SELECT set_config('statement_timeout', $1, true)"


@contextlib.asynccontextmanager
async def bounded(db: Database, timeout_s: float) -> AsyncIterator[Connection]:
    """`probing`, each statement for so long at most; DatabaseBusyError where one takes longer."""
    async with probing(db) as connection:
        await connection.execute(SET_TIMEOUT, f"{max(1, round(timeout_s * 1000))}ms")
        yield connection


# The place in the arrays, not the endpoint, comes back with each row: it is smaller. A place's rows keep their order: a
# lateral with a limit can be joined by nothing but a nested loop.
READ_ATTEMPTS = by_tenant(
    """
SELECT w.i, a.seq, a.time, a.duration_us, a.outcome
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::integer[])
     WITH ORDINALITY w(tenant_id, endpoint_id, first_day, row_limit, i)
CROSS JOIN LATERAL (
    SELECT a.seq, a.time, a.duration_us, a.outcome FROM attempt a
    WHERE a.tenant_id = w.tenant_id AND a.endpoint_id = w.endpoint_id
      AND a.time >= w.first_day AND a.time < now() + interval '1 hour'
    ORDER BY a.seq DESC, a.epoch DESC, a.number DESC, a.time DESC
    LIMIT w.row_limit
) a"""
)
# What was delivered lately may have been committed on any day; one without these sequences costs a probe.
READ_PAYLOADS = by_tenant(
    """
SELECT w.i, o.seq, o.data_bytes
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::integer[])
     WITH ORDINALITY w(tenant_id, endpoint_id, lowest, highest, row_limit, i)
CROSS JOIN LATERAL (
    SELECT o.seq, o.data_bytes FROM outbox o
    WHERE o.tenant_id = w.tenant_id AND o.endpoint_id = w.endpoint_id AND o.seq >= w.lowest AND o.seq <= w.highest
      AND o.time < now() + interval '1 hour'
    ORDER BY o.seq DESC
    LIMIT w.row_limit
) o"""
)
COUNT_COMMITTED = by_tenant(
    """
SELECT w.i, count(o.time) AS read, count(o.time) FILTER (WHERE o.time >= w.since) AS committed, min(o.time) AS first
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::integer[])
     WITH ORDINALITY w(tenant_id, endpoint_id, first_day, since, row_limit, i)
LEFT JOIN LATERAL (
    SELECT o.time FROM outbox o
    WHERE o.tenant_id = w.tenant_id AND o.endpoint_id = w.endpoint_id
      AND o.time >= w.first_day AND o.time < now() + interval '1 hour'
    ORDER BY o.seq DESC
    LIMIT w.row_limit
) o ON true
GROUP BY w.i"""
)
NOW = "SELECT clock_timestamp()"


async def read(db: Database, keys: Sequence[EndpointKey], limits: StatisticsLimits) -> list[Sample]:
    """A sample of each of these endpoints of one tenant, in their order. Errors: DatabaseBusyError."""
    if not keys:
        return []
    share = max(ENDPOINT_ATTEMPTS_MIN, limits.attempts_max // len(keys))
    async with bounded(db, limits.timeout_s) as connection:
        now: datetime = await connection.fetchval(NOW)
        window = Window(now - timedelta(seconds=limits.window_s), now)
        # One more than is counted tells whether there are more.
        wanted = [(key.tenant_id, key.endpoint_id, window.first_day, share + 1) for key in keys]
        attempts = _by_place(await forms.fetch(connection, READ_ATTEMPTS, wanted))
        payloads = _by_place(await forms.fetch(connection, READ_PAYLOADS, _ranges(keys, attempts, share)))
        counted = [(*row[:3], window.start, share) for row in wanted]
        committed = _by_place(await forms.fetch(connection, COUNT_COMMITTED, counted))
    places = range(1, len(keys) + 1)
    return [_sample(window, share, attempts[i], payloads[i], committed[i][0]) for i in places]


async def of_endpoint(db: Database, key: EndpointKey, limits: StatisticsLimits) -> DeliveryStatistics | None:
    """How an endpoint's deliveries have gone of late; None where the database takes too long: what else is known of an
    endpoint is not to be lost with it."""
    try:
        return summarize(await read(db, [key], limits), limits.window_s)
    except DatabaseBusyError:
        return None


def _by_place(rows: Sequence[asyncpg.Record]) -> defaultdict[int, list[asyncpg.Record]]:
    found: defaultdict[int, list[asyncpg.Record]] = defaultdict(list)
    for row in rows:
        found[row["i"]].append(row)
    return found


def _ranges(
    keys: Sequence[EndpointKey], attempts: defaultdict[int, list[asyncpg.Record]], row_limit: int
) -> list[tuple[object, ...]]:
    """The sequences attempted of each endpoint, from the highest down; the limit also bounds what lies between those of
    a few retries. Without any the range is empty, and the place is kept."""
    ranges: list[tuple[object, ...]] = []
    for place, key in enumerate(keys, 1):
        seqs = [row["seq"] for row in attempts[place]]
        ranges.append((key.tenant_id, key.endpoint_id, min(seqs, default=1), max(seqs, default=0), row_limit))
    return ranges


def _sample(
    window: Window,
    row_limit: int,
    attempts: Sequence[asyncpg.Record],
    payloads: Sequence[asyncpg.Record],
    committed: asyncpg.Record,
) -> Sample:
    truncated, attempts = len(attempts) > row_limit, attempts[:row_limit]
    recent = [row for row in attempts if row["time"] >= window.start and row["outcome"] != Outcome.EGRESS_PROXY_FAILED]
    attempted = {row["seq"] for row in recent}
    is_cut = committed["read"] >= row_limit and committed["first"] > window.start
    return Sample(
        span_s=_span_s(window, _known_since(window, attempts) if truncated else window.start),
        truncated=truncated,
        attempts=[
            AttemptRead(row["seq"], row["duration_us"] / 1_000_000, row["outcome"] == Outcome.SUCCEEDED)
            for row in recent
        ],
        payload_bytes=[row["data_bytes"] for row in payloads if row["seq"] in attempted],
        committed=committed["committed"],
        committed_span_s=_span_s(window, committed["first"] if is_cut else window.start),
    )


def _known_since(window: Window, attempts: Sequence[asyncpg.Record]) -> datetime:
    """Of the highest sequences. Where the lowest of them was attempted within the window, so were those below it; a
    high one that was attempted long ago says nothing of them."""
    times: list[datetime] = [row["time"] for row in attempts]
    if times[-1] < window.start:
        return window.start
    return min(time for time in times if time >= window.start)


def _span_s(window: Window, start: datetime) -> float:
    return max(SPAN_MIN_S, (window.end - start).total_seconds())
