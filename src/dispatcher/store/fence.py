"""The fence: what only the owner of a partition may write, and plans that stay what they were written for.

A steal changes the lease's epoch, which is a key update and waits for `FOR KEY SHARE`; a renewal changes no key and
does not wait. So a decision written under the fence is written by the owner or not at all.

A replica that was promoted has the same epochs, and perhaps not the rows that a decision was taken on: the fence holds
on the timeline that the leases were acquired on, too. Otherwise a cursor of before the failover would pass over rows
that nobody has sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping

import asyncpg

from dispatcher.errors import UnavailableError
from dispatcher.store.database import Connection, Database

HOLD = """
SELECT l.partition
FROM lease l
JOIN unnest($1::smallint[], $2::bigint[]) h(partition, epoch) ON h.partition = l.partition AND h.epoch = l.epoch
ORDER BY l.partition
FOR KEY SHARE OF l"""


TIMELINE = "SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"
HOLD_ON_TIMELINE = HOLD.replace("ORDER BY", f"WHERE $3 = ({TIMELINE})\nORDER BY")


async def hold(connection: Connection, epochs: Mapping[int, int], timeline: int) -> set[int]:
    """Keep these partitions at these epochs until the transaction ends. Returns those that still are at them: none
    where the database is on another timeline than `timeline`; 0 is any."""
    held = list(epochs.keys()), list(epochs.values())
    rows = await (connection.fetch(HOLD_ON_TIMELINE, *held, timeline) if timeline else connection.fetch(HOLD, *held))
    return {row["partition"] for row in rows}


RAISE_SYNCHRONOUS_COMMIT = """
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"""


@contextlib.asynccontextmanager
async def fenced(db: Database, epochs: Mapping[int, int]) -> AsyncIterator[tuple[Connection, set[int]]]:
    """A durable transaction that holds the partitions still at their epochs, and the set of them."""
    timeline = db.timeline  # that of the epochs, whatever is learnt while this waits for a connection
    async with db.transaction() as connection:
        await connection.execute(RAISE_SYNCHRONOUS_COMMIT)
        yield connection, await hold(connection, epochs, timeline)


GUARD_PLAN = """
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('plan_cache_mode', 'force_generic_plan', true)"""


GUARD_AND_TIMELINE = f"{GUARD_PLAN.rstrip()}, ({TIMELINE}) AS timeline"


async def guard_plan(connection: Connection) -> None:
    """For this transaction: index probes only, and one plan for all parameters.

    A partition is planned for while it is empty, at midnight; a sequential scan chosen then would be kept until the
    next ANALYZE, over millions of rows. The generic plan also prunes partitions at run time, row by row.
    """
    await connection.execute(GUARD_PLAN)


@contextlib.asynccontextmanager
async def probing(db: Database) -> AsyncIterator[Connection]:
    """A transaction for reads by index probes, see `guard_plan`; UnavailableError on another timeline than that of
    the leases, whose rows do not continue what is in memory."""
    async with db.transaction() as connection:
        if db.timeline:
            await _guard_on_timeline(db, connection)
        else:
            await guard_plan(connection)
        yield connection


@contextlib.asynccontextmanager
async def continuing(db: Database) -> AsyncIterator[Connection]:
    """A transaction for writes that take something in memory for granted, without a fence; UnavailableError on another
    timeline than that of the leases, where it may not be so."""
    async with db.transaction() as connection:
        if db.timeline and not db.is_on(await timeline_on(connection)):
            raise UnavailableError(AFRESH)
        yield connection


AFRESH = "the database has another timeline; everything starts afresh first"


async def _guard_on_timeline(db: Database, connection: Connection) -> None:
    with _replicas_refused():
        found = await connection.fetchrow(GUARD_AND_TIMELINE)
    if found is not None and not db.is_on(found["timeline"]):
        raise UnavailableError(AFRESH)


async def timeline_on(connection: Connection) -> int:
    """The timeline of the primary at the other end. Raises asyncpg's errors."""
    with _replicas_refused():
        return int(await connection.fetchval(TIMELINE))


@contextlib.contextmanager
def _replicas_refused() -> Iterator[None]:
    """A replica has no timeline of its own to tell: it is no more use than for writing."""
    try:
        yield
    except asyncpg.ObjectNotInPrerequisiteStateError as error:
        raise asyncpg.ReadOnlySQLTransactionError("the database is a replica in recovery") from error
