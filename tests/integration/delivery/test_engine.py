"""From Publish to the webhook, in one process, on a real database and a real receiver."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from dispatcher.model import OrderingMode
from tests.support.node import SIGNING_SECRET_TEXT, running_node
from tests.support.ports import black_hole
from tests.support.postgres import TestDatabase
from tests.support.publishing import make_tenant, new_event
from tests.support.receiver import Answer, Hang, Receiver, Request
from tests.support.tasks import until
from tests.support.waiting import until as until_answered


async def test_an_event_reaches_its_endpoint_signed_and_byte_identical(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_node(database.dsn) as node:
        await make_tenant(node.core.database)
        await node.endpoint("billing", receiver.url("billing"))
        event = new_event("evt-1", b'{"total": 1}', key="customer-7")
        await node.publish(event)
        await receiver.wait_for(1)
    (request,) = receiver.of("billing")
    request.verify(SIGNING_SECRET_TEXT)
    assert request.body == b'{"total": 1}'
    assert request.headers["webhook-id"] == "evt-1"
    assert request.headers["webhook-sequence"] == "1"
    assert request.headers["webhook-ordering-key"] == "customer-7"


async def test_every_endpoint_gets_all_events_in_order_under_random_errors(
    database: TestDatabase,
) -> None:
    chance = random.Random(7)
    names = [f"e{i}" for i in range(20)]
    accepted = 0

    def fail_now_and_then(_request: Request) -> Answer:
        nonlocal accepted
        fails = chance.random() < 0.02
        accepted += not fails
        return Answer(500 if fails else 204)

    async with Receiver() as receiver, running_node(database.dsn) as node:
        receiver.default = fail_now_and_then
        await make_tenant(node.core.database)
        for name in names:
            await node.endpoint(name, receiver.url(name))
        published: list[str] = []
        for _ in range(5):
            events = [new_event() for _ in range(20)]
            await node.publish(*events)
            published.extend(event.event_id for event in events)
        await receiver.wait_for(lambda: accepted >= 20 * 100, timeout_s=60)
    for name in names:
        assert receiver.first_receipts(name) == published
        assert [r.sequence for r in receiver.accepted(name)] == list(range(1, 101))


async def test_the_time_to_connect_is_a_setting(database: TestDatabase) -> None:
    async with running_node(database.dsn, connect_timeout_s="0.3") as node:

        async def attempt() -> Any:
            return await node.core.database.fetchrow("SELECT error FROM attempt LIMIT 1")

        with black_hole() as port:
            await make_tenant(node.core.database)
            await node.endpoint("a", f"http://127.0.0.1:{port}/")
            await node.publish(new_event())
            await until_answered(attempt)
        found = await attempt()
    assert found["error"] == "no connection within 0.3 s"


async def test_a_failing_event_holds_the_rest_of_an_ordered_endpoint(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_node(database.dsn) as node:
        await make_tenant(node.core.database)
        await node.endpoint("a", receiver.url("a"))
        receiver.on("a", Answer(500), Answer(503), Answer(500))
        await node.publish(*[new_event(f"id-{i}") for i in range(3)])
        await receiver.wait_for(6)
    assert [r.event_id for r in receiver.of("a")] == ["id-0"] * 4 + ["id-1", "id-2"]
    assert [r.attempt for r in receiver.of("a")] == [1, 2, 3, 4, 1, 1]


async def test_an_exhausted_event_is_dead_lettered_on_record_and_the_next_goes_on(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_node(database.dsn, attempts_max="3") as node:
        await make_tenant(node.core.database)
        await node.endpoint("a", receiver.url("a"))
        receiver.on("a", lambda request: Answer(500 if request.event_id == "poison" else 204))
        await node.publish(new_event("poison", b"payload"), new_event("next"))
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 1)
        letter = await node.core.database.fetchrow(
            "SELECT l.*, p.data, d.reason FROM dead_letter l JOIN decision d USING (tenant_id, endpoint_id, seq)"
            " JOIN dead_letter_payload p ON p.tenant_id = l.tenant_id AND p.event_id = l.event_id"
        )
    assert [r.event_id for r in receiver.of("a")] == ["poison"] * 3 + ["next"]
    assert letter is not None
    assert (letter["seq"], letter["attempts"], letter["last_status_code"]) == (1, 3, 500)
    assert (letter["data"], letter["reason"]) == (b"payload", "ATTEMPTS_EXHAUSTED")


async def test_a_stopped_node_leaves_nothing_to_repeat(database: TestDatabase) -> None:
    async with Receiver() as receiver:
        async with running_node(database.dsn) as node:
            await make_tenant(node.core.database)
            await node.endpoint("a", receiver.url("a"))
            await node.publish(*[new_event() for _ in range(200)])
            await receiver.wait_for(50)
        sent = len(receiver.of("a"))
        async with running_node(database.dsn) as node:
            await receiver.wait_for(lambda: len(receiver.accepted("a")) == 200)
            owners = await node.core.database.fetchval("SELECT count(DISTINCT owner) FROM lease")
    assert sent < 200
    assert owners == 1
    assert [r.sequence for r in receiver.of("a")] == list(range(1, 201))


async def test_what_ends_while_its_partition_is_given_back_is_decided_before_it_goes(database: TestDatabase) -> None:
    """By Drain, here; as with any hand-over the next owner finds the dead letter and goes on behind it."""
    released = asyncio.Event()
    async with Receiver() as receiver, running_node(database.dsn, attempts_max="1") as node:
        await make_tenant(node.core.database)
        partition = (await node.endpoint("a", receiver.url("a"))).key.partition
        receiver.on("a", Hang(released, Answer(500)))
        await node.publish(new_event("poison"), new_event("next"))
        await receiver.wait_for(lambda: receiver.in_flight["a"] == 1)
        node.core.engine.drain()
        await until(lambda: len(node.core.engine.keeper.epochs) == 1, "all other leases are given back")
        assert node.core.engine.keeper.held(partition) is None
        released.set()
        async with asyncio.timeout(10):
            await node.core.engine.keeper.handed_over()
        decided = await node.core.database.fetch("SELECT event_id, reason FROM decision")
        async with running_node(database.dsn, attempts_max="1"):
            await receiver.wait_for(2)
    assert [(row["event_id"], row["reason"]) for row in decided] == [("poison", "ATTEMPTS_EXHAUSTED")]
    assert [r.event_id for r in receiver.of("a")] == ["poison", "next"]


async def test_a_crash_repeats_at_most_what_was_in_flight_or_unflushed(database: TestDatabase) -> None:
    async with Receiver() as receiver:
        async with running_node(database.dsn) as node:
            await make_tenant(node.core.database)
            await node.endpoint("a", receiver.url("a"))
            published = await node.publish(*[new_event() for _ in range(300)])
            await receiver.wait_for(100)
            await node.crash()
        async with running_node(database.dsn):
            await receiver.wait_for(lambda: len(set(receiver.first_receipts("a"))) == 300, timeout_s=20)
    assert receiver.first_receipts("a") == [event.event_id for event in published]


async def test_unordered_and_keyed_endpoints_get_everything(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_node(database.dsn) as node:
        await make_tenant(node.core.database)
        await node.endpoint("keyed", receiver.url("keyed"), mode=OrderingMode.ORDERED_BY_KEY)
        await node.endpoint("free", receiver.url("free"), mode=OrderingMode.UNORDERED)
        receiver.default = Answer(delay_s=0.002)
        events = [new_event(key=f"k{i % 5}") for i in range(200)]
        await node.publish(*events)
        await receiver.wait_for(400)
    assert {r.event_id for r in receiver.accepted("free")} == {e.event_id for e in events}
    for key in range(5):
        wanted = [e.event_id for e in events if e.ordering_key == f"k{key}"]
        got = [r.event_id for r in receiver.accepted("keyed") if r.headers["webhook-ordering-key"] == f"k{key}"]
        assert got == wanted
    assert receiver.in_flight_max["free"] > 1


async def test_two_nodes_share_the_endpoints_and_keep_their_order(database: TestDatabase) -> None:
    names = [f"e{i}" for i in range(20)]
    async with Receiver() as receiver, running_node(database.dsn) as one, running_node(database.dsn) as two:
        await make_tenant(one.core.database)
        for name in names:
            await one.endpoint(name, receiver.url(name))
        published: list[str] = []
        for i in range(40):
            event = new_event()
            await (one, two)[i % 2].publish(event)
            published.append(event.event_id)
        await receiver.wait_for(lambda: all(len(receiver.first_receipts(n)) == 40 for n in names), timeout_s=20)
        await asyncio.wait_for(until_shared(one, two), 10)
    for name in names:
        assert receiver.first_receipts(name) == published


async def until_shared(one: object, two: object) -> None:
    while {len(n.core.engine.board.epochs) for n in (one, two)} != {128}:  # type: ignore[attr-defined]
        await asyncio.sleep(0.02)


async def test_behind_a_transaction_pooler_rows_of_another_process_are_found_without_listening(
    database: TestDatabase,
) -> None:
    """No LISTEN, no prepared statement, no session state: what others commit is found by the sweep."""
    names = [f"e{i}" for i in range(8)]
    pooled = {"database_pooled": "true"}
    async with (
        Receiver() as receiver,
        running_node(database.dsn, **pooled) as one,
        running_node(database.dsn, **pooled) as two,
    ):
        await make_tenant(one.core.database)
        for name in names:
            await one.endpoint(name, receiver.url(name))
        await asyncio.wait_for(until_shared(one, two), 10)
        events = [new_event() for _ in range(10)]
        for event in events:
            await one.publish(event)
        await receiver.wait_for(lambda: all(len(receiver.accepted(n)) == 10 for n in names), timeout_s=15)
        listeners = await one.core.database.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%' AND datname = current_database()"
        )
    assert listeners == 0
    for name in names:
        assert receiver.first_receipts(name) == [event.event_id for event in events]
