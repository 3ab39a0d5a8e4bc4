"""publish(): what one batch promises, on a real database."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from dispatcher.model import EndpointKey
from dispatcher.store.database import Database, StoreConnection, prepare_connection
from dispatcher.store.partitions import Partition
from dispatcher.store.publish import PublishRequest, PublishResult, Verdict, committed_rows, publish, read_back
from tests.support.postgres import TestDatabase
from tests.support.publishing import make_endpoint, make_tenant, new_event, request_of
from tests.support.waiting import until_blocked


@pytest.fixture(params=["publish", "publish_one"])
async def connection(request: pytest.FixtureRequest, database: TestDatabase) -> AsyncIterator[asyncpg.Connection]:
    """One on which batches go to the function of that name: both promise the same, save that one is for one tenant."""
    made = await asyncpg.connect(database.dsn, connection_class=StoreConnection)
    await prepare_connection(made)
    made.one_tenant = request.param == "publish_one"
    yield made
    await made.close()


async def put(connection: asyncpg.Connection, *requests: PublishRequest) -> PublishResult:
    return await publish(connection, requests, lock_timeout_s=2.0, timeout_s=10.0)


async def rows_of(connection: asyncpg.Connection, key: EndpointKey) -> list[tuple[int, str]]:
    rows = await connection.fetch(
        "SELECT seq, event_id FROM outbox WHERE endpoint_id = $1 ORDER BY seq", key.endpoint_id
    )
    return [(row["seq"], row["event_id"]) for row in rows]


async def stored_nothing(connection: asyncpg.Connection) -> bool:
    counts = await connection.fetchrow(
        "SELECT (SELECT count(*) FROM event) e, (SELECT count(*) FROM outbox) o, (SELECT count(*) FROM dedup) d"
    )
    return tuple(counts) == (0, 0, 0)


async def test_sequences_are_gapless_from_one_in_the_order_given(db: Database, connection: asyncpg.Connection) -> None:
    await make_tenant(db)
    a, b = (await make_endpoint(db, "a")).key, (await make_endpoint(db, "b")).key
    first = [new_event() for _ in range(3)]
    second = [new_event() for _ in range(2)]
    await put(connection, await request_of(db, first, [b, a]), await request_of(db, second, [a]))
    third = [new_event()]
    await put(connection, await request_of(db, third, [a, b]))

    ids = [event.event_id for event in (*first, *second, *third)]
    assert await rows_of(connection, a) == list(enumerate(ids, 1))
    assert await rows_of(connection, b) == list(enumerate([ids[0], ids[1], ids[2], ids[5]], 1))


async def test_concurrent_publishers_never_repeat_or_skip_a_sequence(
    db: Database, connection: asyncpg.Connection, database: TestDatabase
) -> None:
    await make_tenant(db)
    keys = [(await make_endpoint(db, f"e{i}")).key for i in range(5)]
    request = await request_of(db, [new_event()], keys)

    async def publisher(shift: int) -> None:
        own = await database.connect()
        try:
            for _ in range(40):
                events = tuple(new_event() for _ in range(2))
                order = tuple(keys[shift:] + keys[:shift])
                await put(own, dataclasses.replace(request, events=events, fan_out=(order, order[:2])))
        finally:
            await own.close()

    await asyncio.gather(*(publisher(i) for i in range(5)))
    for key in keys:
        sequences = [seq for seq, _ in await rows_of(connection, key)]
        assert sequences == list(range(1, len(sequences) + 1))
        assert len(sequences) >= 200


async def test_repeatable_read_is_refused_because_sequences_would_repeat(
    db: Database, connection: asyncpg.Connection, key: EndpointKey
) -> None:
    request = await request_of(db, [new_event()], [key])
    await connection.execute("SET default_transaction_isolation = 'repeatable read'")
    with pytest.raises(asyncpg.InvalidTransactionStateError, match="READ COMMITTED"):
        await put(connection, request)
    assert await stored_nothing(connection)


async def test_a_commit_is_durable_whatever_the_session_says(db: Database, connection: asyncpg.Connection) -> None:
    await make_tenant(db)
    request = await request_of(db, [new_event()], [(await make_endpoint(db, "a")).key])
    await connection.execute("SET synchronous_commit = off")
    async with connection.transaction():
        await put(connection, request)
        assert await connection.fetchval("SELECT current_setting('synchronous_commit')") == "on"
    assert await connection.fetchval("SELECT current_setting('synchronous_commit')") == "off"


@pytest.mark.parametrize("connection", ["publish"], indirect=True)
async def test_a_stale_routing_version_leaves_that_tenant_out_and_no_other(
    db: Database, connection: asyncpg.Connection
) -> None:
    await make_tenant(db)
    await make_tenant(db, "globex")
    a = (await make_endpoint(db, "a")).key
    g = (await make_endpoint(db, "g", tenant="globex")).key
    stale = await request_of(db, [new_event("id-1")], [a])
    await make_endpoint(db, "late")
    good = await request_of(db, [new_event("id-1")], [g], tenant="globex")

    result = await put(connection, stale, good)

    assert [r.verdict for r in result.requests] == [Verdict.STALE, Verdict.ACCEPTED]
    assert await rows_of(connection, a) == []
    assert len(await rows_of(connection, g)) == 1
    assert await connection.fetchval("SELECT count(*) FROM dedup WHERE tenant_id = $1", a.tenant_id) == 0


async def test_a_missing_tenant_is_stale(db: Database, connection: asyncpg.Connection) -> None:
    ghost = PublishRequest(uuid.uuid4(), "ghost", uuid.uuid4(), (new_event(),), ((),))
    result = await put(connection, ghost)
    assert result.requests[0].verdict is Verdict.STALE
    assert await stored_nothing(connection)


async def test_an_endpoint_deleted_after_the_version_check_makes_the_request_stale(
    db: Database, connection: asyncpg.Connection, database: TestDatabase, key: EndpointKey
) -> None:
    """The deletion holds the endpoint's lock when publish() has already read the version: fewer rows are locked."""
    request = await request_of(db, [new_event("id-1")], [key])
    sql = "UPDATE endpoint SET delete_time = now() WHERE endpoint_id = $1"
    result = await put_behind(connection, request, database, lambda deleter: deleter.execute(sql, key.endpoint_id))
    assert result.requests[0].verdict is Verdict.STALE
    assert await stored_nothing(connection)


