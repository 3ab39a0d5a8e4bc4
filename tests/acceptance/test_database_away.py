"""PostgreSQL dies in the middle of a stream and comes back: everything resumes by itself, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

from dispatcher.embedded.postgres import EmbeddedPostgres
from tests.support.callers import WAIT_S, Caller, SteadyPublisher, calling
from tests.support.process import Served, processes
from tests.support.promises import assert_order_and_copies, failing_now_and_then, has_all
from tests.support.receiver import Receiver
from tests.support.waiting import until

ENDPOINTS = ["a", "b", "c"]
AWAY_S = 2.0
SERVICE = "webhooks.v1.PublisherService"


async def test_a_stream_survives_crashes_of_the_database_short_and_long(
    crashable_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    variables = {"DISPATCHER_DATABASE_AWAY_S": str(AWAY_S)}
    with processes(crashable_postgres.dsn, tmp_path, 1, variables) as (served,):
        async with calling(served) as (caller,), Receiver() as receiver, _watched(served) as unready:
            receiver.default = failing_now_and_then(0.05, delay_s=0.002)
            await caller.tenant()
            for name in ENDPOINTS:
                await caller.endpoint(name, receiver.url(name))
            publishers = [SteadyPublisher(f"p{i}", [caller]) for i in range(2)]
            async with publishers[0].streaming(), publishers[1].streaming():
                await receiver.wait_for(150, timeout_s=WAIT_S)
                blip_at = time.monotonic()
                await crashable_postgres.kill()
                await crashable_postgres.start()
                await _flows_again(served, receiver)
                blips = [at for at in unready if at < blip_at + AWAY_S]
                killed_at = time.monotonic()
                await crashable_postgres.kill()
                await until(lambda: _is_out_of_service(caller, served), WAIT_S)
                turned_s = time.monotonic() - killed_at
                await crashable_postgres.start()
                await _flows_again(served, receiver)
            await receiver.wait_for(has_all(receiver, ENDPOINTS, publishers), timeout_s=WAIT_S)
    assert blips == [], "a blip unroutes nobody"
    assert turned_s >= AWAY_S, "health has a grace"
    for publisher in publishers:
        assert set(publisher.refusals) <= {"DATABASE_UNAVAILABLE", "COMMIT_UNKNOWN"}
        assert publisher.longest_s > AWAY_S / 2, "the publisher never noticed"
    for name in ENDPOINTS:
        assert_order_and_copies(receiver, name, publishers)
    assert served.troubles() == []


async def _flows_again(served: Served, receiver: Receiver) -> None:
    """Ready, publishing and delivering, without anybody's help."""
    before = len(receiver.requests)
    await receiver.wait_for(lambda: len(receiver.requests) > before + 100, timeout_s=WAIT_S)

    async def is_ready() -> bool:
        return await asyncio.to_thread(served.readiness) == 200

    await until(is_ready, WAIT_S)


async def _is_out_of_service(caller: Caller, served: Served) -> bool:
    """Both by /readyz and by grpc.health.v1."""
    health = health_pb2_grpc.HealthStub(caller.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    ready = await asyncio.to_thread(served.readiness)
    return ready == 503 and answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


@contextlib.asynccontextmanager
async def _watched(served: Served) -> AsyncIterator[list[float]]:
    """The times at which /readyz said no, by the monotonic clock."""
    unready: list[float] = []

    async def watch() -> None:
        while True:
            asked_at = time.monotonic()
            if await asyncio.to_thread(served.readiness) != 200:
                unready.append(asked_at)
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        yield unready
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
