"""A failing key, or a failing event where there is no order, holds up nothing but its own; no restart forgets it."""

from __future__ import annotations

from collections import defaultdict

import pytest
from webhooks.v1 import endpoint_pb2

from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Receiver, Request
from tests.support.service import Service, running_service
from tests.support.waiting import until

SMALL = {"lane_rows_max": "16", "lane_parked_rows_max": "200", "circuit_attempts_min": "10000"}


async def publish_all(service: Service, count: int) -> None:
    """Of every ten events one is of the bad key."""
    for start in range(0, count, 10):
        await service.publish(*[f"good-{i}" for i in range(start, start + 5)], key="good")
        await service.publish(f"bad-{start}", key="bad")
        await service.publish(*[f"fair-{i}" for i in range(start, start + 4)], key="fair")


async def test_a_failing_key_parks_its_own_and_the_others_all_arrive(database: TestDatabase) -> None:
    is_broken = True
    good = {f"good-{i}" for start in range(0, 900, 10) for i in range(start, start + 5)}

    def decide(request: Request) -> Answer:
        return Answer(500 if is_broken and request.headers["webhook-ordering-key"] == "bad" else 204)

    async with Receiver() as receiver:
        receiver.on("a", decide)
        async with running_service(database.dsn, **SMALL) as service:
            await service.tenant()
            await service.endpoint(
                "a", receiver.url("a"), ordering_mode=endpoint_pb2.ORDERING_MODE_ORDERED_BY_KEY, max_in_flight=4
            )
            await publish_all(service, 900)
            await receiver.wait_for(lambda: good <= {r.event_id for r in receiver.accepted("a")}, timeout_s=60)
            status = await service.status("a")
            assert status.parked_count > 64  # more than stay in memory of one key
            assert status.settled_sequence < 10
            await service.node.crash()
        async with running_service(database.dsn, **SMALL) as service:
            await service.publish("bad-last", key="bad")
            is_broken = False
            await receiver.wait_for(lambda: len({r.event_id for r in receiver.accepted("a")}) == 901, timeout_s=60)
    by_key = defaultdict(list)
    for request in receiver.accepted("a"):
        by_key[request.headers["webhook-ordering-key"]].append(request.sequence)
    for key, sequences in by_key.items():
        firsts = list(dict.fromkeys(sequences))
        assert firsts == sorted(firsts), key


async def test_a_poison_event_holds_up_nothing_where_there_is_no_order(database: TestDatabase) -> None:
    poisons = {f"e-{i}" for i in range(0, 300, 60)}
    is_broken = True

    def decide(request: Request) -> Answer:
        return Answer(500 if is_broken and request.event_id in poisons else 204)

    async with Receiver() as receiver:
        receiver.on("a", decide)
        async with running_service(database.dsn, **SMALL, retry_schedule_s="0.2,0.2,0.2,1,1,1,1,1,1,1,1") as service:
            await service.tenant()
            await service.endpoint(
                "a", receiver.url("a"), ordering_mode=endpoint_pb2.ORDERING_MODE_UNORDERED, max_in_flight=4
            )
            for start in range(0, 300, 50):
                await service.publish(*[f"e-{i}" for i in range(start, start + 50)])
            await receiver.wait_for(lambda: len(receiver.accepted("a")) >= 295, timeout_s=60)
            await service.node.crash()
        is_broken = False
        async with running_service(database.dsn, **SMALL) as service:
            await receiver.wait_for(lambda: poisons <= {r.event_id for r in receiver.accepted("a")}, timeout_s=30)

            async def nothing_is_left() -> bool:
                status = await service.status("a")
                return status.backlog_count == 0 and status.parked_count == 0

            await until(nothing_is_left, 10)
    assert len({r.event_id for r in receiver.accepted("a")}) == 300


@pytest.mark.parametrize("mode", [endpoint_pb2.ORDERING_MODE_ORDERED_BY_KEY, endpoint_pb2.ORDERING_MODE_UNORDERED])
async def test_records_of_what_was_parked_go_once_it_is_done(database: TestDatabase, mode: int) -> None:
    is_broken = True

    def decide(request: Request) -> Answer:
        return Answer(500 if is_broken and request.event_id == "e-0" else 204)

    async with Receiver() as receiver, running_service(database.dsn, **SMALL) as service:
        receiver.on("a", decide)
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), ordering_mode=mode)
        await service.publish("e-0", key="k-0")
        for i in range(1, 60):
            await service.publish(f"e-{i}", key=f"k-{i}")
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 59, timeout_s=30)
        assert await service.database.fetchval("SELECT count(*) FROM parked") == 1
        is_broken = False
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 60, timeout_s=30)

        async def gone() -> bool:
            return await service.database.fetchval("SELECT count(*) FROM parked") == 0

        await until(gone, 10)