async def put_behind(
    connection: asyncpg.Connection,
    request: PublishRequest,
    database: TestDatabase,
    change: Callable[[asyncpg.Connection], Awaitable[object]],
) -> PublishResult:
    """Publish while another session makes `change`, which it commits once that waits for its locks."""
    holder = await database.connect()
    watcher = await database.connect()
    try:
        async with holder.transaction():
            await change(holder)
            publishing = asyncio.create_task(put(connection, request))
            await until_blocked(watcher)
    finally:
        await watcher.close()
        await holder.close()
    return await publishing


async def test_the_sequence_is_read_after_the_wait_for_the_lock(
    db: Database, connection: asyncpg.Connection, database: TestDatabase, key: EndpointKey
) -> None:
    """One statement for lock and sequence would have a snapshot older than the wait, and repeat the sequence."""
    first, second = [await request_of(db, [new_event()], [key]) for _ in range(2)]
    await put_behind(connection, second, database, lambda other: put(other, first))
    assert [seq for seq, _ in await rows_of(connection, key)] == [1, 2]


async def test_the_revision_is_that_of_the_locked_endpoint(
    db: Database, connection: asyncpg.Connection, database: TestDatabase, key: EndpointKey
) -> None:
    """Rows' revisions never go back: a publisher that waited for an update writes the updated revision."""
    request = await request_of(db, [new_event()], [key])
    sql = "UPDATE endpoint SET revision = 7 WHERE endpoint_id = $1"
    await put_behind(connection, request, database, lambda changer: changer.execute(sql, key.endpoint_id))
    assert await connection.fetchval("SELECT revision FROM outbox WHERE endpoint_id = $1", key.endpoint_id) == 7


