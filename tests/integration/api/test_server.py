"""The two servers: operators' service, health, drain, metrics and spans, and grpcurl as operators use it."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest
from grpc_health.v1 import health_pb2
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from webhooks.admin.v1 import admin_pb2
from webhooks.v1 import tenant_pb2

from dispatcher.api.server import ADMIN_SERVICES, CALLER_SERVICES
from dispatcher.model import Instance
from dispatcher.store import instances, leases
from dispatcher.telemetry import Tracing
from tests.support import waiting
from tests.support.api import STATUS, Api, event, refused, serving
from tests.support.postgres import TestDatabase
from tests.support.tasks import until

GRPCURL = shutil.which("grpcurl", path=f"{Path(sys.executable).parent}:.tools:/usr/local/bin:/usr/bin")
Serving = health_pb2.HealthCheckResponse


async def test_the_status_is_that_of_the_instance_that_answers(api: Api) -> None:
    status = await api.admin.GetStatus(admin_pb2.GetStatusRequest())
    assert (status.version, status.instance) == ("0.1.0", f"instances/{STATUS.instance_id}")
    assert (list(status.partitions), status.in_flight_count, status.flush_lag.nanos) == ([1, 3], 5, 250_000_000)
    assert status.database_latency.ToNanoseconds() > 0


async def test_instances_are_listed_by_pages_oldest_first(api: Api) -> None:
    for i in (2, 1):
        start = STATUS.start_time.replace(hour=i)
        await instances.heartbeat(
            api.database,
            Instance(UUID(int=i), f"host:{i}", "0.1.0", start, start, False, 0, i, 10 * i, 100 * i, 0.5 * i),
        )
    await leases.acquire(api.database, UUID(int=1), 3, 60.0)
    request = admin_pb2.ListInstancesRequest(page_size=1)
    first = await api.admin.ListInstances(request)
    request.page_token = first.next_page_token
    second = await api.admin.ListInstances(request)
    one, two = (*first.instances, *second.instances)
    assert (one.name, one.partition_count, one.delivered_count) == (f"instances/{UUID(int=1)}", 3, 10)
    assert (two.address, two.in_flight_count, second.next_page_token) == ("host:2", 2, "")
    assert (one.due_count, one.oldest_due_age.ToMilliseconds(), two.due_count) == (100, 500, 200)


async def test_leases_are_listed_all_at_once_or_by_pages(api: Api) -> None:
    await leases.acquire(api.database, UUID(int=1), 1, 60.0)
    everything = await api.admin.ListLeases(admin_pb2.ListLeasesRequest())
    assert [lease.partition for lease in everything.leases] == list(range(256))
    assert everything.leases[0].owner == f"instances/{UUID(int=1)}"
    assert everything.leases[1].owner == ""
    page = await api.admin.ListLeases(admin_pb2.ListLeasesRequest(page_size=200))
    rest = await api.admin.ListLeases(admin_pb2.ListLeasesRequest(page_token=page.next_page_token))
    assert [lease.partition for lease in rest.leases] == list(range(200, 256))
    refusal = await refused(api.admin.ListLeases(admin_pb2.ListLeasesRequest(page_token="x")))
    assert refusal.fields == ["page_token"]


async def test_drain_answers_when_everything_is_handed_over(api: Api) -> None:
    assert not (await api.admin.GetStatus(admin_pb2.GetStatusRequest())).draining
    call = asyncio.ensure_future(api.admin.Drain(admin_pb2.DrainRequest(instance=f"instances/{STATUS.instance_id}")))
    await until(lambda: api.control.drains == 1, "the drain to begin")
    assert not call.done()
    api.control.last_drained.set()
    (drained,) = (await asyncio.wait_for(call, 5)).instances
    assert (drained.name, drained.draining) == (f"instances/{STATUS.instance_id}", True)
    assert (drained.partition_count, drained.in_flight_count) == (0, 5)
    assert (await api.admin.GetStatus(admin_pb2.GetStatusRequest())).draining


async def test_drain_tells_what_is_left_before_the_caller_has_to_give_up(api: Api) -> None:
    answer = await api.admin.Drain(admin_pb2.DrainRequest(), timeout=0.5)
    assert [drained.partition_count for drained in answer.instances] == [1]


async def test_an_instance_that_is_not_behind_the_port_is_neither_told_of_nor_drained(api: Api) -> None:
    other = f"instances/{UUID(int=8)}"
    for call in (
        api.admin.Drain(admin_pb2.DrainRequest(instance=other)),
        api.admin.GetStatus(admin_pb2.GetStatusRequest(instance=other)),
    ):
        assert (await refused(call)).code is grpc.StatusCode.NOT_FOUND
    refusal = await refused(api.admin.Drain(admin_pb2.DrainRequest(instance="7")))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["instance"])
    assert api.control.drains == 0


async def test_callers_and_operators_have_services_of_their_own(api: Api) -> None:
    for call in (
        api.admin_channel.unary_unary("/webhooks.v1.TenantService/GetTenant")(b""),
        api.channel.unary_unary("/webhooks.admin.v1.AdminService/GetStatus")(b""),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_follows_readiness_per_service(api: Api) -> None:
    for name in ("", *CALLER_SERVICES):
        answer = await api.health_stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == Serving.SERVING
    watch = api.health_stub.Watch(health_pb2.HealthCheckRequest(service=CALLER_SERVICES[0]))
    seen: list[int] = []
    async with asyncio.timeout(5):
        async for answer in watch:
            seen.append(answer.status)
            if len(seen) == 1:
                api.health.fail("test", "broken")
            elif len(seen) == 2:
                api.health.clear("test")
            else:
                break
    assert seen == [Serving.SERVING, Serving.NOT_SERVING, Serving.SERVING]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.health_stub.Check(health_pb2.HealthCheckRequest(service=ADMIN_SERVICES[0]))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_drain_answers_calls_in_flight_and_turns_health(database: TestDatabase) -> None:
    async with serving(database.options, writing=False) as api:
        await api.tenant()
        waiting = asyncio.ensure_future(api.publish(event("e-1"), timeout=20))
        await until(lambda: api.commits.queued_events == 1, "a publish in flight")
        draining = asyncio.create_task(api.server.drain())
        refusal = await refused(api.tenants.GetTenant(tenant_pb2.GetTenantRequest(name="tenants/acme")))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        answer = await api.health_stub.Check(health_pb2.HealthCheckRequest())
        assert answer.status == Serving.NOT_SERVING
        assert not draining.done()
        writing = asyncio.create_task(api.commits.run())
        assert (await waiting).results[0].event_id == "e-1"
        await asyncio.wait_for(draining, 5)
        writing.cancel()


async def test_a_drain_does_not_wait_for_ever(database: TestDatabase) -> None:
    async with serving(database.options, writing=False, grpc_drain_s=0.1) as api:
        await api.tenant()
        waiting = asyncio.ensure_future(api.publish(event("e-1"), timeout=20))
        await until(lambda: api.commits.queued_events == 1, "a publish in flight")
        await asyncio.wait_for(api.server.drain(), 3)
        assert not waiting.done()
        await asyncio.wait_for(api.server.__aexit__(None, None, None), 3)
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(waiting, 3)


async def test_a_port_in_use_is_an_error_that_names_it(api: Api, database: TestDatabase) -> None:
    taken = f"127.0.0.1:{api.server.port}"
    with pytest.raises(OSError, match=taken):
        async with serving(database.options, grpc_listen=taken):
            pass


async def test_a_call_has_a_span_below_the_callers_and_a_duration(database: TestDatabase) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with serving(database.options, tracing=Tracing(provider.get_tracer("test"))) as api:
        recorded: list[tuple[str, str]] = []
        api.instruments.rpc_server_call = lambda method, status, _: recorded.append((method, status))  # type: ignore[method-assign]
        await api.tenant()
        trace_id = "0af7651916cd43dd8448eb211c80319c"
        await api.publish(event("e-1"), metadata=(("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),))
        await refused(api.publish(event("a.b")))
        stored = await api.database.fetchval("SELECT traceparent FROM event")
    assert recorded == [
        ("webhooks.v1.TenantService/CreateTenant", "OK"),
        ("webhooks.v1.PublisherService/Publish", "OK"),
        ("webhooks.v1.PublisherService/Publish", "INVALID_ARGUMENT"),
    ]
    _, publish, bad = exporter.get_finished_spans()
    assert publish.context is not None
    assert f"{publish.context.trace_id:032x}" == trace_id
    assert stored == f"00-{trace_id}-{publish.context.span_id:016x}-01"
    assert publish.attributes is not None
    assert publish.attributes["messaging.destination.name"] == "tenants/acme"
    assert bad.attributes is not None
    assert bad.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"


async def grpcurl(
    port: int, *arguments: str, data: Any = None, options: Sequence[str] = ("-plaintext",)
) -> tuple[int, str]:
    assert GRPCURL is not None
    body = [] if data is None else ["-d", json.dumps(data)]
    process = await asyncio.create_subprocess_exec(
        GRPCURL,
        *options,
        *body,
        f"localhost:{port}",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode or 0, output.decode()


@pytest.mark.skipif(GRPCURL is None, reason="grpcurl is not installed: `make tools`")
async def test_grpcurl_lists_describes_and_calls(api: Api) -> None:
    code, services = await grpcurl(api.server.port, "list")
    assert code == 0, services
    assert set(CALLER_SERVICES) <= set(services.split())
    assert "webhooks.admin.v1.AdminService" not in services
    code, described = await grpcurl(api.server.port, "describe", "webhooks.v1.PublisherService.Publish")
    assert code == 0, described
    assert "all or none" in described, "comments are served"
    code, created = await grpcurl(
        api.server.port,
        "webhooks.v1.TenantService/CreateTenant",
        data={"tenantId": "acme", "tenant": {"displayName": "Acme"}},
    )
    assert (code, json.loads(created)["name"]) == (0, "tenants/acme")
    code, published = await grpcurl(
        api.server.port,
        "webhooks.v1.PublisherService/Publish",
        data={"parent": "tenants/acme", "events": [{"id": "e-1", "type": "order.paid", "dataText": "{}"}]},
    )
    assert (code, json.loads(published)["results"][0]["eventId"]) == (0, "e-1")
    code, error = await grpcurl(api.server.port, "webhooks.v1.TenantService/GetTenant", data={"name": "tenants/nobody"})
    assert code != 0
    assert "google.rpc.ResourceInfo" in error, "details are decoded, not base64"
    assert '"tenants/nobody"' in error
    code, status = await grpcurl(api.server.admin_port, "webhooks.admin.v1.AdminService/GetStatus")
    assert (code, json.loads(status)["version"]) == (0, "0.1.0")


async def test_what_was_told_out_of_turn_is_followed_all_the_same(database: TestDatabase) -> None:
    async with serving(database.options) as api:

        async def status() -> int:
            return (await api.health_stub.Check(health_pb2.HealthCheckRequest(service=CALLER_SERVICES[0]))).status

        async def is_turned() -> bool:
            return await status() == Serving.NOT_SERVING

        api.health.fail("test", "broken")
        await waiting.until(is_turned)
        api.health.clear("test")
        await api.server.tell_health()
        assert await status() == Serving.SERVING
        api.health.fail("test", "broken")
        await waiting.until(is_turned)
