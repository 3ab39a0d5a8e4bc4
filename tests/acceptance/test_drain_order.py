"""The order of an orderly end, on a whole process, as everybody outside sees it:

NOT_SERVING ─> no send starts ─> the one in flight ends ─> leases given back ─> calls refused, the one in flight
answered ─> telemetry flushed ─> connections to the database closed ─> exit 0

Each step is held up until the one before it has been seen.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from webhooks.v1 import tenant_pb2

from tests.support.callers import Caller, calling, event, reason_of
from tests.support.otlp import OtlpSink
from tests.support.postgres import TestDatabase
from tests.support.process import processes
from tests.support.receiver import Hang, Receiver
from tests.support.waiting import until

SERVICE = "webhooks.v1.PublisherService"
BOUNDS = {
    "DISPATCHER_DELIVERY_DRAIN_S": "20",
    "DISPATCHER_GRPC_DRAIN_S": "20",
    "DISPATCHER_TELEMETRY_FLUSH_TIMEOUT_S": "20",
    "DISPATCHER_LOCK_TIMEOUT_S": "20",
    "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
    "OTEL_BSP_SCHEDULE_DELAY": "3600000",
}
"""No bound is to end a step before the test does, and telemetry leaves at the end alone."""


class HeldSink(OtlpSink):
    """Lets nothing in before `opened` is set; `reached` tells that something wants in."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.opened = threading.Event(), threading.Event()

    def keep(self, into: list[Any], received: Any) -> None:
        self.reached.set()
        self.opened.wait(20)
        super().keep(into, received)


async def test_each_step_of_the_end_waits_for_the_one_before(
    database: TestDatabase, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    released = asyncio.Event()
    with HeldSink() as sink, processes(database.dsn, tmp_path, 1, {**sink.environ, **BOUNDS}) as (served,):
        async with calling(served) as (caller,), Receiver() as receiver:
            await _make_endpoints(caller, receiver)
            receiver.on("slow", Hang(released))
            watch = health_pb2_grpc.HealthStub(caller.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
                pass  # /readyz was a moment earlier
            await caller.publish(event("in-flight", type="slow"))
            await receiver.wait_for(lambda: receiver.in_flight["slow"] == 1)

            served.terminate()
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await asyncio.to_thread(served.readiness) == 503
            await caller.publish(event("answered-still", type="quick"))
            assert await _leases(connection) == 256, "they wait for what is in flight"

            locked = connection.transaction()
            await locked.start()
            await connection.execute("SELECT FROM endpoint WHERE name = 'locked' FOR UPDATE")
            call = asyncio.ensure_future(caller.publish(event("in-the-call", type="locked")))
            await _until_waiting(database)
            released.set()

            await _until_given_back(database)
            assert [request.event_id for request in receiver.requests] == ["in-flight"], "no send has started"
            await _until_refused(caller)
            assert not call.done()
            assert not sink.reached.is_set()
            await locked.rollback()
            (result,) = await call
            assert (result.event_id, result.endpoint_count) == ("in-the-call", 1), "a call that was taken is answered"

            await asyncio.to_thread(sink.reached.wait, 20)
            assert await _connections(connection) > 0, "the pool is closed after telemetry"
            assert served.is_running()
            sink.opened.set()
            assert await served.exit_code(20) == 0

            async def has_closed_its_pool() -> bool:  # a backend ends a moment after its client
                return await _connections(connection) == 0

            await until(has_closed_its_pool, 10)
            assert {m.name for m in sink.metrics} > {"dispatcher.delivery.latency"}

            await served.started()
            await receiver.wait_for(3)
        assert [(r.event_id, r.status) for r in receiver.requests if r.endpoint == "slow"] == [("in-flight", 204)]
        assert {r.event_id for r in receiver.requests} == {"in-flight", "answered-still", "in-the-call"}
        assert served.troubles() == []


async def _make_endpoints(caller: Caller, receiver: Receiver) -> None:
    await caller.tenant()
    for name in ("slow", "quick", "locked"):
        await caller.endpoint(name, receiver.url(name), event_types=[name])


async def _leases(connection: asyncpg.Connection) -> int:
    return await connection.fetchval("SELECT count(*) FROM lease WHERE owner IS NOT NULL")


async def _until_given_back(database: TestDatabase) -> None:
    """By another connection: the test's own is in a transaction."""
    connection = await database.connect()

    async def are_back() -> bool:
        return await _leases(connection) == 0

    try:
        await until(are_back, 10)
    finally:
        await connection.close()


async def _until_waiting(database: TestDatabase) -> None:
    """Until a publish waits for a lock of the test's."""
    connection = await database.connect()

    async def does() -> bool:
        return bool(
            await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )

    try:
        await until(does, 10)
    finally:
        await connection.close()


async def _until_refused(caller: Caller) -> None:
    async def is_so() -> bool:
        try:
            await caller.tenants.GetTenant(tenant_pb2.GetTenantRequest(name="tenants/acme"), timeout=5)
        except grpc.aio.AioRpcError as error:
            return (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        return False

    await until(is_so, 10)


async def _connections(connection: asyncpg.Connection) -> int:
    """Those of the process: the test's own are one."""
    return await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
