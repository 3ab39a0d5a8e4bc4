"""Leases and the fence, on two connections that get in each other's way."""

from __future__ import annotations

import asyncio
import uuid

import asyncpg
import pytest

from dispatcher.errors import UnavailableError
from dispatcher.model import Cursor, DecisionKind, EndpointKey
from dispatcher.store import cursors, decisions, leases, parked
from dispatcher.store.database import Database
from dispatcher.store.fence import fenced, hold, probing
from tests.support.backlog import add_endpoint, add_rows, add_tenant, decision_on
from tests.support.waiting import until_blocked

TTL_S = 60.0
ME, OTHER = uuid.uuid4(), uuid.uuid4()


async def test_a_free_lease_is_acquired_under_a_new_epoch_each_time(db: Database) -> None:
    (first,) = await leases.acquire(db, ME, 1, TTL_S, [7])
    await leases.release(db, ME, {7: first.epoch})
    (second,) = await leases.acquire(db, OTHER, 1, TTL_S, [7])
    assert (first.partition, first.owner, second.owner) == (7, ME, OTHER)
    assert second.epoch > first.epoch


async def test_a_lease_in_force_is_never_taken(db: Database) -> None:
    await leases.acquire(db, ME, 256, TTL_S)
    assert await leases.acquire(db, OTHER, 256, TTL_S) == []


async def test_an_expired_lease_is_taken_and_its_former_owner_cannot_renew_or_release_it(db: Database) -> None:
    (mine,) = await leases.acquire(db, ME, 1, 0.0, [7])
    (theirs,) = await leases.acquire(db, OTHER, 1, TTL_S, [7])
    assert await leases.renew(db, ME, {7: mine.epoch}, TTL_S) == []
    await leases.release(db, ME, {7: mine.epoch})
    assert (await leases.read_owners(db)).keys() == {7}
    assert [lease for lease in await leases.read_all(db) if lease.owner] == [theirs]


async def test_an_expired_lease_that_nobody_took_is_renewed_and_counts_up(db: Database) -> None:
    (mine,) = await leases.acquire(db, ME, 1, 0.0, [7])
    assert await leases.read_owners(db) == {}
    (renewed,) = await leases.renew(db, ME, {7: mine.epoch}, TTL_S)
    assert (renewed.epoch, renewed.renewals) == (mine.epoch, mine.renewals + 1)
    assert (await leases.read_owners(db))[7][1] == pytest.approx(TTL_S, abs=5.0)


async def test_two_who_acquire_at_once_share_out_without_overlap(db: Database) -> None:
    mine, theirs = await asyncio.gather(leases.acquire(db, ME, 128, TTL_S), leases.acquire(db, OTHER, 256, TTL_S))
    taken = [lease.partition for lease in mine + theirs]
    assert len(taken) == len(set(taken))


async def test_the_primary_tells_its_timeline(db: Database) -> None:
    assert await leases.timeline(db) == 1


async def test_an_epoch_that_a_failover_forgot_is_not_given_out_again(
    db: Database, connection: asyncpg.Connection
) -> None:
    """The database goes back to before the acquisition; a decision of the lost epoch must not pass the fence later."""
    before = await connection.fetchrow("SELECT * FROM lease WHERE partition = 7")
    (lost,) = await leases.acquire(db, ME, 1, TTL_S, [7])
    await connection.execute(
        "UPDATE lease SET epoch = $1, owner = NULL, expire_time = $2 WHERE partition = 7",
        before["epoch"],
        before["expire_time"],
    )
    (again,) = await leases.acquire(db, OTHER, 1, TTL_S, [7])
    assert again.epoch > lost.epoch


STEAL = "UPDATE lease SET epoch = epoch + 1, owner = $1 WHERE partition = 7"


