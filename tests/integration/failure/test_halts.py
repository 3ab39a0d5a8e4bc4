"""HALT: nothing goes on until an operator has decided, whatever restarts; Skip and Retry end it."""

from __future__ import annotations

import asyncio

import pytest
from webhooks.v1 import delivery_pb2, endpoint_pb2, policy_pb2

from dispatcher.errors import UnavailableError
from dispatcher.model import Command
from dispatcher.store import delivery_commands
from dispatcher.store.database import Database
from dispatcher.store.delivery_commands import CommandOutcome
from tests.support.api import refused
from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Hang, Receiver, Request
from tests.support.service import Service, running_service
from tests.support.waiting import until

HALT = {"exhaustion_policy": policy_pb2.EXHAUSTION_POLICY_HALT, "retry_policy": {"max_attempts": 2}}


def poison(request: Request) -> Answer:
    return Answer(500 if request.event_id == "poison" else 204)


async def halted(service: Service, name: str = "a") -> delivery_pb2.EndpointStatus:
    async def is_halted() -> bool:
        return (await service.status(name)).halt_count > 0

    await until(is_halted, 10)
    return await service.status(name)


async def test_a_halt_survives_restarts_without_a_further_attempt_and_a_skip_ends_it(database: TestDatabase) -> None:
    async with Receiver() as receiver:
        receiver.on("a", poison)
        async with running_service(database.dsn) as service:
            await service.tenant()
            await service.endpoint("a", receiver.url("a"), **HALT)
            await service.publish("first", "poison", "behind", "last")
            status = await halted(service)
            assert status.halt.sequence == 2
            assert status.halt.event == "tenants/acme/events/poison"
            assert status.halt.reason == "ATTEMPTS_EXHAUSTED"
            assert status.halt.last_attempt.status_code == 500
            assert status.halt.waiting_count == 2
            assert status.backlog_count == 3
            await service.node.crash()
        async with running_service(database.dsn) as service:
            other = await service.endpoint("b", receiver.url("b"))
            assert other.name
            await service.publish("later")
            await receiver.wait_for(lambda: len(receiver.accepted("b")) == 1)
            assert [r.event_id for r in receiver.of("a")] == ["first", "poison", "poison"]
            skipped = await service.skip("a", 2, "INC-7")
            assert skipped.state == delivery_pb2.Delivery.STATE_SKIPPED
            assert skipped.decision.reason == "INC-7"
            await receiver.wait_for(lambda: len(receiver.accepted("a")) == 4)
            assert (await service.status("a")).halt_count == 0
    assert receiver.first_receipts("a") == ["first", "poison", "behind", "last", "later"]


async def test_a_retry_ends_a_halt_for_one_attempt(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        receiver.on("a", poison)
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), **HALT)
        await service.publish("poison", "behind")
        await halted(service)
        await service.retry("a", 1)
        await receiver.wait_for(lambda: len(receiver.of("a")) == 3)
        await halted(service)
        receiver.on("a", lambda _request: Answer(204))
        await service.retry("a", 1)
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 2)
    assert [r.event_id for r in receiver.of("a")] == ["poison"] * 4 + ["behind"]


async def test_a_retry_beside_an_attempt_waits_for_what_it_comes_to(database: TestDatabase) -> None:
    """Else it would take off the record the halt that this attempt ends in, and nothing would ever move again."""
    async with Receiver() as receiver, running_service(database.dsn) as service:
        released = asyncio.Event()
        receiver.on("a", Answer(500), Answer(500), Hang(released, Answer(500)), Answer(204))
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), **HALT)
        await service.publish("poison", "behind")
        await halted(service)
        await service.retry("a", 1)
        await receiver.wait_for(lambda: len(receiver.of("a")) == 3)
        again = asyncio.create_task(service.retry("a", 1))

        async def is_asked() -> bool:
            return await service.database.fetchval("SELECT count(*) FROM command") == 2

        await until(is_asked, 5)
        released.set()
        await again
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 2)
        assert (await service.status("a")).halt_count == 0
    assert [r.event_id for r in receiver.of("a")] == ["poison"] * 4 + ["behind"]


