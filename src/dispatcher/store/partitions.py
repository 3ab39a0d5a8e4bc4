"""Time partitions: created days ahead, dropped whole once nothing in them is needed.

There is no DEFAULT partition: a row that finds no partition is an error, loud and at once. Names carry the UTC day
(`outbox_p20261123`), dedup's the generation (`dedup_g20780`).

Nothing here takes a lock that inserts wait for. `CREATE TABLE … PARTITION OF` would take ACCESS EXCLUSIVE on its parent
and, queued behind one open reader (pg_dump), block all inserts; so a table is created alone and attached, which takes
SHARE UPDATE EXCLUSIVE. Likewise a partition is detached CONCURRENTLY, then dropped alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import asyncpg

from dispatcher.errors import UnavailableError
from dispatcher.store.database import Connection

EVENT_TABLES = ("event", "outbox", "attempt")
DAILY_TABLES = (*EVENT_TABLES, "audit")
DEDUP_GENERATIONS_AHEAD = 3
DAY_S = 86_400
LOCK_TIMEOUT_S = 1.0
"""A lock that is not had by then is tried for again later, so that nothing queues behind the wait for long."""
ATTACH_TRIES = 10
RETRY_DELAY_S = 0.5
ADVISORY_KEY = 0x64697370_70617274  # "disppart"
DROP_MARK = "dispatcher: settled, to be dropped"
"""The comment on a partition that is being dropped; a detached table without it was kept by someone on purpose."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition table of ours. `bound` is a UTC day for daily tables, a generation for dedup."""

    table: str
    bound: date | int
    detach_pending: bool = False

    @property
    def name(self) -> str:
        return f"{self.table}_g{self.bound}" if isinstance(self.bound, int) else f"{self.table}_p{self.bound:%Y%m%d}"

    @property
    def values_sql(self) -> str:
        if isinstance(self.bound, int):
            return f"FROM ({self.bound}) TO ({self.bound + 1})"
        start, end = day_start(self.bound), day_start(self.bound + timedelta(days=1))
        return f"FROM ('{start.isoformat()}') TO ('{end.isoformat()}')"


