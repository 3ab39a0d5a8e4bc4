"""What keeps the database's VACUUM from its work: the oldest transaction that anybody may still want to see.

An open transaction, a standby's feedback, a replication slot or a prepared transaction holds *all* dead rows since,
those of `lease` and `cursor` among them, which change every few seconds. The system views show the transaction of each
holder to any role; who it is, and what it runs, only to its own role and to pg_monitor.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping

import asyncpg

from dispatcher.errors import UnavailableError
from dispatcher.store.database import Database
from dispatcher.telemetry import Instruments

log = logging.getLogger(__name__)

HOLDERS = ("session", "standby", "slot", "prepared")
SAMPLE_EVERY_S = 10.0
"""Samples are kept so far apart however often one is taken: what is told is not more exact than that."""
SAMPLES_MAX = 9000
"""A day and more."""

# Processes of the server's own have no user; autovacuum's do not count for the horizon.
OLDEST_XMIN = """
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next, NULL AS holder, 0::bigint AS age
UNION ALL
SELECT 0, holder, max(age)::bigint FROM (
    SELECT CASE WHEN r.pid IS NULL THEN 'session' ELSE 'standby' END AS holder,
           greatest(age(a.backend_xid), age(a.backend_xmin)) AS age
    FROM pg_stat_activity a LEFT JOIN pg_stat_replication r ON r.pid = a.pid
    WHERE a.pid <> pg_backend_pid() AND a.usesysid IS NOT NULL
      AND (a.datname = current_database() OR r.pid IS NOT NULL)
    UNION ALL
    SELECT 'slot', age(xmin) FROM pg_replication_slots
    UNION ALL
    SELECT 'prepared', age(transaction) FROM pg_prepared_xacts WHERE database = current_database()
) held
WHERE age IS NOT NULL
GROUP BY holder"""


async def oldest_xmin(db: Database) -> tuple[int, dict[str, int]]:
    """The next transaction's number, and how many transactions ago the oldest was that each kind of holder holds."""
    rows = await db.fetch(OLDEST_XMIN)
    (next_xid,) = (row["next"] for row in rows if row["holder"] is None)
    ages = {row["holder"]: max(0, row["age"]) for row in rows if row["holder"] is not None}
    return next_xid, dict.fromkeys(HOLDERS, 0) | ages


class XminClock:
    """Turns an age in transactions into one in seconds, by when the counter stood where; pure.

    It knows only what it has seen: right after a start nothing is old.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)

    def held_s(self, now: float, next_xid: int, ages: Mapping[str, int]) -> dict[str, float]:
        """For how long each transaction, `age` before the next one, has not been the newest."""
        if self._samples and next_xid < self._samples[-1][1]:
            self._samples.clear()  # another server, restored to an earlier time
        # The newest is always kept: it gives way to the next one where it comes too soon after the one before.
        if len(self._samples) > 1 and self._samples[-1][0] - self._samples[-2][0] < SAMPLE_EVERY_S:
            self._samples.pop()
        self._samples.append((now, next_xid))
        return {holder: self._since_s(now, next_xid - age) if age else 0.0 for holder, age in ages.items()}

    def _since_s(self, now: float, xid: int) -> float:
        """Since the last sample at which `xid` was still to come, or since the first one."""
        later = bisect_right(self._samples, xid, key=lambda sample: sample[1])
        return now - self._samples[max(0, later - 1)][0]


async def watch(
    db: Database, instruments: Instruments, interval_s: float, clock: Callable[[], float] = time.monotonic
) -> None:
    """Keep the two gauges for ever; while the database does not tell, be it that it may not, they have no value."""
    xmins = XminClock()
    while True:
        try:
            next_xid, ages = await oldest_xmin(db)
        except (UnavailableError, asyncpg.PostgresError) as error:
            log.info("the oldest transaction could not be read", extra={"error": str(error)})
            instruments.xmin_age.by_label({})
            instruments.xmin_held_s.by_label({})
        else:
            instruments.xmin_age.by_label(ages)
            instruments.xmin_held_s.by_label(xmins.held_s(clock(), next_xid, ages))
        await asyncio.sleep(interval_s)
