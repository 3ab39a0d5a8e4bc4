"""What the statuses say while deliveries are really made: successes, failures, a pause, a halt."""

from __future__ import annotations

from collections.abc import Callable

from webhooks.v1 import delivery_pb2, endpoint_pb2, policy_pb2, tenant_status_pb2

from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Receiver, Request
from tests.support.service import NAME, Service, running_service
from tests.support.waiting import until

HALT = {"exhaustion_policy": policy_pb2.EXHAUSTION_POLICY_HALT, "retry_policy": {"max_attempts": 2}}
PATIENT = {"retry_min_s": "3600", "retry_max_s": "3600", "circuit_attempts_min": "10000"}
"""A wait is random from 0 on: of a minute, one in twenty was over while the test still looked."""
WINDOW_S = 300.0


def refuses(event_id: str) -> Callable[[Request], Answer]:
    return lambda request: Answer(500 if request.event_id == event_id else 204)


async def tenant_status(service: Service) -> tenant_status_pb2.TenantStatus:
    request = tenant_status_pb2.GetTenantStatusRequest(name="tenants/acme/status")
    return await service.deliveries.GetTenantStatus(request)


async def until_told(
    service: Service, name: str, is_told: Callable[[delivery_pb2.EndpointStatus], bool]
) -> delivery_pb2.EndpointStatus:
    told = delivery_pb2.EndpointStatus()

    async def holds() -> bool:
        nonlocal told
        told = await service.status(name)
        return is_told(told)

    await until(holds, 10)
    return told


async def test_deliveries_that_are_made_are_counted_with_their_sizes(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        await service.publish(*[f"e-{n}" for n in range(20)], data=b'"' + b"x" * 98 + b'"')
        await service.publish("large", data=b'"' + b"x" * 998 + b'"')
        status = await until_told(
            service, "a", lambda told: told.recent.succeeded_count == 21 and not told.backlog_count
        )
    recent = status.recent
    assert (recent.attempt_count, recent.success_ratio, recent.truncated) == (21, 1.0, False)
    assert (recent.payload_bytes_p50, recent.payload_bytes_max) == (100, 1000)
    assert abs(recent.delivered_per_second - 21 / WINDOW_S) < 1e-9
    assert abs(recent.committed_per_second - 21 / WINDOW_S) < 1e-9
    assert 0 < recent.attempt_duration_p50.ToNanoseconds() <= recent.attempt_duration_p99.ToNanoseconds()
    assert (status.backlog_count, status.time_to_drain.ToNanoseconds()) == (0, 0)
    assert status.HasField("time_to_drain")


async def test_a_failing_head_lowers_the_ratio_and_tells_its_next_attempt(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, **PATIENT) as service:
        receiver.on("a", refuses("poison"))
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        await service.publish("one", "two", "three", "poison", "behind")
        status = await until_told(service, "a", lambda told: (told.recent.attempt_count, told.backlog_count) == (4, 2))
    assert (status.recent.succeeded_count, status.recent.success_ratio) == (3, 0.75)
    assert (status.backlog_count, status.blocked_by.attempt_count) == (2, 1)
    assert not status.HasField("time_to_drain"), "five came in, three were delivered"
    assert status.expected_wait.seconds == 200
    assert status.next_attempt_time == status.blocked_by.next_attempt_time
    assert status.next_attempt_time.seconds > 0


async def test_the_next_attempt_is_that_of_the_parked_delivery_due_first(database: TestDatabase) -> None:
    """An hour away is that of the first, which blocks; a minute that of the second."""
    poisons = {"e-0", "e-1"}
    small = {"lane_rows_max": "16", "retry_schedule_s": "3000,3000"}
    async with Receiver() as receiver, running_service(database.dsn, **PATIENT, **small) as service:
        receiver.on("a", lambda request: Answer(500 if request.event_id in poisons else 204))
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), ordering_mode=endpoint_pb2.ORDERING_MODE_UNORDERED)
        await service.publish(*[f"e-{n}" for n in range(60)])
        await until_told(service, "a", lambda told: told.parked_count == told.backlog_count == 2)
        for seq, wait in ((1, "1 hour"), (2, "1 minute")):
            await service.database.execute(
                f"UPDATE parked SET due_time = now() + interval '{wait}' WHERE seq = $1", seq
            )
        status = await service.status("a")
    assert status.blocked_by.delivery == f"{NAME.format('a')}/deliveries/1"
    ahead_s = status.blocked_by.next_attempt_time.seconds - status.next_attempt_time.seconds
    assert 3500 < ahead_s < 3600


async def test_a_tenants_status_tells_its_paused_halted_and_failing_endpoints(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn, **PATIENT, retry_factor="1") as service:
        receiver.on("failing", lambda _request: Answer(503))
        receiver.on("halted", refuses("second"))
        await service.tenant()
        for name in ("well", "failing", "paused"):
            await service.endpoint(name, receiver.url(name))
        await service.endpoint("halted", receiver.url("halted"), **HALT | {"retry_policy": {"max_attempts": 1}})
        pause = endpoint_pb2.PauseEndpointRequest(name=NAME.format("paused"))
        await service.endpoints.PauseEndpoint(pause)
        await service.publish("first", "second", "third")
        await receiver.wait_for(lambda: len(receiver.accepted("well")) == 3)

        async def is_all_told() -> bool:
            told = await tenant_status(service)
            return (told.endpoints.halted, told.endpoints.failing, told.backlog_count) == (1, 2, 8)

        await until(is_all_told, 10)
        status = await tenant_status(service)
    counts = status.endpoints
    assert (counts.total, counts.active, counts.paused, counts.disabled) == (4, 3, 1, 0)
    assert status.held_count == 5, "three of the paused one, two of the halted one"
    behind = {(b.endpoint.rpartition("/")[2], b.backlog_count, b.halted) for b in status.largest}
    assert behind == {("failing", 3, False), ("paused", 3, False), ("halted", 2, True)}
    assert {b.endpoint for b in status.oldest} == {b.endpoint for b in status.largest}
    assert (status.recent.attempt_count, status.recent.succeeded_count) == (6, 4)
    assert (status.recent.endpoint_count, status.recent.truncated, status.partial) == (4, False, False)
    assert not status.HasField("time_to_drain"), "the failing one does not"
    assert status.oldest_pending_age.ToNanoseconds() > 0
