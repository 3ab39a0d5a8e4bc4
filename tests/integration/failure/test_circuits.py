"""Rates, circuits, fallbacks: a receiver in trouble gets few attempts, and order is kept whichever URL is used."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Receiver
from tests.support.service import running_service
from tests.support.waiting import until

QUICK_CIRCUIT = {"min_attempts": 3, "open_duration": {"seconds": 1}}


async def test_an_open_circuit_costs_no_attempt_and_the_head_is_the_probe(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), circuit_breaker=QUICK_CIRCUIT)
        await service.endpoint(
            "ops", receiver.url("ops"), event_types=("dispatcher.circuit.opened", "dispatcher.circuit.closed")
        )
        receiver.on("a", Answer(500), Answer(500), Answer(500), Answer(500))
        await service.publish("one", "two")

        async def is_open() -> bool:
            return len((await service.status("a")).open_circuits) == 1

        await until(is_open, 5)
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 2)
        await receiver.wait_for(lambda: len(receiver.accepted("ops")) == 2)
    times = [request.at_s for request in receiver.of("a")]
    assert [r.event_id for r in receiver.of("a")] == ["one"] * 5 + ["two"]
    assert times[3] - times[2] >= 0.99  # open: nothing went out
    assert times[4] - times[3] >= 0.99  # the probe failed: once more
    told = [json.loads(request.body) for request in receiver.accepted("ops")]
    assert [event["type"] for event in told] == ["dispatcher.circuit.opened", "dispatcher.circuit.closed"]
    assert {event["endpoint"] for event in told} == {"tenants/acme/endpoints/a"}


@pytest.mark.parametrize(
    ("answer", "circuit"),
    [
        (Answer(429, headers={"Retry-After": "3600"}), {"off": True}),
        (Answer(500), {"min_attempts": 1, "open_duration": {"seconds": 600}}),
    ],
    ids=["Retry-After", "open circuit"],
)
async def test_a_retry_by_hand_waits_neither_for_an_open_circuit_nor_for_retry_after(
    database: TestDatabase, answer: Answer, circuit: dict[str, Any]
) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        schedule = {"schedule": {"waits": [{"seconds": 3600}]}}
        await service.endpoint("a", receiver.url("a"), retry_policy=schedule, circuit_breaker=circuit)
        receiver.on("a", answer)
        await service.publish("one")
        await service.until_attempts("a", 1, 1)
        await service.retry("a", 1)
        await receiver.wait_for(2, timeout_s=10)


async def test_fallbacks_are_used_in_turn_in_order_and_left_when_the_first_is_back(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint(
            "a",
            receiver.url("main"),
            fallbacks=(receiver.url("second"), receiver.url("third")),
            circuit_breaker=QUICK_CIRCUIT,
        )
        is_down = True
        receiver.on("main", lambda _request: Answer(500 if is_down else 204))
        receiver.on("second", *[Answer(500)] * 3)
        await service.publish("one", "two")
        await receiver.wait_for(lambda: len(receiver.accepted("third")) == 2)
        is_down = False

        async def is_back() -> bool:
            await service.publish(f"more-{len(receiver.requests)}")
            return len(receiver.accepted("main")) > 0

        await until(is_back, 10)
        first = await service.attempts("a", 1)
    assert [attempt.url_index for attempt in first] == [0, 0, 0, 1, 1, 1, 2]
    accepted = [r.sequence for r in receiver.requests if r.is_accepted]
    assert accepted == sorted(accepted)


async def test_a_rate_limit_holds_though_lanes_come_and_go(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), rate_limit={"per_second": 5, "burst": 2})
        published = []
        for i in range(8):
            published.append(time.monotonic())
            await service.publish(f"e-{i}")
            await receiver.wait_for(lambda i=i: len(receiver.accepted("a")) == i + 1)
    times = [request.at_s for request in receiver.of("a")]
    for i in range(len(times)):
        for j in range(i + 3, len(times)):
            assert times[j] - published[i] >= (j - i + 1 - 2) / 5 - 0.001  # not sent before, however late it arrives


async def test_429_slows_an_endpoint_down_and_success_lets_it_recover(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, throttle_recovery_s="4") as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), rate_limit={"per_second": 8}, circuit_breaker={"off": True})
        receiver.on("a", Answer(429))
        await service.publish(*[f"e-{i}" for i in range(30)])

        async def is_slowed() -> bool:
            return 0 < (await service.status("a")).throttled_per_second < 8

        await until(is_slowed, 5)
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 30)

        async def is_free() -> bool:
            return (await service.status("a")).throttled_per_second == 0

        await until(is_free, 5)
