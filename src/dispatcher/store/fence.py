"""The fence: what only the owner of a partition may write, and plans that stay what they were written for.

A steal changes the lease's epoch, which is a key update and waits for `FOR KEY SHARE`; a renewal changes no key and
does not wait. So a decision written under the fence is written by the owner or not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from dispatcher.store.database import Connection, Database

HOLD = """
SELECT l.partition
FROM lease l
JOIN unnest($1::smallint[], $2::bigint[]) h(partition, epoch) ON h.partition = l.partition AND h.epoch = l.epoch
ORDER BY l.partition
FOR KEY SHARE OF l"""


async def hold(connection: Connection, epochs: Mapping[int, int]) -> set[int]:
    """Keep these partitions at these epochs until the transaction ends. Returns those that still are at them."""
    rows = await connection.fetch(HOLD, list(epochs.keys()), list(epochs.values()))
    return {row["partition"] for row in rows}


RAISE_SYNCHRONOUS_COMMIT = """
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"""


@contextlib.asynccontextmanager
async def fenced(db: Database, epochs: Mapping[int, int]) -> AsyncIterator[tuple[Connection, set[int]]]:
    """A durable transaction that holds the partitions still at their epochs, and the set of them."""
    async with db.transaction() as connection:
        await connection.execute(RAISE_SYNCHRONOUS_COMMIT)
        yield connection, await hold(connection, epochs)


GUARD_PLAN = """
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('plan_cache_mode', 'force_generic_plan', true)"""


async def guard_plan(connection: Connection) -> None:
    """For this transaction: index probes only, and one plan for all parameters.

    A partition is planned for while it is empty, at midnight; a sequential scan chosen then would be kept until the
    next ANALYZE, over millions of rows. The generic plan also prunes partitions at run time, row by row.
    """
    await connection.execute(GUARD_PLAN)


@contextlib.asynccontextmanager
async def probing(db: Database) -> AsyncIterator[Connection]:
    """A transaction for reads by index probes, see `guard_plan`."""
    async with db.transaction() as connection:
        await guard_plan(connection)
        yield connection
