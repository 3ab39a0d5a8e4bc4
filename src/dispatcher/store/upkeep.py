"""Upkeep of the time partitions: a bounded background loop, one round every few minutes on each instance.

A round creates what is coming, completes what an earlier round left half done, and drops what is older than the
retention *and* settled: outbox first, then the attempts and events its rows referred to. The owners are asked to
dead-letter what is not settled (`expire_command`). Rounds of several instances may overlap; every step is safe to
repeat, and whoever comes second finds it done or fails that step and says so.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid5

import asyncpg

from dispatcher.errors import UnavailableError
from dispatcher.model import Command, CommandKind, Cursor, EndpointKey
from dispatcher.store import commands, dead_letters, forms, instances, parked, partitions, replays
from dispatcher.store.backlog import RowsWanted, fetch_rows_on
from dispatcher.store.cursors import advance_on
from dispatcher.store.database import AWAY_ERRORS, Connection, Database, is_one_tenant
from dispatcher.store.fence import probing
from dispatcher.store.forms import by_tenant
from dispatcher.store.partitions import Partition

LOST: tuple[type[BaseException], ...] = (UnavailableError, asyncpg.PostgresError, *AWAY_ERRORS)

log = logging.getLogger(__name__)

DEAD_INSTANCE_KEPT_S = 86_400.0
FOREIGN_GENERATIONS = 10_000
"""A generation so far ahead is of a numbering that a change of the dedup window has ended."""
ENDPOINT_BATCH = 1000
CATCH_UP_ROWS = 1000
REMOVED_MAX = 10_000
"""Ended replays and closed dead letters forgotten in one round."""


@dataclass(frozen=True, slots=True)
class UpkeepSettings:
    """`retention_days`: rows are kept at least so long. `lock_wait_s`: how long one step waits for readers.
    `commands_kept_days`: so long commands done, replays ended and dead letters closed are kept."""

    retention_days: int = 30
    days_ahead: int = 7
    interval_s: float = 600.0
    lock_wait_s: float = 2.0
    commands_kept_days: int = 30
    dedup_window_s: int = 86_400
    audit_days: int = 400


@dataclass(slots=True)
class UpkeepReport:
    """What one round did, by partition name. `kept`: old enough, but not settled. `failed`: tried again next round;
    those of them that a reader holds are `in_use` too."""

    created: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)

    @property
    def blocked(self) -> dict[str, int]:
        """How many partitions should have gone and are still there, by why."""
        in_use = set(self.in_use)
        return {"undelivered": len(self.kept), "in_use": len(in_use), "error": len(set(self.failed) - in_use)}


async def run(
    db: Database,
    settings: UpkeepSettings,
    stop: asyncio.Event,
    on_done: Callable[[UpkeepReport], None] = lambda _: None,
) -> None:
    """Rounds until `stop` is set. A database that is away, or a step that fails, waits for the next round.
    `on_done` is told of each round that went through."""
    window_applied = False
    while not stop.is_set():
        try:
            if not window_applied:
                await _apply_dedup_window(db, settings)
                window_applied = True
            on_done(await run_round(db, settings))
        except LOST as error:
            log.warning("upkeep failed, the next round tries again", extra={"error": str(error)})
        # The jitter keeps instances that started together from always working at the same time.
        delay_s = settings.interval_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret
        try:
            async with asyncio.timeout(delay_s):
                await stop.wait()
        except TimeoutError:
            continue


async def _apply_dedup_window(db: Database, settings: UpkeepSettings) -> None:
    """At start only: instances that are told different windows would else take turns for ever."""
    async with db.acquire() as connection:
        if await partitions.apply_dedup_window(connection, settings.dedup_window_s, settings.days_ahead):
            log.warning(
                "event ids are remembered for another time; earlier ones are forgotten",
                extra={"dedup_window_s": settings.dedup_window_s},
            )


async def run_round(db: Database, settings: UpkeepSettings) -> UpkeepReport:
    """One round. Raises `UnavailableError` when the database is away or the coming partitions cannot be created."""
    report = UpkeepReport()
    connection = await db.connect()
    try:
        report.created = await partitions.create_ahead(connection, settings.days_ahead)
        await _complete_drops(connection, settings, report)
        await _drop_outbox(db, connection, settings, report)
        await _drop_unreferenced(connection, settings, report)
    finally:
        connection.terminate()
    await instances.remove_dead(db, DEAD_INSTANCE_KEPT_S)
    kept_s = settings.commands_kept_days * 86_400.0
    await commands.remove_done(db, kept_s)
    await replays.remove_ended(db, kept_s, REMOVED_MAX)
    await dead_letters.remove_closed(db, kept_s, REMOVED_MAX)
    if report.created or report.dropped or report.kept or report.failed:
        log.info(
            "partition upkeep",
            extra={"added": report.created, "dropped": report.dropped, "kept": report.kept, "failed": report.failed},
        )
    return report


async def _complete_drops(connection: Connection, settings: UpkeepSettings, report: UpkeepReport) -> None:
    """Finish what an interrupted round left: detachings that wait for a reader, tables that are out but still there."""
    for partition in await partitions.attached(connection):
        if partition.detach_pending:
            await _attempt(report, partition, lambda p: partitions.finalise(connection, p, settings.lock_wait_s))
    for partition in await partitions.detached(connection):
        if await _attempt(report, partition, lambda p: partitions.drop(connection, p, settings.lock_wait_s)):
            report.dropped.append(partition.name)


async def _drop_outbox(db: Database, connection: Connection, settings: UpkeepSettings, report: UpkeepReport) -> None:
    now: datetime = await connection.fetchval(partitions.SELECT_NOW)
    for partition, day in await _daily(connection, "outbox"):
        if not is_expired(day, now, settings.retention_days):
            continue
        end = partitions.day_start(day + timedelta(days=1))
        unsettled = [*await settle_day(db, day), *await parked.endpoints_before(connection, end, ENDPOINT_BATCH)]
        if not unsettled:
            await _drop(connection, partition, settings, report)
            continue
        report.kept.append(partition.name)
        for key in dict.fromkeys(unsettled):
            await commands.append(db, expire_command(key, end))


async def _drop_unreferenced(connection: Connection, settings: UpkeepSettings, report: UpkeepReport) -> None:
    """Attempts and events of days that no outbox row is left of, audit records past their own retention, and dedup
    generations that no publish looks at."""
    now: datetime = await connection.fetchval(partitions.SELECT_NOW)
    present = await partitions.attached(connection)
    oldest_outbox_day = partitions.oldest_day(present, "outbox")
    window_s = int(await connection.fetchval(partitions.SELECT_DEDUP_WINDOW))
    generation = int(now.timestamp()) // window_s
    for partition in present:
        if isinstance(partition.bound, int):
            droppable = not generation - 1 <= partition.bound <= generation + FOREIGN_GENERATIONS
        elif partition.table == "audit":
            droppable = is_expired(partition.bound, now, settings.audit_days)
        else:
            droppable = is_expired(partition.bound, now, settings.retention_days) and is_unreferenced(
                partition, oldest_outbox_day
            )
        if droppable and partition.table != "outbox":
            await _drop(connection, partition, settings, report)


def is_expired(day: date, now: datetime, retention_days: int) -> bool:
    """Whether the whole UTC day lies further back than the retention."""
    return partitions.day_start(day + timedelta(days=1)) <= now.astimezone(UTC) - timedelta(days=retention_days)


def is_unreferenced(partition: Partition, oldest_outbox_day: date | None) -> bool:
    """Whether no outbox row can refer to an attempt or event of this day any more.

    Events are of the day of their rows. An attempt's time is its sender's clock, which may lag behind midnight: a day
    more.
    """
    if not isinstance(partition.bound, date) or oldest_outbox_day is None:
        return False
    margin = timedelta(days=1) if partition.table == "attempt" else timedelta()
    return partition.bound + margin < oldest_outbox_day


async def _daily(connection: Connection, table: str) -> list[tuple[Partition, date]]:
    found = await partitions.attached(connection)
    return [(p, p.bound) for p in found if p.table == table and isinstance(p.bound, date)]


async def _drop(connection: Connection, partition: Partition, settings: UpkeepSettings, report: UpkeepReport) -> None:
    if partition.detach_pending:
        return  # a reader still sees it; `_complete_drops` has tried

    async def detach_and_drop(p: Partition) -> None:
        await partitions.detach(connection, p, settings.lock_wait_s)
        await partitions.drop(connection, p, settings.lock_wait_s)

    if await _attempt(report, partition, detach_and_drop):
        report.dropped.append(partition.name)


async def _attempt(report: UpkeepReport, partition: Partition, step: Callable[[Partition], Awaitable[None]]) -> bool:
    """Do one step; a reader in the way or another instance at the same work only fails this partition."""
    try:
        await step(partition)
    except (asyncpg.PostgresError, TimeoutError) as error:
        log.info("a partition could not be dropped yet", extra={"partition": partition.name, "error": str(error)})
        report.failed.append(partition.name)
        if isinstance(error, (TimeoutError, asyncpg.LockNotAvailableError)):
            report.in_use.append(partition.name)
        return False
    return True


# By endpoint, not by row: one index probe each in the partition of that day.
FIND_UNSETTLED = """
SELECT e.tenant_id, e.endpoint_id, coalesce(c.seq, 0) AS seq, coalesce(c.time, e.create_time) AS time, h.seq AS highest
FROM (
    SELECT e.tenant_id, e.endpoint_id, e.create_time FROM endpoint e
    WHERE (e.tenant_id, e.endpoint_id) > ($1, $2)
    ORDER BY e.tenant_id, e.endpoint_id LIMIT $5
) e
LEFT JOIN cursor c ON c.tenant_id = e.tenant_id AND c.endpoint_id = e.endpoint_id
LEFT JOIN LATERAL (
    SELECT o.seq FROM outbox o
    WHERE o.tenant_id = e.tenant_id AND o.endpoint_id = e.endpoint_id AND o.seq > coalesce(c.seq, 0)
      AND o.time >= $3 AND o.time < $4
    ORDER BY o.seq DESC LIMIT 1
) h ON true
ORDER BY e.tenant_id, e.endpoint_id"""


# The same in two steps, the second tenant by tenant.
PAGE_OF_ENDPOINTS = """
SELECT e.tenant_id, e.endpoint_id FROM endpoint e
WHERE (e.tenant_id, e.endpoint_id) > ($1, $2) ORDER BY e.tenant_id, e.endpoint_id LIMIT $3"""
UNSETTLED_OF_PAGE = by_tenant(
    """
