"""The commands of docs/operations.md work as they stand: the path from an alert to the resume, walked by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import asyncpg
import pytest
from webhooks.v1 import (
    dead_letter_pb2,
    dead_letter_pb2_grpc,
    endpoint_pb2,
    endpoint_pb2_grpc,
    event_pb2,
    policy_pb2,
    publisher_pb2,
    publisher_pb2_grpc,
)

from dispatcher.security.signing import generate_secret
from tests.support.api import channel_to
from tests.support.commands import needs_grpcurl, publish_as_readme_says, run_commands
from tests.support.ports import closed_port
from tests.support.postgres import TestDatabase
from tests.support.process import Served, processes
from tests.support.readme import commands
from tests.support.receiver import Answer, Receiver
from tests.support.waiting import until

PAGE = "docs/operations.md"
LIMIT_S = 30.0
PATIENT = {
    "DISPATCHER_RETRY_MIN_S": "1",
    "DISPATCHER_RETRY_MAX_S": "60",
    "DISPATCHER_METRICS_BACKLOG_INTERVAL_S": "0.5",
}
"""Nothing may be given up while the test looks at it."""
BILLING = "tenants/acme/endpoints/billing"


@pytest.fixture
async def served(database: TestDatabase, tmp_path: Path) -> AsyncIterator[Served]:
    with processes(database.dsn, tmp_path, 1, PATIENT) as (one,):
        yield one


async def run_page(name: str, served: Served, exchanged: Mapping[str, str] | None = None, page: str = PAGE) -> str:
    """A block of the page against `served`, in a thread: the receiver is on this loop."""
    ports = {"50051": served.grpc_port, "50052": served.admin_port, "8080": served.ops_port}
    block = commands(name, page)
    addresses = {f"127.0.0.1:{old}": f"127.0.0.1:{new}" for old, new in ports.items() if f":{old}" in block}
    return await asyncio.to_thread(run_commands, block, addresses | dict(exchanged or {}), OPS_TOKEN="")


async def run_until(name: str, served: Served, expected: str) -> str:
    """Run a block until it tells what is expected."""
    told = ""

    async def is_told() -> bool:
        nonlocal told
        told = await run_page(name, served)
        return expected in told

    await until(is_told, LIMIT_S)
    return told


async def run_until_measured(served: Served) -> str:
    """The block that asks the metrics for the worst endpoints, once they have any."""

    async def is_measured() -> bool:
        return "dispatcher_endpoint_backlog{" in served.page("/metrics")[1]

    await until(is_measured, LIMIT_S)
    return await run_page("worst", served)


@needs_grpcurl
async def test_the_commands_of_the_page_tell_and_do_what_it_says(served: Served) -> None:
    await asyncio.to_thread(publish_as_readme_says, served, closed_port(), generate_secret())
    health = await run_page("health", served)
    for expected in ("alive", "ready", '"SERVING"', '"databaseLatency"', '"partitionCount"'):
        assert expected in health
    stuck = await run_until("stuck", served, "blockedBy")
    for expected in ("ATTEMPT_OUTCOME_CONNECTION_FAILED", '"backlogCount": "1"', '"latency"', '"leases/255"'):
        assert expected in stuck
    behind = await run_until("tenant-status", served, '"backlogCount": "1"')
    for expected in ('"total": 1', '"committedPerSecond"', '"attemptDurationP99"', "worst endpoints by age", BILLING):
        assert expected in behind
    assert 'dispatcher_endpoint="billing"' in await run_until_measured(served)
    assert '"STATE_RETIRING"' in await run_page("rotate", served)
    changed = await run_page("failing", served, page="README.md")
    for expected in ('"EXHAUSTION_POLICY_HALT"', '"fallbackUrls"', '"maxAge": "86400s"', '"burst": 50'):
        assert expected in changed
    held = await run_page("hold", served)
    assert held.index('"STATE_PAUSED"') < held.index('"stateReason": "INC-17"') < held.rindex('"STATE_ACTIVE"')
    assert '"STATE_ACTIVE"' in await run_page("enable", served)
    await run_page("delete", served)
    status = commands("stuck", PAGE).split("\n# Is the URL right")[0]

    async def is_settled() -> bool:
        told = await asyncio.to_thread(run_commands, status, {"50051": str(served.grpc_port)})
        return '"settledSequence": "1"' in told

    await until(is_settled, LIMIT_S)
    drained = await run_page("drain", served)
    for expected in ('"draining": true', "not ready", "draining: drained by an operator"):
        assert expected in drained
    assert '"partitionCount"' not in drained


class Shop:
    """The tenant and endpoint of README's session, with a receiver that may be told to fail."""

    def __init__(self, served: Served, receiver: Receiver) -> None:
        self.served, self.receiver, self.is_down = served, receiver, True
        receiver.default = lambda _request: Answer(500 if self.is_down else 204)

    async def open(self) -> None:
        await asyncio.to_thread(publish_as_readme_says, self.served, self.receiver.port, generate_secret())

    async def give_up_after_one(self, policy: policy_pb2.ExhaustionPolicy.ValueType) -> None:
        settings = endpoint_pb2.DeliverySettings(
            exhaustion_policy=policy,
            retry_policy=policy_pb2.RetryPolicy(max_attempts=1),
            circuit_breaker=policy_pb2.CircuitBreaker(off=True),
            auto_disable=policy_pb2.AutoDisable(off=True),
        )
        endpoint = endpoint_pb2.Endpoint(name=BILLING, delivery_settings=settings)
        mask = [f"delivery_settings.{path.name}" for path, _ in settings.ListFields()]
        async with channel_to(self.served.grpc_port) as channel:
            request = endpoint_pb2.UpdateEndpointRequest(endpoint=endpoint)
            request.update_mask.paths.extend(mask)
            await endpoint_pb2_grpc.EndpointServiceStub(channel).UpdateEndpoint(request)

    async def publish(self, *ids: str) -> None:
        events = [event_pb2.Event(id=event_id, type="order.paid", data=b"{}") for event_id in ids]
        async with channel_to(self.served.grpc_port) as channel:
            request = publisher_pb2.PublishRequest(parent="tenants/acme", events=events)
            await publisher_pb2_grpc.PublisherServiceStub(channel).Publish(request)

    async def until_given_up(self, count: int) -> None:
        async with channel_to(self.served.grpc_port) as channel:
            stub = dead_letter_pb2_grpc.DeadLetterServiceStub(channel)

            async def are_given_up() -> bool:
                answer = await stub.ListDeadLetters(dead_letter_pb2.ListDeadLettersRequest(parent=BILLING))
                return len(answer.dead_letters) == count

            await until(are_given_up, LIMIT_S)

    def delivered(self) -> list[str]:
        """Events in the order of their success."""
        return [request.event_id for request in self.receiver.accepted("")]


