"""The order of an orderly end, on a whole process, as everybody outside sees it:

NOT_SERVING ─> no send starts, leases given back but where one is in flight ─> it ends ─> its lease given back ─> calls
refused, the one in flight answered ─> telemetry flushed ─> connections to the database closed ─> exit 0

Each step is held up until the one before it has been seen.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from webhooks.admin.v1 import admin_pb2
from webhooks.v1 import tenant_pb2

from tests.support.callers import CALL_TIMEOUT_S, WAIT_S, Caller, calling, event, reason_of
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
            slow = (await _make_endpoints(caller, receiver, ["slow", "quick", "locked"]))["slow"]
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
            await until(lambda: _is_held(connection, {slow}), 10)
            assert receiver.in_flight["slow"] == 1, "its lease alone waits for it"

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


async def test_one_slow_receiver_holds_up_the_hand_over_of_no_other(
    database: TestDatabase, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """What is due to the others comes from the process that stays, while the slow one's attempt is still under way."""
    released = asyncio.Event()
    quick = [f"quick-{number}" for number in range(24)]
    with processes(database.dsn, tmp_path, 2, BOUNDS) as pair:
        async with calling(*pair) as callers, Receiver() as receiver:
            partitions = await _make_endpoints(callers[0], receiver, ["slow", *quick])
            slow = partitions["slow"]
            names = [name for name in quick if partitions[name] != slow]  # a partition is handed over as a whole
            receiver.on("slow", Hang(released))
            await until(lambda: _are_shared(connection), WAIT_S)
            leaving, leaver = await _owner_of(slow, callers, connection)
            await callers[leaving].publish(event("slow-1", type="slow"), event("slow-2", type="slow"))
            await receiver.wait_for(lambda: receiver.in_flight["slow"] == 1)

            pair[leaving].terminate()
            staying = callers[1 - leaving]
            for number, name in enumerate(names, start=1):
                await staying.publish(event(f"{name}-event", type=name))
                await receiver.wait_for(number)
            await until(lambda: _is_held(connection, {slow}, by=leaver), WAIT_S)
            for _ in range(20):
                assert await _is_held(connection, {slow}, by=leaver), "it takes no lease any more"
                await asyncio.sleep(0.05)
            assert receiver.in_flight["slow"] == 1
            assert pair[leaving].is_running()

            released.set()
            await receiver.wait_for(len(names) + 2)
            assert await pair[leaving].exit_code(20) == 0
        assert [(r.event_id, r.status) for r in receiver.of("slow")] == [("slow-1", 204), ("slow-2", 204)]
        assert [r.event_id for r in receiver.requests if r.endpoint != "slow"] == [f"{name}-event" for name in names]
        assert pair[0].troubles() + pair[1].troubles() == []


async def _make_endpoints(caller: Caller, receiver: Receiver, names: Sequence[str]) -> dict[str, int]:
    """One for the events of each type; returns the partition of each."""
    await caller.tenant()
    made = {name: await caller.endpoint(name, receiver.url(name), event_types=[name]) for name in names}
    return {name: UUID(endpoint.uid).bytes[-1] for name, endpoint in made.items()}


HELD = "SELECT partition FROM lease WHERE owner IS NOT NULL AND (owner = $1 OR $1 IS NULL)"


async def _is_held(connection: asyncpg.Connection, partitions: set[int], *, by: UUID | None = None) -> bool:
    """Whether these leases and no others are held, by this instance or by anyone."""
    return {row["partition"] for row in await connection.fetch(HELD, by)} == partitions


async def _are_shared(connection: asyncpg.Connection) -> bool:
    counts = await connection.fetch("SELECT count(*) AS held FROM lease WHERE owner IS NOT NULL GROUP BY owner")
    return [row["held"] for row in counts] == [128, 128]


async def _owner_of(partition: int, callers: Sequence[Caller], connection: asyncpg.Connection) -> tuple[int, UUID]:
    """Which of the callers' processes delivers for it, and that instance's id."""
    owner = await connection.fetchval("SELECT owner FROM lease WHERE partition = $1", partition)
    for number, caller in enumerate(callers):
        status = await caller.admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S)
        if status.instance == f"instances/{owner}":
            return number, owner
    raise AssertionError(f"{owner} is none of them")


async def _until_given_back(database: TestDatabase) -> None:
    """By another connection: the test's own is in a transaction."""
    connection = await database.connect()

    async def are_back() -> bool:
        return await _is_held(connection, set())

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
