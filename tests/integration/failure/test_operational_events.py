"""The service's own events come through the same outbox, once, by name, and never feed on themselves."""

from __future__ import annotations

import json

import pytest

from dispatcher.store import operational
from tests.support.node import SIGNING_SECRET_TEXT
from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Receiver
from tests.support.service import Service, running_service
from tests.support.waiting import until

ONE_TRY = {"retry_policy": {"max_attempts": 1}, "auto_disable": {"off": True}, "circuit_breaker": {"off": True}}
DEAD = "dispatcher.delivery.dead_lettered"
QUICK = {"operational_interval_s": "0.05"}


async def test_a_subscriber_by_name_is_told_of_a_dead_letter_and_one_by_star_is_not(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, **QUICK) as service:
        await service.tenant(require_registered_event_types=False)
        await service.endpoint("a", receiver.url("a"), event_types=("order.paid",), **ONE_TRY)
        await service.endpoint("all", receiver.url("all"), event_types=("*",))
        await service.endpoint("ops", receiver.url("ops"), event_types=(DEAD,))
        receiver.on("a", Answer(500, b"no"))
        await service.publish("lost")
        await receiver.wait_for(lambda: len(receiver.accepted("ops")) == 1)
        await receiver.wait_for(lambda: len(receiver.accepted("all")) == 1)
        await until(lambda: _none_is_left(service), 10)
    (told,) = receiver.of("ops")
    told.verify(SIGNING_SECRET_TEXT)
    assert told.headers["webhook-event-type"] == DEAD
    body = json.loads(told.body)
    assert body["endpoint"] == "tenants/acme/endpoints/a"
    assert (body["event_id"], body["sequence"], body["reason"]) == ("lost", 1, "ATTEMPTS_EXHAUSTED")
    assert (body["attempts"], body["last_status_code"]) == (1, 500)
    assert [r.event_id for r in receiver.of("all")] == ["lost"]


async def _none_is_left(service: Service) -> bool:
    return await service.database.fetchval("SELECT count(*) FROM operational_event") == 0


async def test_a_subscriber_that_fails_causes_no_further_event(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, **QUICK) as service:
        await service.tenant()
        types = ("dispatcher.*", "order.paid")
        await service.endpoint("a", receiver.url("a"), event_types=types, **ONE_TRY)
        receiver.default = Answer(500)
        await service.publish("lost")

        async def both_are_given_up() -> bool:
            return await service.database.fetchval("SELECT count(*) FROM dead_letter") == 2

        await until(both_are_given_up, 10)
        await service.publish("lost-too")

        async def all_are_given_up() -> bool:
            return await service.database.fetchval("SELECT count(*) FROM dead_letter") == 4

        await until(all_are_given_up, 10)
        assert await service.database.fetchval("SELECT count(*) FROM operational_event") == 0
        types_seen = await service.database.fetch("SELECT type FROM dead_letter ORDER BY seq")
    assert [row["type"] for row in types_seen] == ["order.paid", DEAD, "order.paid", DEAD]


async def test_killed_between_publishing_and_its_record_it_is_still_told_once(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Receiver() as receiver:
        with monkeypatch.context() as broken:

            async def never(*_: object) -> None:
                await until(no_end, 60)

            async def no_end() -> bool:
                return False

            broken.setattr(operational, "delete", never)
            async with running_service(database.dsn, **QUICK) as service:
                await service.tenant()
                await service.endpoint("a", receiver.url("a"), event_types=("order.paid",), **ONE_TRY)
                await service.endpoint("ops", receiver.url("ops"), event_types=(DEAD,))
                receiver.on("a", Answer(500))
                await service.publish("lost")
                await receiver.wait_for(lambda: len(receiver.accepted("ops")) == 1)
                await service.node.crash()
        async with running_service(database.dsn, **QUICK) as service:

            async def is_gone() -> bool:
                return await service.database.fetchval("SELECT count(*) FROM operational_event") == 0

            await until(is_gone, 10)
            events = await service.database.fetchval("SELECT count(*) FROM event WHERE type = $1", DEAD)
    assert events == 1


async def test_a_high_backlog_is_told_once(database: TestDatabase) -> None:
    high = {"backlog_high_rows": "5", "metrics_backlog_interval_s": "0.5"}
    async with Receiver() as receiver, running_service(database.dsn, **QUICK, **high) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), event_types=("order.paid",))
        await service.endpoint("ops", receiver.url("ops"), event_types=("dispatcher.backlog.high",))
        receiver.on("a", lambda _request: Answer(500))
        await service.publish(*[f"e-{i}" for i in range(8)])
        await receiver.wait_for(lambda: len(receiver.accepted("ops")) == 1)
        await until(lambda: _none_is_left(service), 10)  # the row goes after its event has been published
        watch = service.node.core.engine._backlog_watch  # a round more tells nothing new
        await watch.look()
        assert await _none_is_left(service)
        told = "SELECT count(*) FROM event WHERE type = 'dispatcher.backlog.high'"
        assert await service.database.fetchval(told) == 1
    assert json.loads(receiver.of("ops")[0].body)["backlog_count"] >= 5