async def test_a_duplicate_id_is_answered_with_the_first_result(db: Database, connection: asyncpg.Connection) -> None:
    await make_tenant(db)
    a, b = (await make_endpoint(db, "a")).key, (await make_endpoint(db, "b")).key
    await put(connection, await request_of(db, [new_event("id-1", b"x")], [a, b]))
    again = await put(connection, await request_of(db, [new_event("id-1", b"x"), new_event("id-2", b"y")], [a]))

    (result,) = again.requests
    assert [(e.event_id, e.duplicate, e.endpoint_count) for e in result.events] == [
        ("id-1", True, 2),
        ("id-2", False, 1),
    ]
    assert [event_id for _, event_id in await rows_of(connection, a)] == ["id-1", "id-2"]


async def test_an_id_reused_with_other_content_refuses_its_whole_request_and_no_neighbour(
    db: Database, connection: asyncpg.Connection, key: EndpointKey
) -> None:
    await put(connection, await request_of(db, [new_event("id-1", b"x")], [key]))
    bad = await request_of(db, [new_event("id-2", b"y"), new_event("id-1", b"other")], [key])
    good = await request_of(db, [new_event("id-3", b"z")], [key])

    result = await put(connection, bad, good)

    assert [r.verdict for r in result.requests] == [Verdict.ID_REUSED, Verdict.ACCEPTED]
    assert [event_id for _, event_id in await rows_of(connection, key)] == ["id-1", "id-3"]
    # id-2 was not stored, so it is free for another content.
    retried = await put(connection, await request_of(db, [new_event("id-2", b"new")], [key]))
    assert retried.requests[0].events[0].duplicate is False


@pytest.mark.parametrize("generations_later", [0, 1])
async def test_no_duplicate_slips_through_a_rotation_of_dedup(
    db: Database, connection: asyncpg.Connection, generations_later: int, key: EndpointKey
) -> None:
    """A claim stands in two generations: the one after a rotation still finds it."""
    # The first claim is made as if the rotation came right after it.
    await put(connection, await request_of(db, [new_event("id-1", b"x")], [key]))
    await connection.execute("UPDATE dedup SET generation = generation - $1", generations_later)
    again = await put(connection, await request_of(db, [new_event("id-1", b"x")], [key]))
    assert again.requests[0].events[0].duplicate is True
    reused = await put(connection, await request_of(db, [new_event("id-1", b"other")], [key]))
    assert reused.requests[0].verdict is Verdict.ID_REUSED
    assert len(await rows_of(connection, key)) == 1


async def test_a_writer_whose_clock_is_a_generation_ahead_still_meets_the_claim(
    db: Database, connection: asyncpg.Connection, key: EndpointKey
) -> None:
    await put(connection, await request_of(db, [new_event("id-1", b"x")], [key]))
    await connection.execute(
        "UPDATE dedup SET generation = generation + 2 WHERE generation = (SELECT min(generation) FROM dedup)"
    )
    reused = await put(connection, await request_of(db, [new_event("id-1", b"other")], [key]))
    assert reused.requests[0].verdict is Verdict.ID_REUSED


async def test_concurrent_duplicates_in_two_connections_store_one(
    db: Database, connection: asyncpg.Connection, database: TestDatabase, key: EndpointKey
) -> None:
    requests = [await request_of(db, [new_event(f"id-{i}", b"x") for i in order], [key]) for order in ((1, 2), (2, 1))]
    connections = [await database.connect() for _ in requests]
    results = await asyncio.gather(*(put(c, r) for c, r in zip(connections, requests, strict=True)))
    for one in connections:
        await one.close()
    assert sorted(e.duplicate for r in results for e in r.requests[0].events) == [False, False, True, True]
    assert len(await rows_of(connection, key)) == 2


