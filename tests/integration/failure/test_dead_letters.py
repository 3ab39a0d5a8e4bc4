"""Dead letters hold all that is needed to send again, outlive their event, and are sent or discarded once."""

from __future__ import annotations

import asyncio
from typing import Any

from webhooks.v1 import dead_letter_pb2, delivery_pb2, replay_pb2

from dispatcher.store import upkeep
from tests.support.api import refused
from tests.support.node import SIGNING_SECRET_TEXT
from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Receiver
from tests.support.service import NAME, Service, running_service
from tests.support.waiting import until

ONE_TRY = {"retry_policy": {"max_attempts": 1}, "auto_disable": {"off": True}, "circuit_breaker": {"off": True}}
LETTER = NAME.format("a") + "/deadLetters/{}"


def letters(service: Service, name: str = "a", **fields: Any) -> Any:
    request = dead_letter_pb2.ListDeadLettersRequest(parent=NAME.format(name), **fields)
    return service.letters.ListDeadLetters(request)


async def given_up(service: Service, count: int, name: str = "a") -> list[Any]:
    async def are_there() -> bool:
        return len((await letters(service, name)).dead_letters) >= count

    await until(are_there, 10)
    return list((await letters(service, name)).dead_letters)


async def lose(service: Service, receiver: Receiver, **event: Any) -> None:
    """Endpoint `a` gives up on the event `lost`, its first."""
    await service.tenant()
    await service.endpoint("a", receiver.url("a"), **ONE_TRY)
    receiver.on("a", Answer(500))
    await service.publish("lost", **event)
    await given_up(service, 1)


def get(service: Service, seq: int) -> Any:
    return service.letters.GetDeadLetter(dead_letter_pb2.GetDeadLetterRequest(name=LETTER.format(seq)))


def redrive(service: Service, seq: int) -> Any:
    return service.letters.RedriveDeadLetter(dead_letter_pb2.RedriveDeadLetterRequest(name=LETTER.format(seq)))


def discard(service: Service, seq: int, reason: str = "INC-4") -> Any:
    request = dead_letter_pb2.DiscardDeadLetterRequest(name=LETTER.format(seq), reason=reason)
    return service.letters.DiscardDeadLetter(request)


async def test_a_dead_letter_is_sent_again_byte_by_byte_after_its_event_is_gone(database: TestDatabase) -> None:
    data = b"\xff\x00 no text"
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), headers={"x-team": "secretive"}, **ONE_TRY)
        receiver.on("a", Answer(503, b"overloaded"))
        await service.publish("lost", key="k", data=data)
        await given_up(service, 1)
        await service.publish("kept")
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 1)
        await service.database.execute("DELETE FROM event WHERE event_id = 'lost'")
        letter = await get(service, 1)
        assert (letter.data, letter.data_content_type, letter.ordering_key) == (data, "application/json", "k")
        assert (letter.attempt_count, letter.last_status_code) == (1, 503)
        assert letter.decision.reason == "ATTEMPTS_EXHAUSTED"
        stored = await service.database.fetchval(
            "SELECT string_agg(d::text || p::text, '') FROM dead_letter d, dead_letter_payload p"
        )
        assert "secretive" not in stored
        assert SIGNING_SECRET_TEXT not in stored
        answer = await redrive(service, 1)
        assert answer.dead_letter.state == dead_letter_pb2.DeadLetter.STATE_REDRIVEN
        assert answer.delivery.sequence == 3
        assert answer.delivery.replay
        assert answer.delivery.replay_of == NAME.format("a") + "/deliveries/1"
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 2)
    again = receiver.of("a")[-1]
    assert (again.event_id, again.body, again.sequence) == ("lost", data, 3)
    assert again.headers["webhook-replay"] == "true"
    assert again.headers["webhook-ordering-key"] == "k"
    assert "webhook-replay" not in receiver.of("a")[0].headers


