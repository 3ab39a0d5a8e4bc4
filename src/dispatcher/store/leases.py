"""Leases on the 256 partitions: times are the database's, epochs change with every owner.

`held` maps partitions to the epochs that the caller acquired them with. The local validity of a lease is the caller's
affair (delivery.leases); the database only says who may acquire what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

import asyncpg

from dispatcher.model import Lease
from dispatcher.store.database import Database
from dispatcher.store.fence import timeline_on

RENEW = """
UPDATE lease l
SET expire_time = clock_timestamp() + make_interval(secs => $4), renewals = l.renewals + 1
FROM unnest($2::smallint[], $3::bigint[]) h(partition, epoch)
WHERE l.partition = h.partition AND l.epoch = h.epoch AND l.owner = $1
RETURNING l.partition, l.epoch, l.owner, l.expire_time, l.renewals"""


async def renew(db: Database, instance_id: UUID, held: Mapping[int, int], ttl_s: float) -> list[Lease]:
    """Extend those leases that are still ours, expired or not; whatever is missing from the answer is lost."""
    if not held:
        return []
    rows = await db.fetch(RENEW, instance_id, list(held.keys()), list(held.values()), float(ttl_s))
    return [_lease(row) for row in rows]


# A lease held FOR KEY SHARE by a decision in flight is passed over: the next round gets it.
# The epoch comes from the clock as well: after a failover that lost an acquisition, counting alone would give out its
# epoch again, and a decision of then would pass the fence.
ACQUIRE = """
WITH free AS MATERIALIZED (
    SELECT l.partition FROM lease l
    WHERE l.expire_time <= clock_timestamp() AND ($4::smallint[] IS NULL OR l.partition = ANY ($4::smallint[]))
    ORDER BY l.partition
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
UPDATE lease l
SET epoch = greatest(l.epoch + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint), owner = $1,
    renewals = l.renewals + 1,
    expire_time = clock_timestamp() + make_interval(secs => $3)
FROM free
WHERE l.partition = free.partition
RETURNING l.partition, l.epoch, l.owner, l.expire_time, l.renewals"""


async def acquire(
    db: Database, instance_id: UUID, want: int, ttl_s: float, among: Sequence[int] | None = None
) -> list[Lease]:
    """Take up to `want` leases that are free or expired by the database's clock, each under a new epoch.

    `among` restricts it to these partitions, None to none. Never waits for a lease that another transaction holds.
    """
    if want <= 0:
        return []
    rows = await db.fetch(ACQUIRE, instance_id, want, float(ttl_s), None if among is None else list(among))
    return [_lease(row) for row in rows]


RELEASE = """
UPDATE lease l SET owner = NULL, expire_time = clock_timestamp()
FROM unnest($2::smallint[], $3::bigint[]) h(partition, epoch)
WHERE l.partition = h.partition AND l.epoch = h.epoch AND l.owner = $1"""


async def release(db: Database, instance_id: UUID, held: Mapping[int, int]) -> None:
    """Give leases back at once. The epoch stays: a decision still under way is written until a new owner comes."""
    if held:
        await db.execute(RELEASE, instance_id, list(held.keys()), list(held.values()))


RELEASE_ALL = "UPDATE lease SET owner = NULL, expire_time = clock_timestamp() WHERE owner = $1"


async def release_all(db: Database, instance_id: UUID) -> None:
    """Give back whatever the database says is ours, for a fresh start."""
    await db.execute(RELEASE_ALL, instance_id)


READ_ALL = "SELECT partition, epoch, owner, expire_time, renewals FROM lease ORDER BY partition"


async def read_all(db: Database) -> list[Lease]:
    """All leases by partition, expired ones included."""
    return [_lease(row) for row in await db.fetch(READ_ALL)]


READ_OWNERS = """
SELECT partition, owner, extract(epoch FROM expire_time - clock_timestamp())::float8 AS remaining_s
FROM lease WHERE owner IS NOT NULL AND expire_time > clock_timestamp()"""


async def read_owners(db: Database) -> dict[int, tuple[UUID, float]]:
    """Owner and seconds to expiry of every lease in force, by the database's clock; the missing partitions are free."""
    return {row["partition"]: (row["owner"], row["remaining_s"]) for row in await db.fetch(READ_OWNERS)}


async def timeline(db: Database) -> int:
    """The timeline of the primary; it changes when a replica is promoted.

    Raises `UnavailableError` on a replica. 0 where the database is of a kind that has no timelines.
    """
    try:
        async with db.acquire() as connection:
            return await timeline_on(connection)
    except (asyncpg.FeatureNotSupportedError, asyncpg.UndefinedFunctionError):
        return 0


def _lease(row: asyncpg.Record) -> Lease:
    return Lease(row["partition"], row["epoch"], row["owner"], row["expire_time"], row["renewals"])
