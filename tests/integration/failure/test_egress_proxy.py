"""The service's own way out fails: that is nobody's attempt, and nobody is given up, disabled or passed over for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from webhooks.v1 import attempt_pb2, delivery_pb2

from tests.support.forward_proxy import Proxy, proxy
from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Receiver, Request
from tests.support.service import NAME, Service, running_service
from tests.support.waiting import until

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
TWO_TRIES = {
    "retry_policy": {"max_attempts": 2},
    "circuit_breaker": {"min_attempts": 2, "open_duration": {"seconds": 60}},
}
PROXY, HTTP = attempt_pb2.ATTEMPT_OUTCOME_EGRESS_PROXY_FAILED, attempt_pb2.ATTEMPT_OUTCOME_HTTP_ERROR
OK = attempt_pb2.ATTEMPT_OUTCOME_SUCCEEDED


@asynccontextmanager
async def service_behind(by: Proxy, database: TestDatabase) -> AsyncIterator[Service]:
    async with running_service(database.dsn, egress_proxy_url=by.url) as service:
        yield service


async def until_asked(by: Proxy, count: int) -> None:
    """Wait until the proxy has been asked so many more times."""
    wanted = len(by.asked) + count

    async def is_so() -> bool:
        return len(by.asked) >= wanted

    await until(is_so, 10)


async def test_a_proxy_that_fails_uses_up_no_attempt_and_opens_no_circuit(database: TestDatabase) -> None:
    async with proxy() as by, Receiver() as receiver, service_behind(by, database) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), **TWO_TRIES)
        receiver.on("a", Answer(500), Answer(204))
        by.answer = BUSY
        await service.publish("one", "two")
        await until_asked(by, 6)
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
    assert len(own) >= 6
    assert {(a.attempt_number, a.error) for a in own} == {(0, "the egress proxy answered 503")}
    assert (delivery.attempt_count, delivery.state) == (2, delivery_pb2.Delivery.STATE_DELIVERED)
    assert [(r.event_id, r.attempt) for r in receiver.of("a")] == [("one", 1), ("one", 2), ("two", 1)]


async def test_the_next_owner_counts_what_reached_the_receiver_and_no_more(database: TestDatabase) -> None:
    async with proxy() as by, Receiver() as receiver:

        def fail_and_shut(_: Request) -> Answer:
            by.answer = BUSY  # before the answer, so that no retry slips through
            return Answer(500, headers={"connection": "close"})

        receiver.default = fail_and_shut
        async with service_behind(by, database) as service:
            await service.tenant()
            await service.endpoint("a", receiver.url("a"), **TWO_TRIES)
            by.answer = BUSY
            await service.publish("one")
            await until_asked(by, 3)
            by.answer = b""
            await receiver.wait_for(1)
            await until_asked(by, 3)
            await service.until_attempts("a", 7, seq=1)
            await service.node.crash()
        by.answer = b""
        async with service_behind(by, database) as service:
            await receiver.wait_for(2)

            async def is_given_up() -> bool:
                return bool(await service.database.fetchval("SELECT count(*) FROM dead_letter"))

            await until(is_given_up, 10)
            assert await service.database.fetchval("SELECT attempts FROM dead_letter") == 2
    assert [request.attempt for request in receiver.of("a")] == [1, 2]