async def test_asked_twice_at_once_it_is_sent_once(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await lose(service, receiver)
        answers = await asyncio.gather(*[redrive(service, 1) for _ in range(8)])
        assert {answer.delivery.sequence for answer in answers} == {2}
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 1)
        receiver.accepted("a")[0].verify(SIGNING_SECRET_TEXT)
        assert (await refused(discard(service, 1))).reason == "DEAD_LETTER_CLOSED"


async def test_a_discard_deletes_the_payload_unless_another_letter_needs_it(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        for name in ("a", "b"):
            await service.endpoint(name, receiver.url(name), **ONE_TRY)
        receiver.default = Answer(500)
        await service.publish("lost", data=b"payload")
        await given_up(service, 1, "a")
        await given_up(service, 1, "b")
        assert (await refused(discard(service, 1, ""))).fields == ["reason"]
        discarded = await discard(service, 1)
        assert discarded.state == dead_letter_pb2.DeadLetter.STATE_DISCARDED
        assert (discarded.close_reason, discarded.close_actor) == ("INC-4", "anonymous")
        assert (await discard(service, 1)).state == dead_letter_pb2.DeadLetter.STATE_DISCARDED
        assert (await refused(redrive(service, 1))).reason == "DEAD_LETTER_CLOSED"
        name = NAME.format("b") + "/deadLetters/1"
        other = await service.letters.GetDeadLetter(dead_letter_pb2.GetDeadLetterRequest(name=name))
        assert other.data_text == "payload"
        await service.letters.DiscardDeadLetter(dead_letter_pb2.DiscardDeadLetterRequest(name=name, reason="x"))
        assert await service.database.fetchval("SELECT count(*) FROM dead_letter_payload") == 0


async def test_lists_filter_and_page(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), **ONE_TRY)
        receiver.default = Answer(500)
        await service.publish("p-1", "p-2", "p-3")
        await service.publish("r-1", type="order.refunded")
        await given_up(service, 4)
        await discard(service, 2)
        found = await letters(service, filter='event_type = "order.refunded"')
        assert [letter.event for letter in found.dead_letters] == ["tenants/acme/events/r-1"]
        assert found.dead_letters[0].data_text == ""
        first = await letters(service, filter="state = OPEN", page_size=2)
        rest = await letters(service, filter="state = OPEN", page_size=2, page_token=first.next_page_token)
        names = [letter.name.rpartition("/")[2] for letter in [*first.dead_letters, *rest.dead_letters]]
        assert names == ["4", "3", "1"]
        assert not rest.next_page_token
        everywhere = await letters(service, "-", filter='event = "tenants/acme/events/p-1"')
        assert len(everywhere.dead_letters) == 1


async def test_many_are_redriven_by_filter_lowest_first(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), **ONE_TRY)
        is_down = True
        receiver.on("a", lambda _request: Answer(500 if is_down else 204))
        await service.publish(*[f"p-{i}" for i in range(5)])
        await service.publish("other", type="order.refunded")
        await given_up(service, 6)
        is_down = False
        started = await service.letters.RedriveDeadLetters(
            dead_letter_pb2.RedriveDeadLettersRequest(
                parent=NAME.format("a"), filter='event_type = "order.paid"', replay_id="again"
            )
        )
        assert started.matched_count == 5
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 5)

        async def is_done() -> bool:
            return (await service.replay("again")).state == replay_pb2.Replay.STATE_SUCCEEDED

        await until(is_done, 5)
        assert (await service.replay("again")).appended_count == 5
        left = await letters(service, filter="state = OPEN")
        assert [letter.event_type for letter in left.dead_letters] == ["order.refunded"]
    assert [r.event_id for r in receiver.accepted("a")] == [f"p-{i}" for i in range(5)]


