"""Group commit: neighbours, bounds, order, and replies that are lost."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import asyncpg
import pytest

from dispatcher.embedded.postgres import EmbeddedPostgres
from dispatcher.errors import (
    CommitUnknownError,
    DeadlineTooShortError,
    DispatcherError,
    OverloadedError,
    UnavailableError,
)
from dispatcher.model import EndpointKey, OutboxRow
from dispatcher.store import leases
from dispatcher.store.database import Database, DatabaseOptions
from dispatcher.store.group_commit import Chain, GroupCommit, GroupCommitLimits
from dispatcher.store.migrate import migrate
from dispatcher.store.publish import PublishRequest, RequestResult, Verdict
from tests.support.postgres import TestDatabase
from tests.support.proxy import proxied
from tests.support.publishing import make_endpoint, make_tenant, new_event, request_of
from tests.support.tasks import running
from tests.support.waiting import until_blocked


class HandOffLog:
    """Owns the endpoints it is told to, and keeps what it is offered."""

    def __init__(self) -> None:
        self.owned: set[EndpointKey] = set()
        self.rows: list[OutboxRow] = []
        self.hints: dict[EndpointKey, int] = {}

    def owns(self, key: EndpointKey) -> bool:
        return key in self.owned

    def offer(self, rows: Sequence[OutboxRow]) -> None:
        self.rows.extend(rows)

    def hint(self, highest: Mapping[EndpointKey, int]) -> None:
        self.hints.update(highest)


@pytest.fixture
def handoff() -> HandOffLog:
    return HandOffLog()


@contextlib.asynccontextmanager
async def committing(
    db: Database, handoff: HandOffLog, limits: GroupCommitLimits | None = None
) -> AsyncIterator[GroupCommit]:
    commits = GroupCommit(db, limits or GroupCommitLimits(), handoff)
    async with running(commits.run()):
        yield commits


def locked(database: TestDatabase, key: EndpointKey) -> AbstractAsyncContextManager[None]:
    """Hold an endpoint's row, so that a batch that wants it stays in flight."""
    return database.holding("SELECT FROM endpoint WHERE endpoint_id = $1 FOR UPDATE", key.endpoint_id)


async def behind_a_commit(
    commits: GroupCommit, requests: Sequence[PublishRequest], db: Database, hold: AbstractAsyncContextManager[None]
) -> list[asyncio.Future[RequestResult]]:
    """Enqueue the first, and all the others while its commit is held up."""
    async with hold:
        first = commits.enqueue(requests[0])
        await until_blocked(db)
        return [first, *(commits.enqueue(request) for request in requests[1:])]


async def stored_ids(db: Database) -> list[str]:
    return [row["event_id"] for row in await db.fetch("SELECT event_id FROM outbox ORDER BY endpoint_id, seq")]