async def test_a_steal_waits_for_a_decision_in_flight_and_a_renewal_does_not(
    db: Database, connection: asyncpg.Connection
) -> None:
    (mine,) = await leases.acquire(db, ME, 1, TTL_S, [7])
    async with fenced(db, {7: mine.epoch}) as (_, held):
        assert held == {7}
        (renewed,) = await asyncio.wait_for(leases.renew(db, ME, {7: mine.epoch}, 0.0), 2.0)
        assert renewed.renewals == mine.renewals + 1
        # The lease has expired now: the polite way passes it over, the impolite one waits.
        assert await asyncio.wait_for(leases.acquire(db, OTHER, 1, TTL_S, [7]), 2.0) == []
        await connection.execute("SET lock_timeout = '200ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await connection.execute(STEAL, OTHER)
    (taken,) = await leases.acquire(db, OTHER, 1, TTL_S, [7])
    assert taken.epoch > mine.epoch


async def test_a_promoted_replica_with_the_same_epochs_does_not_pass_the_fence(db: Database) -> None:
    (mine,) = await leases.acquire(db, ME, 1, TTL_S, [7])
    db.timeline = await leases.timeline(db)
    async with fenced(db, {7: mine.epoch}) as (_, held):
        assert held == {7}
    db.timeline += 1
    async with fenced(db, {7: mine.epoch}) as (_, held):
        assert held == set()


async def test_nothing_is_read_from_another_timeline_until_everything_starts_afresh(db: Database) -> None:
    """Its rows do not continue what lanes have in memory: number n + 1 would go out, and number n there never."""
    timeline = await leases.timeline(db)
    db.begin_on(timeline + 1)
    with pytest.raises(UnavailableError, match="another timeline"):
        async with probing(db):
            pass
    assert db.is_replaced
    db.begin_on(timeline)
    async with probing(db) as connection:
        assert await connection.fetchval("SHOW enable_seqscan") == "off"
    assert not db.is_replaced


async def test_the_record_of_a_parked_delivery_is_kept_on_another_timeline(db: Database) -> None:
    """There its success may be lost, and the record is all that tells the next owner of it."""
    key = EndpointKey(uuid.uuid4(), uuid.uuid4())
    timeline = await leases.timeline(db)
    db.begin_on(timeline)
    await parked.tidy(db, [(key, 1)], [])
    db.begin_on(timeline + 1)
    with pytest.raises(UnavailableError, match="another timeline"):
        await parked.tidy(db, [(key, 1)], [])


async def test_a_fence_that_waited_for_a_steal_finds_the_epoch_gone(
    db: Database, connection: asyncpg.Connection
) -> None:
    (mine,) = await leases.acquire(db, ME, 1, TTL_S, [7])
    theft = connection.transaction()
    await theft.start()
    await connection.execute(STEAL, OTHER)

    async def decide() -> set[int]:
        async with db.transaction() as own:
            return await hold(own, {7: mine.epoch}, 0)

    deciding = asyncio.create_task(decide())
    await until_blocked(db)
    await theft.commit()
    assert await deciding == set()


async def test_a_stale_epoch_voids_its_own_decisions_and_cursors_only(
    db: Database, connection: asyncpg.Connection
) -> None:
    tenant_id = await add_tenant(connection)
    stale, held = [await add_endpoint(connection, tenant_id, partition) for partition in (7, 8)]
    (lost,) = await leases.acquire(db, ME, 1, 0.0, [7])
    await leases.acquire(db, OTHER, 1, TTL_S, [7])
    (kept,) = await leases.acquire(db, ME, 1, TTL_S, [8])
    rows = [(await add_rows(connection, key, 1))[0] for key in (stale, held)]
    epochs = {7: lost.epoch, 8: kept.epoch}

    assert await decisions.commit(db, epochs, [decision_on(row) for row in rows], []) == {8}
    written = await connection.fetch("SELECT endpoint_id, kind FROM decision")
    assert [tuple(row) for row in written] == [(held.endpoint_id, DecisionKind.DEAD_LETTER)]

    moved = await cursors.advance(db, epochs, [Cursor(row.key, 1, row.time) for row in rows])
    assert moved == {8}
    seqs = dict(await connection.fetch("SELECT endpoint_id, seq FROM cursor"))
    assert seqs == {stale.endpoint_id: 0, held.endpoint_id: 1}
