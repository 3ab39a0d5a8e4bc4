"""Endpoints that are changed while events wait for them, through whichever process."""

from __future__ import annotations

import asyncio

import asyncpg
import grpc
import grpc.aio
import pytest
from webhooks.v1 import endpoint_pb2

from tests.support.callers import WAIT_S, Caller, SteadyPublisher, event, reason_of
from tests.support.process import Served
from tests.support.promises import (
    assert_order_and_copies,
    assert_order_within_keys,
    failing_now_and_then,
    has_all,
)
from tests.support.receiver import Answer, Receiver
from tests.support.waiting import until

Callers = tuple[Caller, Caller]
CHANGE_S = 2.0
"""How soon a change holds for what is sent."""
ENDPOINTS = ["a", "b", "c", "d", "e", "f"]
"""So many that each of two processes delivers for some of them, all but once in 32 times."""
ACTIVE, PAUSED = endpoint_pb2.Endpoint.STATE_ACTIVE, endpoint_pb2.Endpoint.STATE_PAUSED


async def test_a_paused_endpoint_keeps_its_backlog_and_gets_it_in_order_when_resumed(
    callers: Callers, tenant: str, receiver: Receiver
) -> None:
    receiver.default = failing_now_and_then(0.05, delay_s=0.002)
    for name in ENDPOINTS:
        await callers[0].endpoint(name, receiver.url(name), tenant=tenant)
    publisher = SteadyPublisher("p", callers, tenant=tenant, pause_s=0.1)
    async with publisher.streaming():
        await receiver.wait_for(100, timeout_s=WAIT_S)
        for name in ENDPOINTS:
            await callers[0].update(name, "state", tenant=tenant, state=PAUSED)
        await asyncio.sleep(CHANGE_S)  # the promise is a time
        sent = len(receiver.requests)
        await publisher.acknowledge(60)
        backlogs = [(await callers[1].status(name, tenant=tenant)).backlog_count for name in ENDPOINTS]
        assert len(receiver.requests) == sent, "nothing is sent while paused"
        assert min(backlogs) >= 60
        for name in ENDPOINTS:
            await callers[1].update(name, "state", tenant=tenant, state=ACTIVE)
        await receiver.wait_for(sent + 300, timeout_s=WAIT_S)
    await receiver.wait_for(has_all(receiver, ENDPOINTS, [publisher]), timeout_s=WAIT_S)
    for name in ENDPOINTS:
        assert_order_and_copies(receiver, name, [publisher])
        assert [r.event_id for r in receiver.accepted(name)] == publisher.ids


async def test_a_new_url_gets_the_backlog_of_the_old_one_in_order(
    callers: Callers, tenant: str, receiver: Receiver
) -> None:
    for name in ENDPOINTS:
        receiver.on(f"old-{name}", lambda _: Answer(503))
        await callers[0].endpoint(name, receiver.url(f"old-{name}"), tenant=tenant)
    publisher = SteadyPublisher("p", callers, tenant=tenant)
    await publisher.run(30)
    await receiver.wait_for(lambda: all(len(receiver.of(f"old-{name}")) >= 2 for name in ENDPOINTS))
    for name in ENDPOINTS:
        target = endpoint_pb2.HttpTarget(url=receiver.url(name))
        await callers[1].update(name, "http.url", tenant=tenant, http=target)
    await receiver.wait_for(has_all(receiver, ENDPOINTS, [publisher]), timeout_s=WAIT_S)
    for name in ENDPOINTS:
        assert_order_and_copies(receiver, name, [publisher])
        assert {request.event_id for request in receiver.of(f"old-{name}")} == {"p-0"}


async def test_the_backlog_of_a_deleted_endpoint_is_skipped_on_record(
    callers: Callers, tenant: str, pair: tuple[Served, Served], receiver: Receiver
) -> None:
    receiver.default = Answer(503)
    uids = [(await callers[0].endpoint(name, receiver.url(name), tenant=tenant)).uid for name in ENDPOINTS]
    await SteadyPublisher("p", callers, tenant=tenant).run(30)
    await receiver.wait_for(lambda: {r.endpoint for r in receiver.requests} == set(ENDPOINTS))
    for name in ENDPOINTS:
        request = endpoint_pb2.DeleteEndpointRequest(name=f"tenants/{tenant}/endpoints/{name}")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await callers[1].endpoints.DeleteEndpoint(request)
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason_of(refusal.value) == "ENDPOINT_HAS_BACKLOG"
        request.force = True
        await callers[1].endpoints.DeleteEndpoint(request)
    connection = await asyncpg.connect(pair[0].dsn)
    try:
        await until(lambda: _all_skipped(connection, uids, 30), WAIT_S)
    finally:
        await connection.close()
    sent = len(receiver.requests)
    await callers[0].endpoint("last", receiver.url("last"), tenant=tenant)
    await callers[0].publish(event("last"), tenant=tenant)
    await receiver.wait_for(lambda: bool(receiver.of("last")))
    assert {request.endpoint for request in receiver.requests[sent:]} == {"last"}


async def _all_skipped(connection: asyncpg.Connection, uids: list[str], count: int) -> bool:
    rows = await connection.fetch(
        "SELECT endpoint_id::text, array_agg(seq ORDER BY seq) seqs FROM decision"
        " WHERE endpoint_id = ANY($1::uuid[]) AND reason = 'ENDPOINT_DELETED' GROUP BY 1",
        uids,
    )
    return {row["endpoint_id"]: row["seqs"] for row in rows} == {uid: list(range(1, count + 1)) for uid in uids}


async def test_changes_of_the_ordering_mode_under_way_lose_and_reorder_nothing(
    callers: Callers, tenant: str, receiver: Receiver
) -> None:
    receiver.default = failing_now_and_then(0.05, delay_s=0.005)
    names = ENDPOINTS[:3]
    for name in names:
        await callers[0].endpoint(name, receiver.url(name), tenant=tenant)
    publisher = SteadyPublisher("p", callers, tenant=tenant, keys=5)
    async with publisher.streaming():
        await receiver.wait_for(60, timeout_s=WAIT_S)
        for mode in (endpoint_pb2.ORDERING_MODE_ORDERED_BY_KEY, endpoint_pb2.ORDERING_MODE_ORDERED):
            settings = endpoint_pb2.DeliverySettings(ordering_mode=mode)
            for name in names:
                await callers[1].update(
                    name, "delivery_settings.ordering_mode", tenant=tenant, delivery_settings=settings
                )
            await receiver.wait_for(len(receiver.requests) + 150, timeout_s=WAIT_S)
            await publisher.acknowledge(30)
    await receiver.wait_for(has_all(receiver, names, [publisher]), timeout_s=WAIT_S)
    for name in names:
        assert_order_within_keys(receiver, name, publisher)
        assert len(receiver.accepted(name)) == len(publisher.ids)
        await _check_segments(callers[0], tenant, receiver, name)
    assert max(receiver.in_flight_max[name] for name in names) > 1, "keys were to overlap"


async def _check_segments(caller: Caller, tenant: str, receiver: Receiver, name: str) -> None:
    """A mode begins with the first event of its revision, once all before it are settled; ordered ones are in order."""
    revisions = {d.sequence: d.endpoint_revision for d in await caller.all_deliveries(name, tenant=tenant)}
    first = list(dict.fromkeys(request.sequence for request in receiver.of(name) if request.sequence in revisions))
    seen = [revisions[sequence] for sequence in first]
    assert set(seen) == {1, 2, 3}
    assert seen == sorted(seen)
    for revision in (1, 3):
        segment = [sequence for sequence in first if revisions[sequence] == revision]
        assert segment == sorted(segment)