def day_start(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def parse_name(name: str) -> Partition | None:
    """The partition that a table of this name is; None for a table that is none of ours."""
    table, _, bound = name.rpartition("_")
    try:
        if table in DAILY_TABLES and len(bound) == len("p20261123") and bound[0] == "p":
            return Partition(table, datetime.strptime(bound[1:], "%Y%m%d").replace(tzinfo=UTC).date())
        if table == "dedup" and bound[:1] == "g":
            return Partition(table, int(bound[1:]))
    except ValueError:
        return None
    return None


def wanted(now: datetime, days_ahead: int, dedup_window_s: int) -> list[Partition]:
    """Yesterday's to `days_ahead` days' partitions, and the coming dedup generations.

    Yesterday's is for rows whose time was read just before midnight, and for attempts of a process whose clock lags.
    """
    today = now.astimezone(UTC).date()
    days = [today + timedelta(days=n) for n in range(-1, days_ahead + 1)]
    generation = int(now.timestamp()) // dedup_window_s
    # A day's worth of short generations, so that a day without upkeep stops no publish.
    ahead = max(DEDUP_GENERATIONS_AHEAD, DAY_S // dedup_window_s + 2)
    daily = [Partition(table, day) for table in DAILY_TABLES for day in days]
    return daily + [Partition("dedup", g) for g in range(generation - 1, generation + ahead + 1)]


SELECT_NOW = "SELECT clock_timestamp()"
SELECT_DEDUP_WINDOW = "SELECT dedup_window_s FROM deployment"


async def create_ahead(connection: Connection, days_ahead: int = 7) -> list[str]:
    """Create what is missing of `wanted`; returns the names created. Raises `UnavailableError` for a lock not had."""
    return await _create_missing(connection, days_ahead, int(await connection.fetchval(SELECT_DEDUP_WINDOW)))


UPDATE_DEDUP_WINDOW = "UPDATE deployment SET dedup_window_s = $1 WHERE dedup_window_s <> $1"


async def apply_dedup_window(connection: Connection, window_s: int, days_ahead: int = 7) -> bool:
    """Make `window_s` the window that publish() remembers ids for; False where it is already.

    Generations are numbered by the window, so its change forgets the ids claimed before. The new numbering's partitions
    are there before the first publish under it.
    """
    if int(await connection.fetchval(SELECT_DEDUP_WINDOW)) == window_s:
        return False
    await _create_missing(connection, days_ahead, window_s)
    await connection.execute(UPDATE_DEDUP_WINDOW, window_s)
    return True


async def _create_missing(connection: Connection, days_ahead: int, window_s: int) -> list[str]:
    now: datetime = await connection.fetchval(SELECT_NOW)
    existing = {partition.name for partition in await attached(connection)}
    missing = [partition for partition in wanted(now, days_ahead, window_s) if partition.name not in existing]
    return [partition.name for partition in missing if await _create(connection, partition)]


async def _create(connection: Connection, partition: Partition) -> bool:
    for _ in range(ATTACH_TRIES):
        try:
            return await _create_and_attach(connection, partition)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            await asyncio.sleep(RETRY_DELAY_S)
    raise UnavailableError(f"partition {partition.name} could not be attached: the table stays locked")


SET_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', $1, true)"
TAKE_TURN = "SELECT pg_advisory_xact_lock($1)"
IS_ATTACHED = "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass($1))"


async def _create_and_attach(connection: Connection, partition: Partition) -> bool:
    async with connection.transaction(isolation="read_committed"):
        await connection.execute(SET_LOCK_TIMEOUT, f"{LOCK_TIMEOUT_S}s")
        await connection.execute(TAKE_TURN, ADVISORY_KEY)
        if await connection.fetchval(IS_ATTACHED, partition.name):
            return False  # another instance was first
        # Indexes are copied too, so attaching finds them and builds none.
        await connection.execute(f"CREATE TABLE {partition.name} (LIKE {partition.table} INCLUDING ALL)")
        await connection.execute(
            f"ALTER TABLE {partition.table} ATTACH PARTITION {partition.name} FOR VALUES {partition.values_sql}"
        )
    return True


SELECT_ATTACHED = """
SELECT c.relname, i.inhdetachpending
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent IN ('event'::regclass, 'outbox'::regclass, 'attempt'::regclass, 'audit'::regclass,
                      'dedup'::regclass)
ORDER BY c.relname"""


async def attached(connection: Connection) -> list[Partition]:
    """All our partitions, those whose detaching was interrupted included."""
    found = []
    for row in await connection.fetch(SELECT_ATTACHED):
        partition = parse_name(row["relname"])
        if partition is not None:
            found.append(Partition(partition.table, partition.bound, row["inhdetachpending"]))
    return found


async def detach(connection: Connection, partition: Partition, wait_s: float) -> None:
    """Take a partition out without blocking anyone; needs a connection of its own, outside a transaction.

    Waits at most `wait_s` for readers that still see it, then raises TimeoutError: it is left pending, invisible to new
    queries, for `finalise`.
    """
    await connection.execute(f"COMMENT ON TABLE {partition.name} IS '{DROP_MARK}'")
    await connection.execute(
        f"ALTER TABLE {partition.table} DETACH PARTITION {partition.name} CONCURRENTLY", timeout=wait_s
    )


async def finalise(connection: Connection, partition: Partition, wait_s: float) -> None:
    """Complete a detaching that was interrupted. Raises asyncpg.LockNotAvailableError after `wait_s`."""
    async with connection.transaction(isolation="read_committed"):
        await connection.execute(SET_LOCK_TIMEOUT, f"{wait_s}s")
        await connection.execute(f"ALTER TABLE {partition.table} DETACH PARTITION {partition.name} FINALIZE")


SELECT_DETACHED = """
SELECT c.relname
FROM pg_class c
WHERE c.relkind = 'r' AND NOT c.relispartition
  AND c.relnamespace = (SELECT p.relnamespace FROM pg_class p WHERE p.oid = 'outbox'::regclass)
  AND obj_description(c.oid, 'pg_class') = $1
ORDER BY c.relname"""


async def detached(connection: Connection) -> list[Partition]:
    """Tables that we have detached and not yet dropped."""
    names = [row["relname"] for row in await connection.fetch(SELECT_DETACHED, DROP_MARK)]
    return [partition for name in names if (partition := parse_name(name)) is not None]


async def drop(connection: Connection, partition: Partition, wait_s: float) -> None:
    """Drop a detached table. Raises asyncpg.LockNotAvailableError where a reader holds it for longer than `wait_s`."""
    async with connection.transaction(isolation="read_committed"):
        await connection.execute(SET_LOCK_TIMEOUT, f"{wait_s}s")
        await connection.execute(f"DROP TABLE IF EXISTS {partition.name}")


def oldest_day(partitions: Sequence[Partition], table: str) -> date | None:
    """The oldest day of a daily table among these."""
    days = [p.bound for p in partitions if p.table == table and isinstance(p.bound, date)]
    return min(days, default=None)
