"""Time partitions: created days ahead, dropped whole once nothing in them is needed.

There is no DEFAULT partition: a row that finds no partition is an error, loud and at once. Names carry the UTC day
(`outbox_p20261123`), dedup's the generation (`dedup_g20780`).
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import asyncpg

from dispatcher.store.database import Connection

DAILY_TABLES = ("event", "outbox", "attempt")
"""In the order they are created; `outbox` is dropped first, see `retention`."""
DEDUP_GENERATIONS_AHEAD = 3

SELECT_NOW = "SELECT clock_timestamp()"
SELECT_DEDUP_WINDOW = "SELECT dedup_window_s FROM deployment"


async def create_ahead(connection: Connection, days_ahead: int = 7) -> None:
    """Create yesterday's to `days_ahead` days' partitions and the coming dedup generations, where missing.

    Yesterday's is for rows whose time was read just before midnight, and for attempts of a process whose clock lags.
    """
    now: datetime = await connection.fetchval(SELECT_NOW)
    today = now.astimezone(UTC).date()
    days = [today + timedelta(days=n) for n in range(-1, days_ahead + 1)]
    window_s = int(await connection.fetchval(SELECT_DEDUP_WINDOW))
    generation = int(now.timestamp()) // window_s
    wanted = [_daily_sql(table, day) for table in DAILY_TABLES for day in days]
    wanted += [_dedup_sql(g) for g in range(generation - 1, generation + DEDUP_GENERATIONS_AHEAD + 1)]
    existing = await existing_partitions(connection)
    for name, sql in wanted:
        if name not in existing:
            await _create(connection, sql)


async def _create(connection: Connection, sql: str) -> None:
    try:
        await connection.execute(sql)
    except (asyncpg.DuplicateTableError, asyncpg.UniqueViolationError):
        return  # another instance was first


SELECT_PARTITIONS = """
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent IN ('event'::regclass, 'outbox'::regclass, 'attempt'::regclass, 'dedup'::regclass)"""


async def existing_partitions(connection: Connection) -> set[str]:
    """The names of all attached partitions."""
    return {row["relname"] for row in await connection.fetch(SELECT_PARTITIONS)}


def partition_name(table: str, day: date) -> str:
    return f"{table}_p{day:%Y%m%d}"


def _daily_sql(table: str, day: date) -> tuple[str, str]:
    name, following = partition_name(table, day), day + timedelta(days=1)
    return name, (
        f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF {table} "
        f"FOR VALUES FROM ('{day.isoformat()} 00:00:00+00') TO ('{following.isoformat()} 00:00:00+00')"
    )


def _dedup_sql(generation: int) -> tuple[str, str]:
    name = f"dedup_g{generation}"
    return (
        name,
        f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF dedup FOR VALUES FROM ({generation}) TO ({generation + 1})",
    )