SELECT e.tenant_id, e.endpoint_id, coalesce(c.seq, 0) AS seq, coalesce(c.time, e.create_time) AS time, h.seq AS highest
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[]) k(tenant_id, endpoint_id, day, day_end)
JOIN endpoint e ON e.tenant_id = k.tenant_id AND e.endpoint_id = k.endpoint_id
LEFT JOIN cursor c ON c.tenant_id = e.tenant_id AND c.endpoint_id = e.endpoint_id
LEFT JOIN LATERAL (
    SELECT o.seq FROM outbox o
    WHERE o.tenant_id = e.tenant_id AND o.endpoint_id = e.endpoint_id AND o.seq > coalesce(c.seq, 0)
      AND o.time >= k.day AND o.time < k.day_end
    ORDER BY o.seq DESC LIMIT 1
) h ON true
ORDER BY e.tenant_id, e.endpoint_id"""
)


async def _page_of_day(
    connection: Connection, after: EndpointKey, start: datetime, end: datetime
) -> Sequence[asyncpg.Record]:
    """The next endpoints in order, each with its position and its highest row of the day above that."""
    if not is_one_tenant(connection):
        return await connection.fetch(FIND_UNSETTLED, after.tenant_id, after.endpoint_id, start, end, ENDPOINT_BATCH)
    page = await connection.fetch(PAGE_OF_ENDPOINTS, after.tenant_id, after.endpoint_id, ENDPOINT_BATCH)
    wanted = [(row["tenant_id"], row["endpoint_id"], start, end) for row in page]
    return await forms.fetch(connection, UNSETTLED_OF_PAGE, wanted)


def expire_command(key: EndpointKey, before: datetime) -> Command:
    """Asks the endpoint's owner to dead-letter what is older: the same command however often it is asked.

    Its id names the hour as well, so that one that was done while a row came late is asked again.
    """
    hour = datetime.now(UTC).strftime("%Y%m%d%H")
    return Command(
        command_id=uuid5(key.endpoint_id, f"expire {before.isoformat()} {hour}"),
        key=key,
        kind=CommandKind.EXPIRE_BACKLOG,
        arguments={"before": before.isoformat()},
        actor="dispatcher",
    )


async def settle_day(db: Database, day: date) -> list[EndpointKey]:
    """Bring the cursors past that day's rows where all of them are settled; returns the endpoints where some are not,
    at most `ENDPOINT_BATCH` of them."""
    start, end = partitions.day_start(day), partitions.day_start(day + timedelta(days=1))
    after, unsettled = EndpointKey(UUID(int=0), UUID(int=0)), list[EndpointKey]()
    while True:
        async with probing(db) as connection:
            rows = await _page_of_day(connection, after, start, end)
        for row in rows:
            after = EndpointKey(row["tenant_id"], row["endpoint_id"])
            if row["highest"] is not None:
                reached = await _catch_up(db, Cursor(after, row["seq"], row["time"]), row["highest"])
                if reached < row["highest"]:
                    unsettled.append(after)
        if len(rows) < ENDPOINT_BATCH or len(unsettled) >= ENDPOINT_BATCH:
            return unsettled


async def _catch_up(db: Database, cursor: Cursor, target_seq: int) -> int:
    """Move a cursor over settled rows up to `target_seq`; returns where it stands.

    No fence: that a row is settled is a committed fact, whoever reads it, and a cursor never moves back.
    """
    while cursor.seq < target_seq:
        wanted = RowsWanted(cursor.key, cursor.seq, cursor.time, min(CATCH_UP_ROWS, target_seq - cursor.seq))
        async with probing(db) as connection:
            rows = await fetch_rows_on(connection, [wanted])
            reached = cursor
            for row in rows:
                if not (row.settled or row.parked) or row.seq != reached.seq + 1:
                    break
                reached = Cursor(cursor.key, row.seq, row.time)
            if reached is cursor:
                return cursor.seq
            await advance_on(connection, [reached])
        cursor = reached
    return cursor.seq
