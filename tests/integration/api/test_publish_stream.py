"""PublisherService.PublishStream: order, pipelining, what follows a failure, and the drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from webhooks.v1 import event_pb2, publisher_pb2

from dispatcher.api import publisher as servicer
from dispatcher.store.group_commit import GroupCommitLimits
from tests.support.api import Api, event, refusal_in, refused, serving
from tests.support.postgres import TestDatabase
from tests.support.tasks import until

Response = publisher_pb2.PublishStreamResponse


def request(sequence: int, *events: event_pb2.Event, tenant: str = "acme") -> publisher_pb2.PublishStreamRequest:
    return publisher_pb2.PublishStreamRequest(
        client_sequence=sequence, parent=f"tenants/{tenant}", events=events or [event(f"e-{sequence}")]
    )


async def exchange(api: Api, *requests: publisher_pb2.PublishStreamRequest) -> list[Response]:
    """Send all, half-close, and read all answers."""

    async def sent() -> AsyncIterator[publisher_pb2.PublishStreamRequest]:
        for one in requests:
            yield one

    async with asyncio.timeout(20):
        return [response async for response in api.publisher.PublishStream(sent())]


def codes(responses: list[Response]) -> list[int]:
    return [response.status.code for response in responses]


async def test_requests_are_committed_and_answered_in_the_order_sent(api: Api) -> None:
    await api.tenant()
    await api.endpoint()
    count = 3 * servicer.STREAM_WINDOW_REQUESTS
    responses = await exchange(api, *[request(i) for i in range(1, count + 1)])
    assert [r.client_sequence for r in responses] == list(range(1, count + 1))
    assert set(codes(responses)) == {0}
    assert responses[6].results[0].event == "tenants/acme/events/e-7"
    stored = await api.database.fetch("SELECT event_id FROM outbox ORDER BY seq")
    assert [row["event_id"] for row in stored] == [f"e-{i}" for i in range(1, count + 1)]


async def test_a_stream_is_answered_while_it_is_open(api: Api) -> None:
    await api.tenant()
    call = api.publisher.PublishStream()
    for sequence in (1, 5):
        await call.write(request(sequence))
        response = await asyncio.wait_for(call.read(), 5)
        assert (response.client_sequence, response.status.code) == (sequence, 0)
    await call.done_writing()
    assert await asyncio.wait_for(call.read(), 5) is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_after_a_bad_request_later_ones_are_aborted_and_not_written(api: Api) -> None:
    await api.tenant()
    bad = request(2, event("a.b"))
    responses = await exchange(api, request(1), bad, request(3), request(4, event("c.d")))
    assert codes(responses) == [0, 3, 10, 10]
    assert refusal_in(responses[1].status).fields == ["events[0].id"]
    assert {refusal_in(r.status).reason for r in responses[2:]} == {"STREAM_ABORTED"}
    assert await api.count("event") == 1


async def test_after_a_reused_id_later_ones_are_aborted_and_a_new_stream_goes_on(api: Api) -> None:
    await api.tenant()
    await api.publish(event("used"))
    responses = await exchange(api, request(1), request(2, event("used", b"other")), request(3))
    assert codes(responses) == [0, 6, 10]
    assert refusal_in(responses[1].status).reason == "EVENT_ID_REUSED"
    assert codes(await exchange(api, request(3))) == [0]
    assert await api.count("event") == 3


async def test_an_unknown_tenant_breaks_the_stream(api: Api) -> None:
    await api.tenant()
    responses = await exchange(api, request(1), request(2, tenant="nobody"), request(3))
    assert codes(responses) == [0, 5, 10]


@pytest.mark.parametrize("sequences", [(0,), (-1,), (1, 1), (5, 4)])
async def test_client_sequences_ascend_from_1(api: Api, sequences: tuple[int, ...]) -> None:
    await api.tenant()
    responses = await exchange(api, *[request(s, event()) for s in sequences])
    assert refusal_in(responses[-1].status).fields == ["client_sequence"]
    assert responses[-1].client_sequence == sequences[-1]


async def test_endpoints_made_meanwhile_get_what_is_committed_after(api: Api) -> None:
    """Stale routing sends a whole pipeline round again, in order."""
    await api.tenant()
    call = api.publisher.PublishStream()
    await call.write(request(1))
    await call.read()
    await api.endpoint()
    for sequence in range(2, 42):
        await call.write(request(sequence))
    await call.write(request(50, event("a.b")))
    responses = [await asyncio.wait_for(call.read(), 5) for _ in range(41)]
    assert codes(responses) == [0] * 40 + [3]
    stored = await api.database.fetch("SELECT event_id FROM outbox ORDER BY seq")
    assert [row["event_id"] for row in stored] == [f"e-{i}" for i in range(2, 42)]
    call.cancel()


async def test_no_more_than_the_window_is_read_ahead(database: TestDatabase) -> None:
    async with serving(database.options, limits=GroupCommitLimits(), writing=False, grpc_drain_s=0.1) as api:
        await api.tenant()
        call = api.publisher.PublishStream()

        async def send() -> None:
            for sequence in range(1, 4 * servicer.STREAM_WINDOW_REQUESTS):
                await call.write(request(sequence))

        sending = asyncio.create_task(send())
        await until(lambda: api.commits.queued_events == servicer.STREAM_WINDOW_REQUESTS, "a full window")
        for _ in range(200):
            await asyncio.sleep(0)
        assert api.commits.queued_events == servicer.STREAM_WINDOW_REQUESTS
        call.cancel()
        sending.cancel()


async def test_a_draining_server_answers_what_it_has_read_then_ends_the_stream(database: TestDatabase) -> None:
    async with serving(database.options, writing=False) as api:
        await api.tenant()
        call = api.publisher.PublishStream()
        for sequence in (1, 2, 3):
            await call.write(request(sequence))
        await until(lambda: api.commits.queued_events == 3, "three requests read")
        draining = asyncio.create_task(api.server.drain())
        refusal = await refused(api.publish(event("late")))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        writing = asyncio.create_task(api.commits.run())
        assert codes([await asyncio.wait_for(call.read(), 5) for _ in range(3)]) == [0, 0, 0]
        refusal = await refused(_to_the_end(call))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        await asyncio.wait_for(draining, 5)
        assert await api.count("event") == 3
        writing.cancel()


async def _to_the_end(call: Any) -> Any:
    while (response := await call.read()) is not grpc.aio.EOF:
        return response
    if await call.code() is grpc.StatusCode.OK:
        return None
    raise grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


async def test_a_caller_that_goes_away_leaves_nothing_running(api: Api) -> None:
    await api.tenant()
    before = len(asyncio.all_tasks())
    call = api.publisher.PublishStream()
    await call.write(request(1))
    await call.read()
    call.cancel()
    del call
    await until(lambda: len(asyncio.all_tasks()) <= before, "the stream's tasks to end")
    await asyncio.wait_for(api.server.drain(), 5)
