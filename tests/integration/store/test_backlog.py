"""What delivery reads of the outbox."""

from __future__ import annotations

from datetime import timedelta

import asyncpg

from dispatcher.model import DecisionKind, EndpointKey, Outcome
from dispatcher.store import attempts, backlog, decisions, leases
from dispatcher.store.backlog import RowsWanted
from dispatcher.store.database import Database
from tests.support.backlog import add_endpoint, add_rows, add_tenant, attempt_at, decision_on

EARLIER = timedelta(hours=2)


def wanted(key: EndpointKey, rows: list, limit: int = 100, *, after_seq: int = 0, fresh: bool = False) -> RowsWanted:
    return RowsWanted(key, after_seq, rows[0].time, limit, fresh)


async def test_a_partition_tells_the_position_of_each_endpoint_once(
    db: Database, connection: asyncpg.Connection
) -> None:
    tenant_id = await add_tenant(connection)
    now = await connection.fetchval("SELECT now()")
    idle = await add_endpoint(connection, tenant_id, 7)
    busy = await add_endpoint(connection, tenant_id, 7, cursor_seq=2, cursor_time=now)
    await add_rows(connection, busy, 3, first_seq=3)
    gone = await add_endpoint(connection, tenant_id, 7, delete_time=now)
    leftover = await add_endpoint(connection, tenant_id, 7, delete_time=now)
    await add_rows(connection, leftover, 1)
    elsewhere = await add_endpoint(connection, tenant_id, 8)
    found = {p.key: (p.cursor_seq, p.highest_seq) for p in await backlog.load_partition(db, 7)}
    assert found == {idle: (0, 0), busy: (2, 5), leftover: (0, 1)}
    assert gone not in found
    positions = await backlog.load_positions(db, [gone, elsewhere, busy])
    assert {p.key: p.highest_seq for p in positions} == {gone: 0, elsewhere: 0, busy: 5}


async def test_rows_of_many_endpoints_come_in_the_order_asked_and_by_sequence(
    db: Database, connection: asyncpg.Connection
) -> None:
    tenant_id = await add_tenant(connection)
    now = await connection.fetchval("SELECT now()")
    first, second = [await add_endpoint(connection, tenant_id, 7) for _ in range(2)]
    # Over midnight, so that the sequence runs through two partitions.
    rows = await add_rows(connection, first, 6, time=now - timedelta(hours=20), step=timedelta(hours=4))
    await add_rows(connection, second, 4, time=rows[0].time)
    found = await backlog.fetch_rows(db, [wanted(second, rows, 3, after_seq=1), wanted(first, rows)])
    assert [(r.key, r.seq) for r in found] == [(second, s) for s in (2, 3, 4)] + [(first, s) for s in range(1, 7)]
    assert (found[3].event_id, found[3].data_bytes, found[3].settled, found[3].attempts) == (
        rows[0].event_id,
        2,
        False,
        0,
    )


async def test_rows_tell_what_is_on_record_about_them(db: Database, connection: asyncpg.Connection) -> None:
    key = await add_endpoint(connection, await add_tenant(connection), 7)
    now = await connection.fetchval("SELECT now()")
    rows = await add_rows(connection, key, 5, time=now - EARLIER)
    failed = {"outcome": Outcome.HTTP_ERROR, "status_code": 500}
    start = rows[1].time + timedelta(seconds=1)
    await attempts.append(
        db,
        [
            attempt_at(rows[0]),
            attempt_at(rows[1], **failed, start_time=start),
            attempt_at(rows[1], **failed, number=2, epoch=2, start_time=start + timedelta(seconds=9)),
            # A success for another event of that sequence: the one a failover has lost.
            attempt_at(rows[2], event_id="lost"),
            # Its sender's clock lags.
            attempt_at(rows[4], start_time=rows[4].time - timedelta(minutes=30)),
        ],
    )
    (lease,) = await leases.acquire(db, key.tenant_id, 1, 60.0, [7])
    await decisions.commit(db, {7: lease.epoch}, [decision_on(rows[3], DecisionKind.SKIP)], [])
    found = await backlog.fetch_rows(db, [wanted(key, rows)])
    assert [r.settled for r in found] == [True, False, False, True, True]
    assert [(r.attempts, r.first_attempt_time) for r in found[1:3]] == [(2, start), (0, None)]
    fresh = await backlog.fetch_rows(db, [wanted(key, rows, fresh=True)])
    assert not any(r.settled or r.attempts for r in fresh)


