"""A tenant's publish quota: refused with what it takes to come again, nothing written, others untouched."""

from __future__ import annotations

import asyncio

import grpc
from google.rpc import error_details_pb2
from webhooks.v1 import event_pb2, publisher_pb2, tenant_pb2

from tests.support.api import refusal_in, refused
from tests.support.postgres import TestDatabase
from tests.support.receiver import Receiver
from tests.support.service import running_service


async def test_more_than_the_quota_is_refused_with_details_and_a_true_wait(database: TestDatabase) -> None:
    async with Receiver(), running_service(database.dsn) as service:
        await service.tenant(publish_quota={"events_per_second": 10})
        await service.publish(*[f"e-{i}" for i in range(10)])
        more = [f"f-{i}" for i in range(10)]  # a whole second's worth: a slow machine has not earned it by now
        refusal = await refused(service.publish(*more))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PUBLISH_QUOTA_EXCEEDED")
        violation = refusal.detail(error_details_pb2.QuotaFailure).violations[0]
        assert violation.subject == "tenants/acme"
        delay = refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() / 1e9
        assert 0 < delay <= 1.0
        assert await service.database.fetchval("SELECT count(*) FROM event") == 10
        await asyncio.sleep(delay + 0.02)
        await service.publish(*more)


async def test_bytes_count_too_and_one_large_call_is_paid_for_afterwards(database: TestDatabase) -> None:
    async with Receiver(), running_service(database.dsn) as service:
        await service.tenant(publish_quota={"bytes_per_second": 1000})
        await service.publish("large", data=b"x" * 5000)
        refusal = await refused(service.publish("small"))
        delay = refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() / 1e9
        assert 3 < delay <= 4.1


async def test_a_changed_quota_holds_from_the_next_call_on(database: TestDatabase) -> None:
    async with Receiver(), running_service(database.dsn) as service:
        tenant = await service.tenant(publish_quota={"events_per_second": 1})
        await service.publish("one")
        assert (await refused(service.publish("two"))).reason == "PUBLISH_QUOTA_EXCEEDED"
        tenant.publish_quota.events_per_second = 0
        await service.tenants.UpdateTenant(
            tenant_pb2.UpdateTenantRequest(tenant=tenant, update_mask={"paths": ["publish_quota"]})
        )
        await asyncio.sleep(1.05)  # what was used up under the old quota has come back
        await service.publish("two")  # finds that the routes have changed
        for i in range(20):
            await service.publish(f"many-{i}")


async def test_a_stream_breaks_at_the_request_that_exceeds(database: TestDatabase) -> None:
    async with Receiver(), running_service(database.dsn) as service:
        await service.tenant(publish_quota={"events_per_second": 2})

        async def requests():
            for i in range(1, 5):
                events = [event_pb2.Event(id=f"s-{i}", type="order.paid", data=b"{}")]
                yield publisher_pb2.PublishStreamRequest(client_sequence=i, parent="tenants/acme", events=events)

        answers = [answer async for answer in service.publisher.PublishStream(requests())]
        codes = [answer.status.code for answer in answers]
        exhausted, aborted = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], grpc.StatusCode.ABORTED.value[0]
        assert codes == [0, 0, exhausted, aborted]
        assert refusal_in(answers[2].status).reason == "PUBLISH_QUOTA_EXCEEDED"
        assert await service.database.fetchval("SELECT count(*) FROM event") == 2
