"""The operators' port of a supervisor, in front of a worker that answers and a place where none does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from webhooks.admin.v1 import admin_pb2, admin_pb2_grpc

from dispatcher.api.front import AdminFront, GuardInterceptor
from dispatcher.api.guard import Guard, Rates
from dispatcher.security.access import Access
from tests.support.api import STATUS, Api, channel_to, refused
from tests.support.ports import closed_port

INSTANCE = f"instances/{STATUS.instance_id}"


@pytest.fixture
async def targets(api: Api) -> list[str]:
    """The dead one is asked first."""
    api.control.last_drained.set()
    return [f"127.0.0.1:{closed_port()}", f"127.0.0.1:{api.server.admin_port}"]


@pytest.fixture
async def front(targets: list[str]) -> AsyncIterator[Any]:
    guard = Guard(Access(), Rates(1000, 1000), None)
    server, servicer = (
        grpc.aio.server(interceptors=[GuardInterceptor(guard, ())]),
        AdminFront(lambda: targets, drain_wait_s=1.0),
    )
    admin_pb2_grpc.add_AdminServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with channel_to(port) as channel:
        yield admin_pb2_grpc.AdminServiceStub(channel)
    await server.stop(0)
    await servicer.close()


async def test_the_status_is_told_of_those_that_answer(front: Any) -> None:
    together = await front.GetStatus(admin_pb2.GetStatusRequest())
    assert ([worker.instance for worker in together.workers], together.in_flight_count) == ([INSTANCE], 5)
    named = await front.GetStatus(admin_pb2.GetStatusRequest(instance=INSTANCE))
    assert (named.instance, len(named.workers)) == (INSTANCE, 0)


async def test_what_the_database_knows_is_told_by_any_that_answers(front: Any) -> None:
    assert len((await front.ListLeases(admin_pb2.ListLeasesRequest())).leases) == 256
    assert len((await front.ListInstances(admin_pb2.ListInstancesRequest())).instances) == 0
    refusal = await refused(front.ListLeases(admin_pb2.ListLeasesRequest(page_token="x")))
    assert refusal.fields == ["page_token"]


async def test_a_drain_of_all_fails_where_one_has_not_heard_of_it(front: Any, api: Api) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await front.Drain(admin_pb2.DrainRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert api.control.drains == 1


async def test_a_drain_of_one_is_no_affair_of_the_others(front: Any, api: Api) -> None:
    answer = await front.Drain(admin_pb2.DrainRequest(instance=INSTANCE))
    assert ([drained.name for drained in answer.instances], api.control.drains) == ([INSTANCE], 1)


async def test_an_instance_that_is_none_of_the_workers_is_refused_by_one_that_answers(
    front: Any, targets: list[str]
) -> None:
    del targets[0]
    refusal = await refused(front.Drain(admin_pb2.DrainRequest(instance="instances/other")))
    assert refusal.code is grpc.StatusCode.NOT_FOUND


async def test_where_no_worker_runs_the_refusal_says_so_and_when_to_ask_again(front: Any, targets: list[str]) -> None:
    targets.clear()
    for call in (front.GetStatus(admin_pb2.GetStatusRequest()), front.ListLeases(admin_pb2.ListLeasesRequest())):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "WORKERS_UNAVAILABLE")
        assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToSeconds() == 1


async def test_a_frozen_worker_does_not_keep_the_answers_of_the_others(front: Any, targets: list[str]) -> None:
    """Something listens and never answers, as a stopped process does."""
    silent = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    targets[0] = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with silent:
        status = await asyncio.wait_for(front.GetStatus(admin_pb2.GetStatusRequest()), 6)
        assert [worker.instance for worker in status.workers] == [INSTANCE]
        leases = await asyncio.wait_for(front.ListLeases(admin_pb2.ListLeasesRequest()), 6)
        assert len(leases.leases) == 256
        silent.close()
