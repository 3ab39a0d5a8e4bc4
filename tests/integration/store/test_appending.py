"""Replays and redrives append beside publishes; dead letters come and go beside each other. Nothing is lost between."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import asyncpg
import pytest

from dispatcher.model import DeadLetter, Decision, DecisionKind, EndpointKey, Outcome
from dispatcher.store import appending, dead_letters, decisions
from dispatcher.store.appending import Copy, EndpointGoneError
from dispatcher.store.changes import change
from dispatcher.store.database import Connection, Database
from dispatcher.store.deliveries import find
from dispatcher.store.fence import fenced
from tests.integration.store.test_facts_and_decisions import own
from tests.support.configured import make_endpoint, make_tenant, new_event, publish_events
from tests.support.waiting import until_blocked


def copy_of(event_id: str, data: bytes = b"{}") -> Copy:
    return Copy(
        event_id=event_id,
        published_time=datetime(2026, 1, 1, tzinfo=UTC),
        type="order.paid",
        ordering_key=None,
        content_type="application/json",
        data=data,
        attributes={"region": "eu"},
        source=None,
        subject=None,
        event_time=None,
        traceparent=None,
        replay_of=0,
    )


async def append(db: Database, key: EndpointKey, *ids: str) -> int:
    async with change(db) as connection:
        revision = await appending.lock(connection, key)
        return await appending.append(connection, key, revision, [copy_of(event_id) for event_id in ids])


async def test_appends_and_publishes_at_once_repeat_and_skip_no_sequence(db: Database) -> None:
    await make_tenant(db)
    keys = [(await make_endpoint(db, name)).key for name in ("a", "b")]

    async def publisher(n: int) -> None:
        for i in range(25):
            await publish_events(db, [new_event(f"p-{n}-{i}-{j}") for j in range(3)])

    async def appender(n: int, key: EndpointKey) -> None:
        for i in range(25):
            await append(db, key, f"c-{n}-{i}", f"d-{n}-{i}")

    await asyncio.gather(*map(publisher, range(3)), *(appender(n, key) for n in range(2) for key in keys))
    for key in keys:
        rows = await db.fetch("SELECT seq, time FROM outbox WHERE endpoint_id = $1 ORDER BY seq", key.endpoint_id)
        assert [row["seq"] for row in rows] == list(range(1, 3 * 25 * 3 + 2 * 25 * 2 + 1))
        times = [row["time"] for row in rows]
        assert times == sorted(times), "what a cursor bounds by time must not lie before it"


async def test_a_copy_is_a_delivery_like_any_other_and_marked(db: Database) -> None:
    await make_tenant(db)
    key = (await make_endpoint(db)).key
    await publish_events(db, [new_event("e-1")])
    assert await append(db, key, "e-1") == 2
    copy = await find(db, key, 2)
    assert copy is not None
    assert (copy.event_id, copy.replay_of, copy.state.value) == ("e-1", 0, "PENDING")
    rows = await db.fetch("SELECT data, attributes, copied_from FROM event WHERE copied_from IS NOT NULL")
    assert [(row["data"], row["attributes"]) for row in rows] == [(b"{}", {"region": "eu"})]


async def test_nothing_is_appended_to_a_deleted_endpoint(db: Database) -> None:
    await make_tenant(db)
    key = (await make_endpoint(db)).key
    await db.execute("UPDATE endpoint SET delete_time = now()")
    with pytest.raises(EndpointGoneError):
        await append(db, key, "e-1")


class GivenUp:
    """One event that endpoints a and b got; a has given it up."""

    def __init__(self, db: Database, keys: list[EndpointKey], epochs: dict[int, int]) -> None:
        self.db, self.keys, self.epochs = db, keys, epochs

    async def give_up(self, connection: Connection, key: EndpointKey) -> None:
        """As an owner does, inside the caller's transaction."""
        row = await find(self.db, key, 1)
        assert row is not None
        time = row.create_time
        decision = Decision(key, 1, "e-1", time, DecisionKind.DEAD_LETTER, "ATTEMPTS_EXHAUSTED", "x")
        letter = DeadLetter(key, 1, "e-1", time, row.type, None, 1, Outcome.HTTP_ERROR, 500, None)
        await connection.execute(
            decisions.INSERT_DECISIONS.many, *[[value] for value in decisions._decision_record(decision)]
        )
        await decisions._insert_dead_letters(connection, [letter], [decision])

    async def payloads(self) -> int:
        return await self.db.fetchval("SELECT count(*) FROM dead_letter_payload")


@pytest.fixture
async def given_up(db: Database) -> GivenUp:
    await make_tenant(db)
    keys = [(await make_endpoint(db, name)).key for name in ("a", "b")]
    await publish_events(db, [new_event("e-1", data=b"payload")])
    epochs = await own(db, *{key.partition for key in keys})
    made = GivenUp(db, keys, epochs)
    async with fenced(db, epochs) as (connection, _held):
        await made.give_up(connection, keys[0])
    return made


async def test_a_discard_waits_for_another_letter_of_its_event_and_leaves_the_payload(
    db: Database, given_up: GivenUp
) -> None:
    async with fenced(db, given_up.epochs) as (connection, _held):
        await given_up.give_up(connection, given_up.keys[1])
        discarding = asyncio.create_task(dead_letters.discard(db, "acme", "a", 1, "r", "x"))
        await until_blocked(db)
    await discarding
    assert await given_up.payloads() == 1
    assert (await dead_letters.get(db, "acme", "b", 1)).data == b"payload"


async def test_a_letter_waits_for_a_discard_of_its_event_and_brings_the_payload_anew(
    db: Database, connection: asyncpg.Connection, given_up: GivenUp
) -> None:
    async with connection.transaction():
        await connection.execute("UPDATE dead_letter SET state = 'DISCARDED', close_time = now()")
        tenant_id = given_up.keys[0].tenant_id
        await dead_letters._delete_payloads(connection, [(tenant_id, "e-1")])

        async def give_up() -> None:
            async with fenced(db, given_up.epochs) as (other, _held):
                await given_up.give_up(other, given_up.keys[1])

        giving_up = asyncio.create_task(give_up())
        await until_blocked(db)
    await giving_up
    assert (await dead_letters.get(db, "acme", "b", 1)).data == b"payload"