async def test_what_the_egress_proxy_failed_uses_up_no_attempt_and_no_age(
    db: Database, connection: asyncpg.Connection
) -> None:
    key = await add_endpoint(connection, await add_tenant(connection), 7)
    now = await connection.fetchval("SELECT now()")
    rows = await add_rows(connection, key, 2, time=now - EARLIER)
    at = [rows[0].time + timedelta(seconds=s) for s in range(4)]
    proxy, failed = {"outcome": Outcome.EGRESS_PROXY_FAILED, "status_code": None}, {"outcome": Outcome.TIMEOUT}
    await attempts.append(
        db,
        [
            attempt_at(rows[0], **proxy, number=0, start_time=at[0]),
            attempt_at(rows[0], **failed, number=1, start_time=at[1]),
            attempt_at(rows[0], **proxy, number=1, start_time=at[2]),
            attempt_at(rows[1], **proxy, number=0, start_time=at[3]),
        ],
    )
    found = await backlog.fetch_rows(db, [wanted(key, rows)])
    assert [(r.attempts, r.first_attempt_time, r.settled) for r in found] == [(1, at[1], False), (0, None, False)]
    ended = timedelta(seconds=0.01)
    assert [r.last_attempt_time for r in found] == [at[1] + ended, None]


async def test_a_payload_is_read_once_however_many_want_it(db: Database, connection: asyncpg.Connection) -> None:
    key = await add_endpoint(connection, await add_tenant(connection), 7)
    (row,) = await add_rows(connection, key, 1, data=b"\x00\xff")
    where = (key.tenant_id, row.event_id, row.event_time)
    found = await backlog.fetch_payloads(db, [where, where, (key.tenant_id, "missing", row.event_time)])
    assert found.keys() == {where}
    assert (found[where].data, found[where].content_type, found[where].traceparent) == (
        b"\x00\xff",
        "application/json",
        None,
    )


async def test_a_sweep_names_endpoints_of_its_partitions_with_rows_since_then(
    db: Database, connection: asyncpg.Connection
) -> None:
    tenant_id = await add_tenant(connection)
    now = await connection.fetchval("SELECT now()")
    old, new, elsewhere = [await add_endpoint(connection, tenant_id, p) for p in (7, 8, 9)]
    await add_rows(connection, old, 2, time=now - EARLIER)
    await add_rows(connection, new, 2, time=now - EARLIER)
    await add_rows(connection, new, 3, first_seq=3)
    await add_rows(connection, elsewhere, 1)
    start, found = await backlog.sweep(db, now - timedelta(seconds=5), [7, 8])
    assert found == [(new, 5)]
    assert now < start <= await connection.fetchval("SELECT clock_timestamp()")


async def test_a_backlog_is_counted_by_subtraction(db: Database, connection: asyncpg.Connection) -> None:
    tenant_id = await add_tenant(connection)
    now = await connection.fetchval("SELECT now()")
    key = await add_endpoint(connection, tenant_id, 7, cursor_seq=1, cursor_time=now - EARLIER)
    rows = await add_rows(connection, key, 4, time=now - EARLIER, step=timedelta(minutes=1))
    idle = await add_endpoint(connection, tenant_id, 7)
    counts = {c.key: c for c in await backlog.backlog_counts(db, [key, idle])}
    assert (counts[key].count, counts[key].highest_seq, counts[key].oldest_time) == (3, 4, rows[1].time)
    assert (counts[idle].count, counts[idle].oldest_time) == (0, None)
