"""Disabled by a 410, by exhausted heads: the backlog is held, an operator is told, EnableEndpoint lets it go on."""

from __future__ import annotations

import json

from webhooks.v1 import endpoint_pb2

from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Receiver
from tests.support.service import NAME, Service, running_service
from tests.support.waiting import until

ONE_TRY = {"retry_policy": {"max_attempts": 1}, "circuit_breaker": {"off": True}}
OPS = ("dispatcher.endpoint.disabled", "dispatcher.endpoint.recovered")


async def disabled(service: Service) -> endpoint_pb2.Endpoint:
    async def is_disabled() -> bool:
        return (await service.get("a")).state == endpoint_pb2.Endpoint.STATE_DISABLED

    await until(is_disabled, 10)
    return await service.get("a")


def enable(service: Service, **fields: object) -> object:
    return service.endpoints.EnableEndpoint(endpoint_pb2.EnableEndpointRequest(name=NAME.format("a"), **fields))


async def test_a_410_disables_and_holds_the_backlog(database: TestDatabase) -> None:
    async with Receiver() as receiver:
        async with running_service(database.dsn) as service:
            await service.tenant()
            await service.endpoint("a", receiver.url("a"))
            await service.endpoint("ops", receiver.url("ops"), event_types=OPS)
            receiver.on("a", Answer(410))
            await service.publish("one", "two")
            assert (await disabled(service)).state_reason.startswith("GONE")
            await receiver.wait_for(lambda: len(receiver.accepted("ops")) == 1)
            assert len(receiver.of("a")) == 1
        async with running_service(database.dsn) as service:  # another owner holds it too
            await service.publish("three", type="other")
            assert (await service.status("a")).backlog_count == 3
            await enable(service)
            await receiver.wait_for(lambda: len(receiver.accepted("a")) == 3)
            await receiver.wait_for(lambda: len(receiver.accepted("ops")) == 2)
    assert [r.event_id for r in receiver.of("a")] == ["one", "one", "two", "three"]
    told = [json.loads(request.body) for request in receiver.accepted("ops")]
    assert [event["type"] for event in told] == list(OPS)
    assert told[0]["reason"] == "GONE"


async def test_three_exhausted_heads_in_a_row_disable(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), **ONE_TRY)
        receiver.on("a", Answer(500), Answer(500), Answer(204), *[Answer(500)] * 3)
        await service.publish(*[f"e-{i}" for i in range(8)])
        assert (await disabled(service)).state_reason.startswith("EXHAUSTED")
        assert len(receiver.of("a")) == 6
        assert (await service.status("a")).exhausted_count == 3
        await enable(service)
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 3)


async def test_nothing_but_failures_for_too_long_disables_across_a_restart(database: TestDatabase) -> None:
    async with Receiver() as receiver:
        receiver.default = Answer(500)
        async with running_service(database.dsn) as service:
            await service.tenant()
            await service.endpoint("a", receiver.url("a"), circuit_breaker={"off": True})
            await service.publish("one")

            async def on_record() -> bool:
                return (await service.status("a")).HasField("failing_since_time")

            await until(on_record, 15)
            # The clock is moved: it has failed for a week by now.
            await service.database.execute(
                "UPDATE endpoint_health SET failing_since = failing_since - interval '7 days'"
            )
            await service.node.crash()
        async with running_service(database.dsn) as service:
            assert (await disabled(service)).state_reason.startswith("FAILING")


async def test_an_endpoint_may_refuse_to_be_disabled(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), **ONE_TRY, auto_disable={"off": True})
        receiver.on("a", *[Answer(500)] * 5)
        await service.publish(*[f"e-{i}" for i in range(6)])
        await receiver.wait_for(6)
        assert (await service.get("a")).state == endpoint_pb2.Endpoint.STATE_ACTIVE
