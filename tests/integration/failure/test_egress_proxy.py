"""The service's own way out fails: that is nobody's attempt, and nobody is given up, disabled or passed over for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from webhooks.v1 import attempt_pb2, delivery_pb2, endpoint_pb2

from tests.support.forward_proxy import Proxy, proxy
from tests.support.ports import closed_port
from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Receiver, Request
from tests.support.service import NAME, Service, running_service
from tests.support.waiting import until

SILENCE = b""
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
TWO_TRIES = {
    "retry_policy": {"max_attempts": 2},
    "circuit_breaker": {"min_attempts": 2, "open_duration": {"seconds": 60}},
}
PROXY, HTTP = attempt_pb2.ATTEMPT_OUTCOME_EGRESS_PROXY_FAILED, attempt_pb2.ATTEMPT_OUTCOME_HTTP_ERROR
OK, TIMEOUT = attempt_pb2.ATTEMPT_OUTCOME_SUCCEEDED, attempt_pb2.ATTEMPT_OUTCOME_TIMEOUT
REFUSED = attempt_pb2.ATTEMPT_OUTCOME_CONNECTION_FAILED
SHORT = {"timeout": {"nanos": 200_000_000}}
GIVEN_UP = "SELECT count(*) FROM dead_letter"


@asynccontextmanager
async def service_behind(by: Proxy, database: TestDatabase, **settings: str) -> AsyncIterator[Service]:
    settings.setdefault("egress_proxy_probe_interval_s", "0.05")
    async with running_service(database.dsn, egress_proxy_url=by.url, **settings) as service:
        yield service


async def until_asked(by: Proxy, count: int) -> None:
    """Wait until the proxy has been asked so many more times."""
    wanted = len(by.asked) + count

    async def is_so() -> bool:
        return len(by.asked) >= wanted

    await until(is_so, 30)


async def test_a_proxy_that_fails_uses_up_no_attempt_and_opens_no_circuit(database: TestDatabase) -> None:
    async with proxy() as by, Receiver() as receiver, service_behind(by, database) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), **TWO_TRIES)
        receiver.on("a", Answer(500), Answer(204))
        by.answer = BUSY
        await service.publish("one", "two")
        await until_asked(by, 6)

        async def is_blocked() -> bool:
            return bool((await service.status("a")).blocked_by.delivery)

        await until(is_blocked, 10)  # its record is flushed
        status = await service.status("a")
        blocked = status.blocked_by
        assert (blocked.delivery.rpartition("/")[2], blocked.last_attempt.outcome) == ("1", PROXY)
        assert list(status.open_circuits) == []
        by.answer = b""
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 2)
        found = await service.until_delivered("a", 1)
        request = delivery_pb2.GetDeliveryRequest(name=f"{NAME.format('a')}/deliveries/1")
        delivery = await service.deliveries.GetDelivery(request)
    counted = [(a.attempt_number, a.outcome) for a in found if a.outcome != PROXY]
    assert counted == [(1, HTTP), (2, OK)]
    own = [a for a in found if a.outcome == PROXY]
    assert [(a.attempt_number, a.error) for a in own] == [(0, "the egress proxy answered 503")], "one in five minutes"
    assert (delivery.attempt_count, delivery.state) == (2, delivery_pb2.Delivery.STATE_DELIVERED)
    assert [(r.event_id, r.attempt) for r in receiver.of("a")] == [("one", 1), ("one", 2), ("two", 1)]


async def test_the_next_owner_counts_what_reached_the_receiver_and_no_more(database: TestDatabase) -> None:
    async with proxy() as by, Receiver() as receiver:

        def fail_and_shut(_: Request) -> Answer:
            by.answer = BUSY  # before the answer, so that no retry slips through
            return Answer(500, headers={"connection": "close"})

        receiver.default = fail_and_shut
        async with service_behind(by, database, egress_proxy_record_interval_s="0.01") as service:
            await service.tenant()
            await service.endpoint("a", receiver.url("a"), **TWO_TRIES)
            by.answer = BUSY
            await service.publish("one")
            await until_asked(by, 3)
            by.answer = b""
            await receiver.wait_for(1)
            await until_asked(by, 3)

            async def is_counted() -> bool:
                return HTTP in {attempt.outcome for attempt in await service.attempts("a", 1)}

            await until(is_counted, 10)
            await service.node.crash()
        by.answer = b""
        async with service_behind(by, database) as service:
            await receiver.wait_for(2)

            async def is_given_up() -> bool:
                return bool(await service.database.fetchval("SELECT count(*) FROM dead_letter"))

            await until(is_given_up, 10)
            assert await service.database.fetchval("SELECT attempts FROM dead_letter") == 2
    assert [request.attempt for request in receiver.of("a")] == [1, 2]


@pytest.mark.parametrize(("answer", "outcome"), [(SILENCE, TIMEOUT), (BUSY, REFUSED)])
@pytest.mark.parametrize("mode", ["ORDERED", "ORDERED_BY_KEY", "UNORDERED"])
async def test_a_receiver_that_the_proxy_does_not_reach_while_others_get_through_uses_up_its_attempts(
    answer: bytes, outcome: int, mode: str, database: TestDatabase
) -> None:
    """And an ordered endpoint goes on with the next one, once a delivery is given up."""
    dead = closed_port()
    said = {
        "retry_policy": {"max_attempts": 2},
        "timeout": {"nanos": 200_000_000},
        "ordering_mode": f"ORDERING_MODE_{mode}",
    }
    async with proxy() as by, Receiver() as receiver, service_behind(by, database) as service:
        by.failing[dead] = answer
        await service.tenant()
        await service.endpoint("well", receiver.url("well"))
        await service.endpoint("dead", f"http://127.0.0.1:{dead}/", **said)
        await service.publish("one", "two")

        async def both_are_given_up() -> bool:
            return await service.database.fetchval(GIVEN_UP) == 2

        await until(both_are_given_up, 30)
        assert len(receiver.accepted("well")) == 2

        async def counted_attempts() -> list[Any]:
            return [a for a in await service.attempts("dead") if a.outcome != PROXY]

        async def are_flushed() -> bool:
            return len(await counted_attempts()) == 4

        await until(are_flushed)
        counted = await counted_attempts()
        assert {a.outcome for a in counted} == {outcome}
        assert sorted(a.attempt_number for a in counted) == [1, 1, 2, 2]
        assert await service.database.fetchval("SELECT array_agg(attempts ORDER BY seq) FROM dead_letter") == [2, 2]


async def test_while_the_proxy_is_silent_for_all_no_attempt_is_used_up_and_one_is_made_at_a_time(
    database: TestDatabase,
) -> None:
    unordered = {
        "timeout": {"nanos": 400_000_000},
        "retry_policy": {"max_attempts": 10},
        "ordering_mode": endpoint_pb2.ORDERING_MODE_UNORDERED,
    }
    async with proxy() as by, Receiver() as receiver, service_behind(by, database) as service:
        receiver.default = Answer(204, headers={"connection": "close"})
        await service.tenant()
        for name in ("a", "b"):
            await service.endpoint(name, receiver.url(name), **unordered)
        await service.publish("one")
        await receiver.wait_for(2)
        by.is_silent, fell_silent = True, datetime.now(UTC)
        await service.publish(*(f"e{number}" for number in range(10)))
        await until_asked(by, 36)  # all of them side by side, then one by one, and probes
        by.waiting_max = by.waiting
        await until_asked(by, 12)
        assert by.waiting_max <= 3, "one to each endpoint, and a probe"
        assert await service.database.fetchval(GIVEN_UP) == 0
        works_again = datetime.now(UTC)
        by.is_silent = False
        await receiver.wait_for(22, timeout_s=30)
        # On a slow machine an attempt may be too slow before or afterwards: that one counts.
        meanwhile = [
            a
            for name in ("a", "b")
            for a in await service.attempts(name)
            if fell_silent <= a.start_time.ToDatetime(UTC) < works_again
        ]
        assert [a.outcome for a in meanwhile if a.outcome != OK] == [PROXY] * 2, "one of each endpoint is on record"
