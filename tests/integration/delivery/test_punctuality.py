"""The delivery SLO's counters, on a real database and a real receiver: what is ours is told from what is not."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from webhooks.v1 import endpoint_pb2

from tests.support.forward_proxy import proxy
from tests.support.ports import closed_port
from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Hang, Receiver
from tests.support.service import NAME, Service, running_service
from tests.support.waiting import until

SOON: dict[str, Any] = {"slo_threshold_s": "5", "metrics_backlog_interval_s": "0.5"}
"""5 s: a busy machine must not make the good ones late."""
SMALL: dict[str, Any] = SOON | {"slo_threshold_s": "2", "lane_rows_max": "16"}
"""For what no first attempt is to be in time."""
PROXY = "egress_proxy_url"
BY: dict[str, Any] = SOON | {"egress_proxy_probe_interval_s": "0.05"}


def results(service: Service) -> dict[str, int]:
    counts = service.node.core.telemetry.instruments._slo_deliveries._counts
    return {result: count for result, count in counts.items() if count}


def late_age_s(service: Service) -> float:
    return service.node.core.telemetry.instruments.slo_late_age_s._points[0][0]


async def until_results(service: Service, wanted: dict[str, int]) -> None:
    async def are_there() -> bool:
        return results(service) == wanted

    try:
        await until(are_there, 30)
    except TimeoutError:
        raise AssertionError(f"{results(service)} in place of {wanted}") from None


async def until_older(age_s: float) -> None:
    """What has been accepted is older than that."""
    accepted_s = time.monotonic()

    async def are_older() -> bool:
        return time.monotonic() > accepted_s + age_s

    await until(are_older, age_s + 5)


def locked(database: TestDatabase, table: str, mode: str) -> AbstractAsyncContextManager[None]:
    """Somebody holds a table for as long as it is so."""
    return database.holding(f"LOCK TABLE {table} IN {mode} MODE")


async def test_an_outage_of_a_receiver_spends_no_budget(database: TestDatabase) -> None:
    patient = SOON | {"retry_min_s": "30", "retry_max_s": "60"}
    async with Receiver() as receiver, running_service(database.dsn, **patient) as service:
        receiver.on("down", lambda _request: Answer(500))
        await service.tenant()
        await service.endpoint("up", receiver.url("up"))
        await service.endpoint("down", receiver.url("down"))
        await service.publish("e-1", "e-2", "e-3")
        await until_results(service, {"good": 4, "excused": 2})
        assert late_age_s(service) == 0


async def test_a_receiver_that_the_egress_proxy_alone_does_not_reach_spends_no_budget(database: TestDatabase) -> None:
    """While others get through, it is the receiver's; the endpoint waits long after its first attempt that counts."""
    dead = closed_port()
    patient = {"retry_policy": {"exponential": {"min_backoff": {"seconds": 60}, "max_backoff": {"seconds": 60}}}}
    async with (
        proxy() as by,
        Receiver() as receiver,
        running_service(database.dsn, **BY | {PROXY: by.url, "slo_threshold_s": "8"}) as service,
    ):
        by.failing[dead] = b""
        await service.tenant()
        await service.endpoint("up", receiver.url("up"))
        await service.endpoint("dead", f"http://127.0.0.1:{dead}/", timeout={"nanos": 500_000_000}, **patient)
        await service.publish("e-1", "e-2", "e-3")
        await until_results(service, {"good": 4, "excused": 2})


async def test_an_outage_of_the_egress_proxy_spends_it(database: TestDatabase) -> None:
    async with proxy() as by, Receiver() as receiver, running_service(database.dsn, **BY | {PROXY: by.url}) as service:
        by.is_silent = True
        await service.tenant()
        for name, mode in (("one", "ORDERED"), ("other", "UNORDERED")):
            said = {"timeout": {"nanos": 200_000_000}, "ordering_mode": f"ORDERING_MODE_{mode}"}
            await service.endpoint(name, receiver.url(name), **said)
        await service.publish("e-1", "e-2", "e-3")
        await until_results(service, {"late": 6})


async def test_a_pause_spends_no_budget(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, **SOON) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        await service.endpoints.PauseEndpoint(endpoint_pb2.PauseEndpointRequest(name=NAME.format("a")))
        await service.publish("e-1", "e-2")
        await until_results(service, {"excused": 2})
        await service.endpoints.ResumeEndpoint(endpoint_pb2.ResumeEndpointRequest(name=NAME.format("a")))
        await receiver.wait_for(2)
        assert results(service) == {"excused": 2}


@pytest.mark.parametrize("mode", [endpoint_pb2.ORDERING_MODE_ORDERED, endpoint_pb2.ORDERING_MODE_UNORDERED])
async def test_a_pause_spends_no_budget_however_far_the_backlog_goes_beyond_the_window(
    database: TestDatabase, mode: endpoint_pb2.OrderingMode
) -> None:
    async with Receiver() as receiver, running_service(database.dsn, **SMALL) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), ordering_mode=mode)
        await service.endpoints.PauseEndpoint(endpoint_pb2.PauseEndpointRequest(name=NAME.format("a")))
        await service.publish(*(f"e-{n}" for n in range(20)))
        await until_results(service, {"excused": 16})
        await service.publish(*(f"f-{n}" for n in range(300)))
        await until_older(3)
        await service.endpoints.ResumeEndpoint(endpoint_pb2.ResumeEndpointRequest(name=NAME.format("a")))
        await receiver.wait_for(320)
        await until_results(service, {"excused": 320})