async def test_a_refused_request_breaks_its_chain_and_no_other(
    db: Database, connection: asyncpg.Connection, key: EndpointKey
) -> None:
    await put(connection, await request_of(db, [new_event("id-1", b"x")], [key]))
    chained = [
        await request_of(db, [new_event("s-1", b"1")], [key], chain=9),
        await request_of(db, [new_event("id-1", b"other")], [key], chain=9),
        await request_of(db, [new_event("s-3", b"3")], [key], chain=9),
        await request_of(db, [new_event("t-1", b"1")], [key], chain=8),
        await request_of(db, [new_event("u-1", b"1")], [key]),
    ]
    result = await put(connection, *chained)
    assert [r.verdict for r in result.requests] == [
        Verdict.ACCEPTED,
        Verdict.ID_REUSED,
        Verdict.CHAIN_BROKEN,
        Verdict.ACCEPTED,
        Verdict.ACCEPTED,
    ]
    assert [event_id for _, event_id in await rows_of(connection, key)] == ["id-1", "s-1", "t-1", "u-1"]
    assert await connection.fetchval("SELECT count(*) FROM dedup WHERE event_id = 's-3'") == 0


async def test_a_sequence_goes_on_from_an_older_day_and_at_last_from_the_cursor(
    db: Database, connection: asyncpg.Connection
) -> None:
    await make_tenant(db)
    older, gone = (await make_endpoint(db, "older")).key, (await make_endpoint(db, "gone")).key
    await put(connection, await request_of(db, [new_event(), new_event()], [older]))
    # The endpoint has been quiet since yesterday, and its cursor is from then.
    await connection.execute(
        "UPDATE outbox SET time = time - interval '1 day', event_time = event_time - interval '1 day'"
    )
    await connection.execute(
        "UPDATE cursor SET time = time - interval '1 day' WHERE endpoint_id = $1", older.endpoint_id
    )
    # The other one's rows are dropped with their partitions: only the cursor knows.
    await connection.execute(
        "UPDATE cursor SET seq = 41, time = time - interval '40 days' WHERE endpoint_id = $1", gone.endpoint_id
    )
    result = await put(connection, await request_of(db, [new_event()], [older, gone]))
    assert [seq for seq, _ in await rows_of(connection, older)] == [1, 2, 3]
    assert [seq for seq, _ in await rows_of(connection, gone)] == [42]
    rows, _ = committed_rows([await request_of(db, [new_event()], [older, gone])], result, lambda _key: True)
    assert sorted(row.seq for row in rows) == [3, 42]


