"""Heartbeats of the running processes: who shares the partitions, and what operators see of them."""

from __future__ import annotations

from uuid import UUID

import asyncpg

from dispatcher.model import FleetLoad, Instance
from dispatcher.store.database import Database

HEARTBEAT = """
INSERT INTO instance (instance_id, address, version, start_time, heartbeat_time, draining, in_flight, delivered_total,
                      due_backlog, due_age_s)
VALUES ($1, $2, $3, $4, clock_timestamp(), $5, $6, $7, $8, $9)
ON CONFLICT (instance_id) DO UPDATE
SET address = excluded.address, heartbeat_time = excluded.heartbeat_time, draining = excluded.draining,
    in_flight = excluded.in_flight, delivered_total = excluded.delivered_total,
    due_backlog = excluded.due_backlog, due_age_s = excluded.due_age_s"""


async def heartbeat(db: Database, instance: Instance) -> None:
    """Say that this instance lives, by the database's clock; `heartbeat_time` and `partitions` are not written."""
    await db.execute(
        HEARTBEAT,
        instance.instance_id,
        instance.address,
        instance.version,
        instance.start_time,
        instance.draining,
        instance.in_flight,
        instance.delivered_total,
        instance.due_backlog,
        instance.due_age_s,
    )


READ = """
SELECT i.*, (SELECT count(*) FROM lease l
             WHERE l.owner = i.instance_id AND l.expire_time > clock_timestamp()) AS partitions
FROM instance i
WHERE $1::float8 IS NULL OR i.heartbeat_time > clock_timestamp() - make_interval(secs => $1)
ORDER BY i.start_time, i.instance_id"""


async def live(db: Database, ttl_s: float) -> list[Instance]:
    """Instances whose last heartbeat is less than `ttl_s` old, draining ones included, oldest first."""
    return [_instance(row) for row in await db.fetch(READ, float(ttl_s))]


async def read_all(db: Database) -> list[Instance]:
    """All instances that have not been removed, dead ones included, oldest first."""
    return [_instance(row) for row in await db.fetch(READ, None)]


# The workers of one `serve` are instances at one address.
FLEET_LOAD = """
SELECT count(DISTINCT address) FILTER (WHERE NOT draining) AS hosts,
       coalesce(sum(due_backlog), 0)::bigint AS due_backlog, coalesce(max(due_age_s), 0) AS due_age_s
FROM instance WHERE heartbeat_time > clock_timestamp() - make_interval(secs => $1)"""


async def fleet_load(db: Database, ttl_s: float) -> FleetLoad:
    """What the instances whose last heartbeat is less than `ttl_s` old said of their load. Raises UnavailableError."""
    (row,) = await db.fetch(FLEET_LOAD, float(ttl_s))
    return FleetLoad(row["hosts"], row["due_backlog"], row["due_age_s"])


REMOVE = "DELETE FROM instance WHERE instance_id = $1"


async def remove(db: Database, instance_id: UUID) -> None:
    """Forget an instance that has stopped."""
    await db.execute(REMOVE, instance_id)


REMOVE_DEAD = "DELETE FROM instance WHERE heartbeat_time < clock_timestamp() - make_interval(secs => $1)"


async def remove_dead(db: Database, silent_s: float) -> None:
    """Forget instances that have been silent for so long."""
    await db.execute(REMOVE_DEAD, float(silent_s))


def _instance(row: asyncpg.Record) -> Instance:
    return Instance(
        instance_id=row["instance_id"],
        address=row["address"],
        version=row["version"],
        start_time=row["start_time"],
        heartbeat_time=row["heartbeat_time"],
        draining=row["draining"],
        partitions=row["partitions"],
        in_flight=row["in_flight"],
        delivered_total=row["delivered_total"],
        due_backlog=row["due_backlog"],
        due_age_s=row["due_age_s"],
    )
