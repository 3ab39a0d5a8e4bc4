"""Publishing through two processes: what one has done, the other knows."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import grpc
import grpc.aio
from webhooks.v1 import endpoint_pb2

from tests.support.callers import Caller, event, reason_of
from tests.support.receiver import Receiver

Callers = tuple[Caller, Caller]
FRESH_ROUNDS = 25
DUPLICATE_ROUNDS = 60


async def test_an_endpoint_created_just_before_a_publish_through_another_process_receives_it(
    callers: Callers, tenant: str, receiver: Receiver
) -> None:
    counts = []
    for i in range(FRESH_ROUNDS):
        creator, publisher = callers[i % 2], callers[1 - i % 2]
        await creator.endpoint(f"e{i}", receiver.url(f"e{i}"), tenant=tenant)
        (result,) = await publisher.publish(event(f"id-{i}"), tenant=tenant)
        counts.append(result.endpoint_count)
    assert counts == list(range(1, FRESH_ROUNDS + 1))
    await receiver.wait_for(sum(counts))
    for i in range(FRESH_ROUNDS):
        assert receiver.first_receipts(f"e{i}") == [f"id-{n}" for n in range(i, FRESH_ROUNDS)]


async def test_a_change_of_event_types_holds_for_the_next_publish_through_another_process(
    callers: Callers, tenant: str, receiver: Receiver
) -> None:
    await callers[0].endpoint("e", receiver.url("e"), tenant=tenant)
    for i in range(FRESH_ROUNDS):
        changer, publisher = callers[i % 2], callers[1 - i % 2]
        await changer.update("e", "event_types", tenant=tenant, event_types=[f"round{i}.*"])
        wanted, unwanted = await publisher.publish(
            event(f"yes-{i}", type=f"round{i}.new"), event(f"no-{i}", type=f"round{i - 1}.old"), tenant=tenant
        )
        assert (wanted.endpoint_count, unwanted.endpoint_count) == (1, 0), f"round {i}"
    await receiver.wait_for(FRESH_ROUNDS)
    assert receiver.first_receipts("e") == [f"yes-{i}" for i in range(FRESH_ROUNDS)]


async def test_a_deleted_endpoint_gets_nothing_that_another_process_publishes_after(
    callers: Callers, tenant: str
) -> None:
    for i in range(FRESH_ROUNDS):
        deleter, publisher = callers[i % 2], callers[1 - i % 2]
        await deleter.endpoint(f"e{i}", "http://127.0.0.1:1025/nobody", tenant=tenant, event_types=["none.*"])
        request = endpoint_pb2.DeleteEndpointRequest(name=f"tenants/{tenant}/endpoints/e{i}")
        await deleter.update(f"e{i}", "event_types", tenant=tenant, event_types=["*"])
        await deleter.endpoints.DeleteEndpoint(request)
        (result,) = await publisher.publish(event(f"id-{i}"), tenant=tenant)
        assert result.endpoint_count == 0


async def test_a_repeated_id_is_answered_like_the_first_and_delivered_once(
    callers: Callers, tenant: str, receiver: Receiver
) -> None:
    await callers[0].endpoint("e", receiver.url("e"), tenant=tenant)
    (first,) = await callers[0].publish(event("same", b"content"), tenant=tenant)
    again = [(await caller.publish(event("same", b"content"), tenant=tenant))[0] for caller in callers]
    await callers[1].publish(event("last"), tenant=tenant)
    await receiver.wait_for(lambda: "last" in receiver.first_receipts("e"))
    assert (first.event, first.duplicate, first.endpoint_count) == (f"tenants/{tenant}/events/same", False, 1)
    assert [(r.event, r.duplicate, r.endpoint_count) for r in again] == [(first.event, True, 1)] * 2
    assert [request.event_id for request in receiver.of("e")] == ["same", "last"]


async def test_of_concurrent_duplicates_in_two_processes_one_is_new_and_delivered_once(
    callers: Callers, tenant: str, receiver: Receiver
) -> None:
    await callers[0].endpoint("e", receiver.url("e"), tenant=tenant)
    for i in range(DUPLICATE_ROUNDS):
        answers = await asyncio.gather(
            *(caller.publish(event(f"id-{i}", b"same"), tenant=tenant) for caller in callers for _ in range(2))
        )
        assert sorted(results[0].duplicate for results in answers) == [False, True, True, True], f"round {i}"
    await receiver.wait_for(DUPLICATE_ROUNDS)
    await callers[0].publish(event("last"), tenant=tenant)
    await receiver.wait_for(DUPLICATE_ROUNDS + 1)
    assert [r.event_id for r in receiver.of("e")] == [*(f"id-{i}" for i in range(DUPLICATE_ROUNDS)), "last"]


async def test_of_concurrent_events_with_one_id_and_different_content_one_is_refused(
    callers: Callers, tenant: str, receiver: Receiver
) -> None:
    await callers[0].endpoint("e", receiver.url("e"), tenant=tenant)
    for i in range(DUPLICATE_ROUNDS):
        outcomes = await asyncio.gather(
            *(_outcome(caller.publish(event(f"id-{i}", b"%d" % n), tenant=tenant)) for n, caller in enumerate(callers))
        )
        assert Counter(outcomes) == {"new": 1, "ALREADY_EXISTS EVENT_ID_REUSED": 1}, f"round {i}"
    await receiver.wait_for(DUPLICATE_ROUNDS)
    assert [r.sequence for r in receiver.of("e")] == list(range(1, DUPLICATE_ROUNDS + 1))


async def _outcome(call: Any) -> str:
    try:
        (result,) = await call
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} {reason_of(error)}"
    return "duplicate" if result.duplicate else "new"
