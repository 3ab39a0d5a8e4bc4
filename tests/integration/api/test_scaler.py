"""KEDA's external scaler over a real channel: the fleet's load, from any instance."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

import grpc
import grpc.aio
import pytest
from externalscaler import externalscaler_pb2 as keda
from externalscaler import externalscaler_pb2_grpc as keda_grpc
from webhooks.v1 import endpoint_pb2

from dispatcher.api import scaler as scaler_module
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
    "lease_ttl_s": "3",
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


async def is_idle(scaler: keda_grpc.ExternalScalerAsyncStub) -> None:
    """Nothing is due: `busy` was, too, until it had its place."""

    async def is_so() -> bool:
        return not (await scaler.IsActive(REF, timeout=5)).result

    await until(is_so, SEEN_S)


@contextlib.asynccontextmanager
async def crowded(dsn: str, receiver: Receiver, **variables: str) -> AsyncIterator[tuple[Service, asyncio.Event]]:
    """A service with one place for attempts, which `busy`'s receiver holds until the event is set."""
    async with running_service(dsn, **QUICK, in_flight_max="1", **variables) as service:
        await service.tenant()
        released = asyncio.Event()
        receiver.on("busy", Hang(released))
        await service.endpoint("busy", receiver.url("busy"), event_types=("first",))
        await service.publish("e0", type="first")
        await receiver.wait_for(lambda: len(receiver.of("busy")) == 1)
        yield service, released
        released.set()


async def test_what_waits_for_a_place_is_told_and_for_how_long(database: TestDatabase) -> None:
    async with (
        Receiver() as receiver,
        crowded(database.dsn, receiver) as (service, released),
        scaler_of(service) as scaler,
    ):
        await service.endpoint("a", receiver.url("a"))
        await is_idle(scaler)
        await service.publish("e1", "e2", "e3")
        await becomes(scaler, 3)
        assert (await scaler.IsActive(REF, timeout=5)).result

        async def has_waited() -> bool:
            return await value(scaler, "s0-oldest_due_age") > 0

        await until(has_waited, SEEN_S)
        released.set()
        await becomes(scaler, 0)
        assert await value(scaler, "oldest_due_age") == 0


async def test_one_endpoint_adds_no_more_than_its_share(database: TestDatabase) -> None:
    async with (
        Receiver() as receiver,
        crowded(database.dsn, receiver) as (service, _),
        scaler_of(service) as scaler,
    ):
        for name in ("a", "b"):
            await service.endpoint(name, receiver.url(name))
        await service.publish(*[f"e{n}" for n in range(1, 10)])
        await becomes(scaler, 8)


async def test_paused_and_backing_off_work_is_not_due(database: TestDatabase) -> None:
    settings = {**QUICK, "in_flight_max": "1", "retry_min_s": "600", "retry_max_s": "600"}
    async with (
        Receiver() as receiver,
        running_service(database.dsn, **settings) as service,
        scaler_of(service) as scaler,
    ):
        await service.tenant()
        for name in ("paused", "failing", "busy", "due"):
            await service.endpoint(name, receiver.url(name), event_types=(name, "order.paid"))
        receiver.on("failing", Answer(500))
        receiver.on("busy", Hang(asyncio.Event()))
        pause = endpoint_pb2.PauseEndpointRequest(name="tenants/acme/endpoints/paused", reason="INC-1")
        await service.endpoints.PauseEndpoint(pause)
        await service.publish("e1", type="failing")
        await service.until_attempts("failing", 1)
        await service.publish("e2", type="busy")
        await receiver.wait_for(lambda: len(receiver.of("busy")) == 1)
        await service.publish("e3", "e4")
        await becomes(scaler, 2)
        assert (await service.status("failing")).backlog_count == 3


async def test_the_stream_tells_each_change(database: TestDatabase) -> None:
    async with (
        Receiver() as receiver,
        crowded(database.dsn, receiver) as (service, released),
        scaler_of(service) as scaler,
    ):
        await is_idle(scaler)
        stream = scaler.StreamIsActive(REF, timeout=3 * SEEN_S)
        assert not (await stream.read()).result
        await service.endpoint("a", receiver.url("a"))
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


def _is_owned_by(service: Service, endpoint: endpoint_pb2.Endpoint) -> bool:
    return UUID(endpoint.uid).bytes[-1] in service.node.core.engine.board.epochs


async def test_every_instance_tells_of_the_whole_fleet(database: TestDatabase) -> None:
    released = asyncio.Event()
    async with (
        Receiver() as receiver,
        running_service(database.dsn, **QUICK, in_flight_max="1") as one,
        running_service(database.dsn, **QUICK, in_flight_max="1") as other,
        scaler_of(one) as first,
        scaler_of(other) as second,
    ):

        async def is_shared() -> bool:
            return len(one.node.core.engine.board.epochs) == 128

        await until(is_shared, SEEN_S)
        await one.tenant()
        names = [f"e{number}" for number in range(8)]
        made = [await one.endpoint(name, receiver.url(name)) for name in names]
        for name in names:
            receiver.on(name, Hang(released))
        await one.publish("e1")
        places = len({_is_owned_by(one, endpoint) for endpoint in made})  # one each, of those that have endpoints
        await receiver.wait_for(lambda: len(receiver.requests) == places)
        for scaler in (first, second):
            await becomes(scaler, len(names) - places)
        released.set()


async def test_no_more_streams_are_taken_than_leave_room_for_others(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaler_module, "STREAMS_MAX", 2)
    async with running_service(database.dsn, **QUICK) as service, scaler_of(service) as scaler:
        streams = [scaler.StreamIsActive(REF, timeout=SEEN_S) for _ in range(2)]
        for stream in streams:
            await stream.read()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await scaler.StreamIsActive(REF, timeout=5).read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not (await scaler.IsActive(REF, timeout=5)).result
        streams[0].cancel()

        async def is_taken() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return not (await scaler.StreamIsActive(REF, timeout=5).read()).result
            return False

        await until(is_taken, SEEN_S)


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