async def test_a_late_success_closes_a_dead_letter(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await lose(service, receiver)
        await service.database.execute(
            "INSERT INTO attempt (tenant_id, endpoint_id, seq, epoch, number, time, event_id, duration_us, outcome)"
            " SELECT tenant_id, endpoint_id, seq, 1, 9, now(), event_id, 5, 1 FROM dead_letter"
        )
        assert (await get(service, 1)).state == dead_letter_pb2.DeadLetter.STATE_DELIVERED
        assert (await refused(redrive(service, 1))).reason == "DEAD_LETTER_CLOSED"
        delivery = await service.deliveries.GetDelivery(
            delivery_pb2.GetDeliveryRequest(name=NAME.format("a") + "/deliveries/1")
        )
        assert delivery.state == delivery_pb2.Delivery.STATE_DELIVERED


async def test_an_id_that_names_another_payload_later_keeps_both(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), **ONE_TRY)
        is_down = True
        receiver.on("a", lambda _request: Answer(500 if is_down else 204))
        await service.publish("same", data=b"first")
        await given_up(service, 1)
        await service.database.execute("DELETE FROM dedup")  # its window is over
        await service.publish("same", data=b"second")
        await given_up(service, 2)
        is_down = False
        assert [(await get(service, seq)).data_text for seq in (1, 2)] == ["first", "second"]
        await redrive(service, 2)
        await redrive(service, 1)
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 2)
    assert [r.body for r in receiver.accepted("a")] == [b"second", b"first"]


async def test_closed_letters_are_forgotten_with_their_payloads_and_open_ones_are_kept(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        for name in ("a", "b"):
            await service.endpoint(name, receiver.url(name), **ONE_TRY)
        receiver.default = Answer(500)
        await service.publish("one", "two")
        for name in ("a", "b"):
            await given_up(service, 2, name)
        await discard(service, 1)
        await discard(service, 2)
        other = NAME.format("b") + "/deadLetters/1"
        await service.letters.DiscardDeadLetter(dead_letter_pb2.DiscardDeadLetterRequest(name=other, reason="x"))
        await service.database.execute("UPDATE dead_letter SET close_time = close_time - interval '31 days'")
        await upkeep.run_round(service.database, upkeep.UpkeepSettings())
        left = await service.database.fetch("SELECT event_id, state FROM dead_letter")
        payloads = await service.database.fetch("SELECT event_id FROM dead_letter_payload")
    assert [tuple(row) for row in left] == [("two", "OPEN")]
    assert [row["event_id"] for row in payloads] == ["two"]


async def test_an_expunged_event_is_gone_from_its_dead_letters_and_from_replays(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await lose(service, receiver, data=b"private")
        await service.publish("kept")
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 1)
        await service.until_attempts("a", 2)
        request = delivery_pb2.ExpungeEventRequest(name="tenants/acme/events/lost", reason="asked for")
        await until(lambda: _is_expunged(service, request), 10)
        letter = await get(service, 1)
        assert (letter.state, letter.data, letter.data_text) == (dead_letter_pb2.DeadLetter.STATE_DISCARDED, b"", "")
        assert letter.close_reason == "expunged: asked for"
        assert (await refused(redrive(service, 1))).reason == "DEAD_LETTER_CLOSED"
        assert await service.database.fetchval("SELECT count(*) FROM dead_letter_payload") == 0
        source = replay_pb2.ReplayEvents(selection=replay_pb2.ReplayEvents.SELECTION_ALL)
        source.start_time.FromSeconds(letter.create_time.seconds - 600)
        replay = replay_pb2.Replay(endpoint=NAME.format("a"), replay_events=source)
        started = await service.replays.CreateReplay(
            replay_pb2.CreateReplayRequest(parent="tenants/acme", replay=replay)
        )
        assert started.matched_count == 2, "what is counted is deliveries"
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 2)
        assert [each.event_id for each in receiver.accepted("a")] == ["kept", "kept"]


async def _is_expunged(service: Service, request: delivery_pb2.ExpungeEventRequest) -> bool:
    """Not before the decision that ended its delivery is on record."""
    return bool((await service.deliveries.ExpungeEvent(request)).id)