async def test_a_bad_request_never_fails_its_neighbours(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    good = [await request_of(db, [new_event(f"good-{i}")], [key]) for i in range(5)]
    # PostgreSQL has no NUL in text; validation keeps it out, here it stands for any row that the server refuses.
    bad = await request_of(db, [new_event("bad", type="order\0created")], [key])
    async with committing(db, handoff) as commits:
        async with locked(database, key):
            first = commits.enqueue(await request_of(db, [new_event("first")], [key]))
            await until_blocked(db)
            batch = [commits.enqueue(r) for r in (*good[:2], bad, *good[2:])]
        await first
        outcomes = await asyncio.gather(*batch, return_exceptions=True)
    assert [isinstance(o, DispatcherError) for o in outcomes] == [False, False, True, False, False, False]
    assert await stored_ids(db) == ["first", *(f"good-{i}" for i in range(5))]


async def test_what_arrives_during_a_call_is_committed_together(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    requests = [await request_of(db, [new_event()], [key]) for _ in range(50)]
    async with committing(db, handoff) as commits:
        first, *rest = await behind_a_commit(commits, requests, db, locked(database, key))
        await asyncio.gather(first, *rest)
    transactions = await db.fetchval("SELECT count(DISTINCT xmin::text) FROM event")
    assert transactions == 2


GATHERING = GroupCommitLimits(gather_s=60.0, gather_requests_min=3, gather_requests_max=5)


async def test_where_some_wait_as_a_commit_ends_the_next_one_waits_for_more(
    db: Database, database: TestDatabase, handoff: HandOffLog
) -> None:
    await make_tenant(db)
    key = (await make_endpoint(db, "a")).key
    requests = [await request_of(db, [new_event()], [key]) for _ in range(6)]
    async with committing(db, handoff, GATHERING) as commits:
        first, *some = await behind_a_commit(commits, requests[:4], db, locked(database, key))
        await first
        others = [commits.enqueue(request) for request in requests[4:]]
        async with asyncio.timeout(10):  # less than it may gather: the fifth is enough
            await asyncio.gather(*some, *others)
    assert await db.fetchval("SELECT count(DISTINCT xmin::text) FROM event") == 2


async def test_gathering_ends_once_all_who_were_answered_are_back(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    requests = [await request_of(db, [new_event()], [key]) for _ in range(5)]
    async with committing(db, handoff, GATHERING) as commits:
        first, *some = await behind_a_commit(commits, requests[:4], db, locked(database, key))
        await first
        async with asyncio.timeout(10):
            await asyncio.gather(commits.enqueue(requests[4]), *some)
    assert await db.fetchval("SELECT count(DISTINCT xmin::text) FROM event") == 2


async def test_what_fills_half_a_batch_waits_for_nobody(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    requests = [await request_of(db, [new_event(), new_event()], [key]) for _ in range(4)]
    async with committing(db, handoff, dataclasses.replace(GATHERING, batch_events_max=12)) as commits:
        first, *rest = await behind_a_commit(commits, requests, db, locked(database, key))
        async with asyncio.timeout(10):
            await asyncio.gather(first, *rest)


async def test_a_caller_does_not_wait_for_those_of_the_other_writer(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    other = (await make_endpoint(db, "other")).key
    large = [await request_of(db, [new_event() for _ in range(5)], [other]) for _ in range(4)]
    limits = dataclasses.replace(GATHERING, large_rows_min=5)
    async with committing(db, handoff, limits) as commits, locked(database, other):
        waiting = [commits.enqueue(request) for request in large]
        async with asyncio.timeout(10):
            for _ in range(3):
                await commits.submit(await request_of(db, [new_event()], [key]))
        assert not any(future.done() for future in waiting)


async def test_where_few_wait_as_a_commit_ends_they_wait_for_nobody(
    db: Database, database: TestDatabase, handoff: HandOffLog
) -> None:
    await make_tenant(db)
    key = (await make_endpoint(db, "a")).key
    requests = [await request_of(db, [new_event()], [key]) for _ in range(3)]
    async with committing(db, handoff, GATHERING) as commits:
        first, *few = await behind_a_commit(commits, requests, db, locked(database, key))
        async with asyncio.timeout(10):
            await asyncio.gather(first, *few)


async def test_gathering_ends_in_time_though_no_more_come(
    db: Database, database: TestDatabase, handoff: HandOffLog
) -> None:
    await make_tenant(db)
    key = (await make_endpoint(db, "a")).key
    requests = [await request_of(db, [new_event()], [key]) for _ in range(4)]
    async with committing(db, handoff, dataclasses.replace(GATHERING, gather_s=0.05)) as commits:
        first, *rest = await behind_a_commit(commits, requests, db, locked(database, key))
        async with asyncio.timeout(10):
            await asyncio.gather(first, *rest)


async def test_a_full_queue_refuses_at_once_and_writes_nothing(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    requests = [await request_of(db, [new_event(f"id-{i}")], [key]) for i in range(3)]
    async with committing(db, handoff, GroupCommitLimits(queue_events_max=2)) as commits:
        async with locked(database, key):
            accepted = [commits.enqueue(r) for r in requests[:2]]
            with pytest.raises(OverloadedError) as refused:
                await commits.submit(requests[2])
            assert refused.value.retry_after_s > 0
        await asyncio.gather(*accepted)
        await commits.drained()
    assert await stored_ids(db) == ["id-0", "id-1"]


async def test_a_deadline_too_near_is_refused_before_writing(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    async with committing(db, handoff) as commits:
        with pytest.raises(DeadlineTooShortError):
            await commits.submit(await request_of(db, [new_event()], [key]), deadline=time.monotonic() + 0.001)
        assert await stored_ids(db) == []


async def test_a_caller_that_went_away_while_queued_writes_nothing(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    requests = [await request_of(db, [new_event(f"id-{i}")], [key]) for i in range(3)]
    async with committing(db, handoff) as commits:
        async with locked(database, key):
            first = commits.enqueue(requests[0])
            await until_blocked(db)
            gone, kept = commits.enqueue(requests[1]), commits.enqueue(requests[2])
            gone.cancel()
        await asyncio.gather(first, kept)
    assert await stored_ids(db) == ["id-0", "id-2"]


async def test_two_requests_with_one_id_in_one_group_are_both_answered(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    request = await request_of(db, [new_event("id-1", b"x")], [key])
    async with committing(db, handoff) as commits:
        results = await asyncio.gather(*(commits.submit(request) for _ in range(4)))
    assert [r.events[0].duplicate for r in results] == [False, True, True, True]
    assert await stored_ids(db) == ["id-1"]


async def test_a_stream_keeps_its_order_although_one_request_is_large(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    """A large request goes to the second writer: what follows it on the same stream must not overtake it."""
    large = await request_of(db, [new_event(f"large-{i}") for i in range(20)], [key])
    small = await request_of(db, [new_event("small")], [key])
    chain = Chain()
    limits = GroupCommitLimits(large_rows_min=10)
    async with committing(db, handoff, limits) as commits:
        first = commits.enqueue(dataclasses.replace(large, chain=chain.number), chain=chain)
        second = commits.enqueue(dataclasses.replace(small, chain=chain.number), chain=chain)
        await asyncio.gather(first, second)
    assert (await stored_ids(db))[-1] == "small"


async def test_after_a_refusal_nothing_of_the_stream_is_written_even_when_the_batch_is_bisected(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    chain = Chain()
    events = [new_event("s-0"), new_event("s-1", type="bad\0type"), new_event("s-2"), new_event("s-3")]
    requests = [await request_of(db, [event], [key], chain=chain.number) for event in events]
    async with committing(db, handoff) as commits:
        futures = [commits.enqueue(request, chain=chain) for request in requests]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert outcomes[0].verdict is Verdict.ACCEPTED  # type: ignore[union-attr]
    assert isinstance(outcomes[1], DispatcherError)
    assert [outcome.verdict for outcome in outcomes[2:]] == [Verdict.CHAIN_BROKEN] * 2  # type: ignore[union-attr]
    assert await stored_ids(db) == ["s-0"]


async def test_committed_rows_are_handed_off_as_the_database_has_them(db: Database, handoff: HandOffLog) -> None:
    await make_tenant(db)
    own, other = (await make_endpoint(db, "own")).key, (await make_endpoint(db, "other")).key
    handoff.owned = {own}
    async with committing(db, handoff) as commits:
        await commits.submit(await request_of(db, [new_event("id-1", b"x"), new_event("id-2", b"y")], [own, other]))
        await commits.submit(await request_of(db, [new_event("id-1", b"x"), new_event("id-3", b"z")], [own]))
    stored = await db.fetch("SELECT * FROM outbox WHERE endpoint_id = $1 ORDER BY seq", own.endpoint_id)
    offered = [(r.seq, r.time, r.event_id, r.event_time, r.type, r.revision, r.data_bytes) for r in handoff.rows]
    assert offered == [
        (r["seq"], r["time"], r["event_id"], r["event_time"], r["type"], r["revision"], r["data_bytes"]) for r in stored
    ]
    assert [r.payload.data for r in handoff.rows if r.payload] == [b"x", b"y", b"z"]
    assert handoff.hints == {other: 2}


async def test_what_another_timeline_committed_is_acknowledged_and_not_handed_off(
    db: Database, handoff: HandOffLog
) -> None:
    """Number 3 of a promoted standby does not follow the number 2 that a lane has of the former primary."""
    await make_tenant(db)
    own = (await make_endpoint(db, "own")).key
    handoff.owned = {own}
    db.begin_on(await leases.timeline(db))
    async with committing(db, handoff) as commits:
        await commits.submit(await request_of(db, [new_event("id-1")], [own]))
        assert [row.event_id for row in handoff.rows] == ["id-1"]
        db.begin_on(db.timeline + 1)
        result = await commits.submit(await request_of(db, [new_event("id-2")], [own]))
    assert result.verdict is Verdict.ACCEPTED
    assert [row.event_id for row in handoff.rows] == ["id-1"]
    assert handoff.hints == {}
    assert db.is_replaced


async def test_a_batch_of_several_tenants_is_committed_tenant_by_tenant_where_it_must_be(
    database: TestDatabase, handoff: HandOffLog
) -> None:
    async with Database.open(dataclasses.replace(database.options, one_tenant=True)) as db:
        for tenant in ("acme", "globex"):
            await make_tenant(db, tenant)
        keys = {tenant: (await make_endpoint(db, "a", tenant=tenant)).key for tenant in ("acme", "globex")}
        handoff.owned = set(keys.values())
        async with committing(db, handoff) as commits:
            requests = [
                await request_of(db, [new_event(f"{tenant}-{n}")], [key], tenant=tenant)
                for n in range(4)
                for tenant, key in keys.items()
            ]
            results = await asyncio.gather(*(commits.submit(request) for request in requests))
    assert [result.verdict for result in results] == [Verdict.ACCEPTED] * 8
    assert sorted(row.event_id for row in handoff.rows) == sorted(f"{t}-{n}" for t in keys for n in range(4))
    assert {row.key: row.seq for row in handoff.rows} == dict.fromkeys(keys.values(), 4)


async def test_endpoints_locked_by_another_session_are_no_outage(
    db: Database, database: TestDatabase, handoff: HandOffLog
) -> None:
    await make_tenant(db)
    stuck, free = (await make_endpoint(db, "stuck")).key, (await make_endpoint(db, "free")).key
    limits = GroupCommitLimits(lock_timeout_s=0.2)
    async with committing(db, handoff, limits) as commits, locked(database, stuck):
        free_one, stuck_one = await asyncio.gather(
            commits.submit(await request_of(db, [new_event("b")], [free])),
            commits.submit(await request_of(db, [new_event("a")], [stuck])),
            return_exceptions=True,
        )
        assert db.availability.away_since is None, "and no later success has cleared it"
    assert isinstance(stuck_one, OverloadedError)
    assert stuck_one.reason == "ENDPOINTS_LOCKED"
    assert free_one.verdict is Verdict.ACCEPTED  # type: ignore[union-attr]
    assert await stored_ids(db) == ["b"]


async def test_a_backend_that_dies_before_its_commit_has_written_nothing(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    async with committing(db, handoff) as commits:
        async with locked(database, key):
            lost = commits.enqueue(await request_of(db, [new_event("lost")], [key]))
            await db.fetchval("SELECT pg_terminate_backend($1)", await until_blocked(db))
            with pytest.raises(UnavailableError) as error:
                await lost
            assert not isinstance(error.value, CommitUnknownError)
        await commits.submit(await request_of(db, [new_event("next")], [key]))
    assert await stored_ids(db) == ["next"]


async def test_a_reply_lost_after_the_commit_is_found_out_and_answered(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    async with (
        proxied(database.dsn) as (proxy, dsn),
        Database.open(DatabaseOptions(dsn)) as through,
        committing(through, handoff) as commits,
    ):
        async with locked(database, key):
            reply = commits.enqueue(await request_of(db, [new_event("id-1", b"x")], [key]))
            await until_blocked(db)
            proxy.swallow_replies = True
        async with asyncio.timeout(5):
            while not await stored_ids(db):
                await asyncio.sleep(0.01)
        proxy.swallow_replies = False
        proxy.cut()
        result = await reply
    assert [(e.event_id, e.duplicate, e.endpoint_count) for e in result.events] == [("id-1", False, 1)]
    assert await stored_ids(db) == ["id-1"]


async def test_an_outcome_that_cannot_be_learnt_is_answered_as_unknown(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    limits = GroupCommitLimits(settle_timeout_s=0.3)
    async with (
        proxied(database.dsn) as (proxy, dsn),
        Database.open(DatabaseOptions(dsn, connect_timeout_s=0.5)) as through,
        committing(through, handoff, limits) as commits,
        locked(database, key),
    ):
        reply = commits.enqueue(await request_of(db, [new_event("id-1")], [key]))
        await until_blocked(db)
        proxy.refuse = True
        proxy.cut()
        with pytest.raises(CommitUnknownError):
            await reply


async def test_a_database_that_is_away_is_unavailable_and_comes_back(
    db: Database, database: TestDatabase, handoff: HandOffLog, key: EndpointKey
) -> None:
    async with (
        proxied(database.dsn) as (proxy, dsn),
        Database.open(DatabaseOptions(dsn, connect_timeout_s=0.5)) as through,
        committing(through, handoff) as commits,
    ):
        proxy.refuse = True
        with pytest.raises(UnavailableError):
            await commits.submit(await request_of(db, [new_event("away")], [key]))
        assert through.availability.away_since is not None
        proxy.refuse = False
        await commits.submit(await request_of(db, [new_event("back")], [key]))
        assert through.availability.away_since is None
    assert await stored_ids(db) == ["back"]


@pytest.mark.parametrize("end", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_a_commit_that_no_standby_confirmed_is_unknown_not_success(
    tmp_path: Path, handoff: HandOffLog, end: str
) -> None:
    """The server only warns when the wait for a synchronous replica is cancelled. When the waiting backend is ended,
    the transaction counts as committed, but nowhere else."""
    limits = GroupCommitLimits(settle_timeout_s=1.0)
    async with EmbeddedPostgres(tmp_path / "pg") as server:
        await migrate(DatabaseOptions(server.dsn))
        async with Database.open(DatabaseOptions(server.dsn)) as db, committing(db, handoff, limits) as commits:
            await make_tenant(db)
            key = (await make_endpoint(db, "a")).key
            request = await request_of(db, [new_event("id-1", b"x")], [key])
            admin = await asyncpg.connect(server.dsn)
            await admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            await admin.execute("SELECT pg_reload_conf()")
            reply = commits.enqueue(request)
            sql = f"SELECT {end}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            async with asyncio.timeout(5):
                while not await admin.fetchval(sql):
                    await asyncio.sleep(0.01)
            with pytest.raises(CommitUnknownError):
                await reply
            await admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await admin.execute("SELECT pg_reload_conf()")
            await admin.close()
            retried = await commits.submit(request)
    assert retried.events[0].duplicate is True


async def test_a_database_that_takes_no_writes_is_unavailable_and_its_connections_are_not_kept(
    db: Database, connection: asyncpg.Connection, handoff: HandOffLog, key: EndpointKey
) -> None:
    """A replica that the address leads to; the next connection may lead to the primary."""
    name = await connection.fetchval("SELECT current_database()")
    async with committing(db, handoff) as commits:
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        with pytest.raises(UnavailableError) as refused:
            await commits.submit(await request_of(db, [new_event("id-1")], [key]))
        assert refused.value.reason == "DATABASE_UNAVAILABLE", "nothing was written"
        await connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        assert (await commits.submit(await request_of(db, [new_event("id-1")], [key]))).verdict is Verdict.ACCEPTED
    assert await stored_ids(db) == ["id-1"]


async def test_an_error_that_nobody_foresaw_is_never_called_unwritten(
    db: Database, handoff: HandOffLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the service; whoever waits for the batch is told that nobody knows."""

    async def stumble(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("a bug")

    await make_tenant(db)
    request = await request_of(db, [new_event("id-1")], [(await make_endpoint(db, "a")).key])
    monkeypatch.setattr("dispatcher.store.writer.publish", stumble)
    commits = GroupCommit(db, GroupCommitLimits(), handoff)
    running_commits = asyncio.create_task(commits.run())
    with pytest.raises(CommitUnknownError):
        await commits.submit(request)
    with pytest.raises(ExceptionGroup):
        await running_commits