async def test_a_halted_key_holds_only_its_own(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        receiver.on("a", poison)
        await service.tenant()
        await service.endpoint(
            "a", receiver.url("a"), **HALT | {"ordering_mode": endpoint_pb2.ORDERING_MODE_ORDERED_BY_KEY}
        )
        await service.publish("poison", "behind", key="x")
        await service.publish("other-1", "other-2", key="y")
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 2)
        status = await halted(service)
        assert (status.halt.ordering_key, status.halt.waiting_count) == ("x", 1)
        await service.skip("a", 1)
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 3)
    assert [r.event_id for r in receiver.accepted("a")] == ["other-1", "other-2", "behind"]


async def test_an_ordered_endpoint_skips_a_failing_head_on_request(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, retry_max_s="60", retry_min_s="60") as service:
        receiver.on("a", poison)
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), retry_policy={"schedule": {"waits": [{"seconds": 3600}]}})
        await service.publish("poison", "behind")
        await service.until_attempts("a", 1, 1)
        await service.retry("a", 1)  # an hour early
        await service.until_attempts("a", 2, 1)
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 1)
        problem = await refused(service.skip("a", 2))
        assert problem.reason == "DELIVERY_SETTLED"
        problem = await refused(service.retry("a", 1))
        assert problem.reason == "DELIVERY_SETTLED"


async def test_a_skip_that_the_database_did_not_answer_is_done_by_the_next_poll(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came of it is not known: the row that was claimed for it is read anew, else it would be claimed for good."""
    skip, calls = delivery_commands.skip, 0

    async def away_at_first(db: Database, epoch: int, command: Command) -> CommandOutcome | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise UnavailableError("the database is away")
        return await skip(db, epoch, command)

    monkeypatch.setattr(delivery_commands, "skip", away_at_first)
    async with Receiver() as receiver, running_service(database.dsn) as service:
        receiver.on("a", poison)
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), retry_policy={"schedule": {"waits": [{"seconds": 3600}]}})
        await service.publish("poison", "behind")
        await service.until_attempts("a", 1, 1)
        skipped = await service.skip("a", 1)
        assert (skipped.state, calls) == (delivery_pb2.Delivery.STATE_SKIPPED, 2)
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 1)


async def test_any_instance_takes_the_call_and_the_owner_executes_it(database: TestDatabase) -> None:
    async with (
        Receiver() as receiver,
        running_service(database.dsn) as one,
        running_service(database.dsn) as other,
    ):
        receiver.on("a", poison)
        await one.tenant()

        async def share() -> bool:
            return all(len(service.node.core.engine.board.epochs) > 0 for service in (one, other))

        await until(share, 20)
        await one.endpoint("a", receiver.url("a"), **HALT)
        await one.publish("poison", "behind")
        await halted(one)
        key = next(iter({k for s in (one, other) for k in s.node.core.engine.board.lanes}))
        owner, stranger = (one, other) if one.node.core.engine.board.delivers_for(key) else (other, one)
        assert owner.node.core.engine.board.delivers_for(key)
        await stranger.skip("a", 1)
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 1)


async def test_a_reason_must_be_given(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        await service.publish("one")
        assert (await refused(service.skip("a", 1, ""))).fields == ["reason"]


async def test_of_a_deleted_endpoint_nothing_is_left_but_decisions(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, lane_rows_max="16") as service:
        receiver.on("a", poison)
        await service.tenant()
        keyed = {"ordering_mode": endpoint_pb2.ORDERING_MODE_ORDERED_BY_KEY}
        await service.endpoint("a", receiver.url("a"), **HALT, **keyed)
        await service.publish("poison", *[f"e-{i}" for i in range(40)], key="k")
        await halted(service)

        async def is_parked() -> bool:
            return (await service.status("a")).parked_count > 0

        await until(is_parked, 10)
        delete = endpoint_pb2.DeleteEndpointRequest(name="tenants/acme/endpoints/a", force=True)
        await service.endpoints.DeleteEndpoint(delete)

        async def is_clean() -> bool:
            tables = ("parked", "halt", "endpoint_health")
            counts = [await service.database.fetchval(f"SELECT count(*) FROM {table}") for table in tables]
            return counts == [0, 0, 0] and await service.database.fetchval("SELECT count(*) FROM decision") == 41

        await until(is_clean, 15)