@needs_grpcurl
async def test_from_the_alert_to_the_resume(served: Served) -> None:
    """Two events that the receiver refuses halt the endpoint, one after the other; the third waits behind both."""
    async with Receiver() as receiver:
        shop = Shop(served, receiver)
        await shop.open()
        alerts = {"http://127.0.0.1:9000/": receiver.url("oncall")}
        receiver.on("oncall", lambda _request: Answer(204))
        await run_page("subscribe", served, alerts)
        await shop.give_up_after_one(policy_pb2.EXHAUSTION_POLICY_HALT)
        await shop.publish("order-17-paid", "order-18-paid")
        await receiver.wait_for(lambda: len(receiver.accepted("oncall")) == 1, timeout_s=LIMIT_S)
        alert = json.loads(receiver.accepted("oncall")[0].body)
        assert (alert["type"], alert["endpoint"], alert["sequence"]) == ("dispatcher.endpoint.halted", BILLING, 1)
        stuck = await run_until("stuck", served, '"halt"')
        for expected in ('"reason": "ATTEMPTS_EXHAUSTED"', '"waitingCount": "2"', f'"{BILLING}/deliveries/1"'):
            assert expected in stuck
        skipped = await run_page("skip", served, {"deliveries/16": "deliveries/1"})
        for expected in ('"STATE_SKIPPED"', '"reason": "INC-17: malformed order"'):
            assert expected in skipped
        await run_until("stuck", served, '"waitingCount": "1"')
        shop.is_down = False
        await run_page("retry", served, {"deliveries/16": "deliveries/2"})
        await receiver.wait_for(lambda: len(shop.delivered()) == 2, timeout_s=LIMIT_S)
    assert shop.delivered() == ["order-17-paid", "order-18-paid"]


@needs_grpcurl
async def test_what_was_given_up_is_sent_again_and_the_past_replayed(served: Served) -> None:
    async with Receiver() as receiver:
        shop = Shop(served, receiver)
        await shop.open()
        await receiver.wait_for(1, timeout_s=LIMIT_S)
        await shop.give_up_after_one(policy_pb2.EXHAUSTION_POLICY_DEAD_LETTER)
        await shop.publish("order-17-paid", "order-18-paid")
        await shop.until_given_up(3)
        discarded = await run_page("discard", served, {"deadLetters/16": "deadLetters/2"})
        for expected in ('"STATE_DISCARDED"', '"closeReason": "INC-17: malformed order"'):
            assert expected in discarded
        shop.is_down = False
        letters = await run_page("letters", served, {"deadLetters/16": "deadLetters/3"})
        for expected in ('"dataText": "{}"', '"STATE_REDRIVEN"', '"replayOf"', '"matchedCount"'):
            assert expected in letters
        await shop.publish("order-19-paid")
        again = ["order-18-paid", "order-16-paid", "order-19-paid"]
        await receiver.wait_for(lambda: sorted(shop.delivered()) == sorted(again), timeout_s=LIMIT_S)
        replayed = await run_page("replay", served)
        counted, started = replayed.index('"matchedCount": "1"'), replayed.index('"matchedCount": "4"')
        assert counted < replayed.index('"state": "STATE_RUNNING"', counted) < started, "the answer to the call itself"
        assert replayed.count('"name": "tenants/acme/replays/inc-18"') == 3


@needs_grpcurl
async def test_the_last_sequence_is_read_a_payload_removed_and_who_did_it_told(served: Served) -> None:
    async with Receiver() as receiver:
        shop = Shop(served, receiver)
        shop.is_down = False
        await shop.open()
        await receiver.wait_for(1, timeout_s=LIMIT_S)
        await run_until("stuck", served, '"settledSequence": "1"')
        connection = await asyncpg.connect(served.dsn)
        (row,) = await connection.fetch(commands("sequences", PAGE))
        await connection.close()
        assert tuple(row) == ("acme", "billing", 1)
        removed = await run_page("expunge", served, {"events/evt-17": "events/order-16-paid"})
        assert '"expungeTime"' in removed
        told = await run_page("audit", served)
    for expected in ("DeliveryService/ExpungeEvent", "EndpointService/CreateEndpoint", '"anonymous"', '"PHASE_ENDED"'):
        assert expected in told
