"""KEDA's external scaler over a real channel: the fleet's load, from any instance."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from externalscaler import externalscaler_pb2 as keda
from externalscaler import externalscaler_pb2_grpc as keda_grpc
from webhooks.v1 import endpoint_pb2

from dispatcher.api.scaler import ScalerServer
from dispatcher.app import fleet_load
from dispatcher.errors import UnavailableError
from dispatcher.model import FleetLoad
from tests.support.api import channel_to
from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Hang, Receiver
from tests.support.service import Service, running_service
from tests.support.waiting import until

QUICK = {
    "scaler_listen": "127.0.0.1:0",
    "scaler_interval_s": "0.1",
    "metrics_backlog_interval_s": "0.5",
    "lease_ttl_s": "1.5",
    "lease_send_margin_s": "0.2",
    "due_endpoint_rows_max": "4",
}
REF = keda.ScaledObjectRef(name="dispatcher", namespace="webhooks", scalerMetadata={"dueBacklogPerInstance": "2.5"})
SEEN_S = 15.0
"""A measure, a heartbeat, a read."""


@contextlib.asynccontextmanager
async def scaler_of(service: Service) -> AsyncIterator[keda_grpc.ExternalScalerAsyncStub]:
    core = service.node.core
    async with ScalerServer(core.settings, fleet_load(core)) as server:
        assert server.port is not None
        async with channel_to(server.port) as channel:
            yield keda_grpc.ExternalScalerStub(channel)


async def value(scaler: keda_grpc.ExternalScalerAsyncStub, metric: str) -> float:
    answer = await scaler.GetMetrics(keda.GetMetricsRequest(scaledObjectRef=REF, metricName=metric), timeout=5)
    (told,) = answer.metricValues
    assert told.metricName == metric
    assert told.metricValue >= told.metricValueFloat
    return told.metricValueFloat


async def becomes(scaler: keda_grpc.ExternalScalerAsyncStub, due: int) -> None:
    async def is_so() -> bool:
        return await value(scaler, "due_backlog") == due

    await until(is_so, SEEN_S)


async def test_what_is_due_is_told_and_how_late_it_is(database: TestDatabase) -> None:
    released = asyncio.Event()
    async with (
        Receiver() as receiver,
        running_service(database.dsn, **QUICK) as service,
        scaler_of(service) as scaler,
    ):
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        receiver.on("a", Hang(released))
        assert not (await scaler.IsActive(REF, timeout=5)).result
        await service.publish("e1", "e2", "e3")
        await becomes(scaler, 3)
        assert (await scaler.IsActive(REF, timeout=5)).result
        assert 0 < await value(scaler, "s0-oldest_due_age") < 2 * SEEN_S
        released.set()
        await becomes(scaler, 0)
        assert await value(scaler, "oldest_due_age") == 0


async def test_one_endpoint_adds_no_more_than_its_share(database: TestDatabase) -> None:
    released = asyncio.Event()
    async with (
        Receiver() as receiver,
        running_service(database.dsn, **QUICK) as service,
        scaler_of(service) as scaler,
    ):
        await service.tenant()
        for name in ("a", "b"):
            await service.endpoint(name, receiver.url(name))
            receiver.on(name, Hang(released))
        await service.publish(*[f"e{n}" for n in range(9)])
        await becomes(scaler, 8)
        released.set()


async def test_paused_and_backing_off_work_is_not_due(database: TestDatabase) -> None:
    released = asyncio.Event()
    slow_retry = {"retry_min_s": "600", "retry_max_s": "600"}
    async with (
        Receiver() as receiver,
        running_service(database.dsn, **QUICK, **slow_retry) as service,
        scaler_of(service) as scaler,
    ):
        await service.tenant()
        for name in ("paused", "failing", "due"):
            await service.endpoint(name, receiver.url(name))
        receiver.on("failing", Answer(500))
        receiver.on("due", Hang(released))
        pause = endpoint_pb2.PauseEndpointRequest(name="tenants/acme/endpoints/paused", reason="INC-1")
        await service.endpoints.PauseEndpoint(pause)
        await service.publish("e1", "e2")
        await becomes(scaler, 2)
        released.set()
        await becomes(scaler, 0)
        assert (await service.status("failing")).backlog_count == 2


async def test_the_stream_tells_each_change(database: TestDatabase) -> None:
    released = asyncio.Event()
    async with (
        Receiver() as receiver,
        running_service(database.dsn, **QUICK) as service,
        scaler_of(service) as scaler,
    ):
        stream = scaler.StreamIsActive(REF, timeout=3 * SEEN_S)
        assert not (await stream.read()).result
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        receiver.on("a", Hang(released))
        await service.publish("e1")
        assert (await stream.read()).result
        released.set()
        assert not (await stream.read()).result


async def test_a_stream_ends_in_good_order_with_its_server(database: TestDatabase) -> None:
    async with running_service(database.dsn, **QUICK) as service:
        core = service.node.core
        server = ScalerServer(core.settings, fleet_load(core))
        async with contextlib.AsyncExitStack() as stack:
            async with server:
                assert server.port is not None
                channel = await stack.enter_async_context(channel_to(server.port))
                stream = keda_grpc.ExternalScalerStub(channel).StreamIsActive(REF, timeout=SEEN_S)
                await stream.read()
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() is grpc.StatusCode.OK


async def test_every_instance_tells_of_the_whole_fleet(database: TestDatabase) -> None:
    released = asyncio.Event()
    async with (
        Receiver() as receiver,
        running_service(database.dsn, **QUICK) as one,
        running_service(database.dsn, **QUICK) as other,
        scaler_of(one) as first,
        scaler_of(other) as second,
    ):

        async def is_shared() -> bool:
            return len(one.node.core.engine.board.epochs) == 128

        await until(is_shared, SEEN_S)
        await one.tenant()
        for number in range(8):
            await one.endpoint(f"e{number}", receiver.url(f"e{number}"))
            receiver.on(f"e{number}", Hang(released))
        await one.publish("e1")
        for scaler in (first, second):
            await becomes(scaler, 8)
        age_s, told = one.node.core.engine.describe().due_age_s, await value(first, "oldest_due_age")
        assert told > age_s  # times two instances, and a little later
        released.set()


async def test_nothing_is_told_while_the_database_is_away(database: TestDatabase) -> None:
    async with running_service(database.dsn, **QUICK) as service:
        core = service.node.core

        async def away() -> FleetLoad:
            raise UnavailableError("the database is away")

        async with ScalerServer(core.settings, away) as server:
            assert server.port is not None
            async with channel_to(server.port) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await keda_grpc.ExternalScalerStub(channel).IsActive(REF, timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_targets_come_from_the_triggers_metadata(database: TestDatabase) -> None:
    async with running_service(database.dsn, **QUICK) as service, scaler_of(service) as scaler:
        answer = await scaler.GetMetricSpec(REF, timeout=5)
        specs = {spec.metricName: (spec.targetSize, spec.targetSizeFloat) for spec in answer.metricSpecs}
        assert specs == {"due_backlog": (3, 2.5), "oldest_due_age": (60, 60.0)}
        wrong = keda.ScaledObjectRef(scalerMetadata={"oldestDueAgeMaxS": "soon"})
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await scaler.GetMetricSpec(wrong, timeout=5)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await value(scaler, "cpu")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