async def test_an_outage_spends_no_budget_however_far_the_backlog_goes_beyond_the_window(
    database: TestDatabase,
) -> None:
    outage = SMALL | {
        "retry_min_s": "0.2",
        "retry_max_s": "1",
        "lane_parked_rows_max": "32",
        "circuit_attempts_min": "10000",
    }
    async with Receiver() as receiver, running_service(database.dsn, **outage) as service:
        receiver.on("a", lambda _request: Answer(500))
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), ordering_mode=endpoint_pb2.ORDERING_MODE_UNORDERED)
        await service.publish(*(f"e-{n}" for n in range(300)))
        await until_older(4)
        receiver.on("a", lambda _request: Answer(200))
        await receiver.wait_for(lambda: len({request.event_id for request in receiver.accepted("a")}) == 300)

        async def are_counted() -> bool:
            return sum(results(service).values()) == 300

        await until(are_counted, 10)
        assert set(results(service)) <= {"good", "excused", "slow"}
        assert results(service)["excused"] > 200


async def test_a_receiver_that_takes_its_time_makes_the_others_slow(database: TestDatabase) -> None:
    answered = asyncio.Event()
    async with Receiver() as receiver, running_service(database.dsn, **SOON) as service:
        receiver.on("a", Hang(answered))
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        await service.publish("e-1", "e-2")
        await until_results(service, {"slow": 2})
        answered.set()
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 2)
        assert results(service) == {"slow": 2}


async def test_a_database_that_takes_no_record_is_late_for_as_long_as_it_lasts(database: TestDatabase) -> None:
    async with (
        Receiver() as receiver,
        running_service(database.dsn, flush_stall_s="0.1", lock_timeout_s="30", **SOON) as service,
    ):
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        async with locked(database, "attempt", "SHARE"):  # acknowledgements wait, and so does what comes after them
            await service.publish("e-1")
            await receiver.wait_for(1)
            await until(lambda: is_stalled(service), 5)
            await service.publish("e-2", "e-3")
            await until_results(service, {"good": 1, "late": 2})

            async def is_told() -> bool:
                return late_age_s(service) > 1

            await until(is_told, 10)
            assert len(receiver.requests) == 1
        await receiver.wait_for(3)
        assert results(service) == {"good": 1, "late": 2}, "their ends count no more"

        async def is_over() -> bool:
            return late_age_s(service) == 0

        await until(is_over, 5)


async def test_a_database_that_lets_nothing_be_read_shows_for_as_long_as_it_lasts(database: TestDatabase) -> None:
    answered = asyncio.Event()
    async with (
        Receiver() as receiver,
        running_service(database.dsn, lock_timeout_s="30", **SMALL) as service,
    ):
        receiver.on("a", Hang(answered))
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        await service.publish(*(f"e-{n}" for n in range(20)))
        await receiver.wait_for(lambda: len(receiver.requests) == 1)
        async with locked(database, "outbox", "ACCESS EXCLUSIVE"):
            answered.set()
            await receiver.wait_for(16)

            async def is_told() -> bool:
                return late_age_s(service) > 2

            await until(is_told, 15)
            assert len(receiver.requests) == 16
        await receiver.wait_for(20)

        async def are_counted() -> bool:
            return sum(results(service).values()) == 20 and late_age_s(service) == 0

        await until(are_counted, 10)
        assert results(service)["late"] >= 4


async def test_what_is_parked_untried_is_counted_once_and_spends_no_budget(database: TestDatabase) -> None:
    patient = SOON | {"slo_threshold_s": "30", "retry_min_s": "2", "retry_max_s": "2", "lane_rows_max": "16"}
    async with Receiver() as receiver, running_service(database.dsn, **patient) as service:
        receiver.on("a", lambda request: Answer(500 if request.event_id == "e-0" else 200))
        await service.tenant()
        by_key = endpoint_pb2.ORDERING_MODE_ORDERED_BY_KEY
        await service.endpoint("a", receiver.url("a"), ordering_mode=by_key)
        await service.publish(*(f"e-{n}" for n in range(12)), key="a")
        await service.publish(*(f"f-{n}" for n in range(40)), key="b")
        await until_results(service, {"good": 41, "excused": 11})
        receiver.on("a", lambda _request: Answer(200))
        await receiver.wait_for(lambda: len({request.event_id for request in receiver.accepted("a")}) == 52)
        assert results(service) == {"good": 41, "excused": 11}


async def is_stalled(service: Service) -> bool:
    flusher = service.node.core.engine.flusher
    return flusher.oldest_wait_s(asyncio.get_running_loop().time()) > 0.2