async def scans_of(connection: asyncpg.Connection, table: str) -> int:
    """How often any statement of any session has looked into a table or its index."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    return await connection.fetchval(
        "SELECT coalesce(seq_scan, 0) + coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = $1", table
    )


async def test_the_newest_day_answers_and_no_older_one_is_read(
    db: Database, connection: asyncpg.Connection, key: EndpointKey
) -> None:
    await put(connection, await request_of(db, [new_event()], [key]))
    older = await connection.fetchval(
        "SELECT min(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'outbox'::regclass"
    )
    day = datetime.strptime(older, "outbox_p%Y%m%d").replace(tzinfo=UTC) - timedelta(days=1)
    partition = Partition("outbox", day.date())
    await connection.execute(f"CREATE TABLE {partition.name} PARTITION OF outbox FOR VALUES {partition.values_sql}")
    await connection.execute(
        "INSERT INTO outbox SELECT tenant_id, endpoint_id, seq, $1, event_id, event_time, type, ordering_key, revision,"
        " data_bytes, replay_of FROM outbox",
        day,
    )
    before = await scans_of(connection, partition.name)
    assert (await put(connection, await request_of(db, [new_event()], [key]))).bases == [1]
    assert await scans_of(connection, partition.name) == before
    assert [seq for seq, _ in await rows_of(connection, key)] == [1, 1, 2]
    await connection.execute("UPDATE cursor SET time = $1", day)
    before = await scans_of(connection, partition.name)
    await connection.execute("DELETE FROM outbox WHERE time >= $1", day + timedelta(days=1))
    await put(connection, await request_of(db, [new_event()], [key]))
    assert await scans_of(connection, partition.name) > before, "where the newest has none, older ones are asked"


async def test_the_partition_time_never_falls_below_the_previous_row(
    db: Database, connection: asyncpg.Connection, key: EndpointKey
) -> None:
    """`now()` across midnight, or a clock set back, would put a later row into an earlier partition."""
    await put(connection, await request_of(db, [new_event()], [key]))
    await connection.execute("UPDATE outbox SET time = time + interval '2 days'")
    ahead = await connection.fetchval("SELECT max(time) FROM outbox")
    result = await put(connection, await request_of(db, [new_event()], [key]))
    assert result.published_at == ahead
    assert [seq for seq, _ in await rows_of(connection, key)] == [1, 2]


async def test_a_day_without_a_partition_is_an_error_and_stores_nothing(
    db: Database, connection: asyncpg.Connection
) -> None:
    await make_tenant(db)
    request = await request_of(db, [new_event()], [(await make_endpoint(db, "a")).key])
    today = (await connection.fetchval("SELECT clock_timestamp()")).date()
    await connection.execute(f"DROP TABLE outbox_p{today:%Y%m%d}")
    with pytest.raises(asyncpg.CheckViolationError, match="no partition"):
        await put(connection, request)
    assert await stored_nothing(connection)


async def test_a_frozen_publisher_holds_no_locks(
    db: Database, connection: asyncpg.Connection, database: TestDatabase, key: EndpointKey
) -> None:
    """One autocommitted round trip: what a client has sent is committed, and its locks are gone, though it never reads
    the reply and never sends another byte."""
    requests = [await request_of(db, [new_event()], [key]) for _ in range(2)]
    frozen, holder = await database.connect(), await database.connect()
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("SELECT FROM endpoint FOR UPDATE")
    call = asyncio.create_task(put(frozen, requests[0]))
    await until_blocked(db)
    frozen._transport.pause_reading()
    await transaction.commit()
    await holder.close()

    result = await put(connection, requests[1])

    assert result.requests[0].verdict is Verdict.ACCEPTED
    assert [seq for seq, _ in await rows_of(connection, key)] == [1, 2]
    assert not call.done()
    frozen._transport.resume_reading()
    await call
    await frozen.close()


async def test_read_back_tells_what_a_lost_reply_had_committed(
    db: Database, connection: asyncpg.Connection, key: EndpointKey
) -> None:
    await put(connection, await request_of(db, [new_event("id-1", b"x")], [key]))
    lost = [
        await request_of(db, [new_event("id-1", b"x"), new_event("id-2", b"y")], [key]),
        await request_of(db, [new_event("id-1", b"other")], [key]),
    ]
    async with connection.transaction():
        xid = await connection.fetchval("SELECT pg_current_xact_id()::text::bigint")
        await put(connection, *lost)

    accepted, refused = await read_back(connection, lost, xid)

    assert accepted is not None
    assert [(e.event_id, e.duplicate) for e in accepted.events] == [("id-1", True), ("id-2", False)]
    assert refused is None


async def test_read_back_knows_a_request_of_duplicates_alone(
    db: Database, connection: asyncpg.Connection, key: EndpointKey
) -> None:
    """To call it unwritten would send what follows it on its stream a second time."""
    known = await request_of(db, [new_event("id-1", b"x"), new_event("id-2", b"y")], [key])
    await put(connection, known)
    anonymous = await request_of(db, [new_event()], [key])
    async with connection.transaction():
        xid = await connection.fetchval("SELECT pg_current_xact_id()::text::bigint")
        await put(connection, known)

    found, unwritten = await read_back(connection, [known, anonymous], xid)

    assert found is not None
    assert [(e.event_id, e.duplicate, e.endpoint_count) for e in found.events] == [("id-1", True, 1), ("id-2", True, 1)]
    assert unwritten is None
