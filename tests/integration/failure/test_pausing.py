"""A pause keeps the backlog, in order, while publishing goes on; it is worked off at a chosen rate."""

from __future__ import annotations

import time

from webhooks.v1 import endpoint_pb2, tenant_pb2

from tests.support.api import refused
from tests.support.postgres import TestDatabase
from tests.support.receiver import Receiver
from tests.support.service import NAME, Service, running_service
from tests.support.waiting import until


def pause(service: Service) -> object:
    return service.endpoints.PauseEndpoint(endpoint_pb2.PauseEndpointRequest(name=NAME.format("a"), reason="INC-2"))


def resume(service: Service, rate: float = 0.0) -> object:
    return service.endpoints.ResumeEndpoint(
        endpoint_pb2.ResumeEndpointRequest(name=NAME.format("a"), max_per_second=rate)
    )


async def test_a_paused_endpoint_is_resumed_at_a_rate_that_ends_with_the_backlog(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        paused = await pause(service)
        assert (paused.state, paused.state_reason) == (endpoint_pb2.Endpoint.STATE_PAUSED, "INC-2")
        await service.publish(*[f"held-{i}" for i in range(8)])
        assert (await service.status("a")).backlog_count == 8
        resumed_at_s = time.monotonic()
        await resume(service, 10)
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 8)
        held = [request.at_s for request in receiver.of("a")]
        assert held[-1] - resumed_at_s >= 0.699  # eight at ten per second: the first may come late, the last not early
        assert (await service.status("a")).catch_up_per_second == 10
        await service.publish(*[f"live-{i}" for i in range(20)])
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 28)
        live = [request.at_s for request in receiver.of("a")][8:]
    assert live[-1] - live[0] < 1.0
    assert [r.sequence for r in receiver.of("a")] == list(range(1, 29))


async def test_pause_resume_and_enable_say_what_they_do_not_end(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        first = await pause(service)
        assert (await pause(service)).etag == first.etag  # nothing changes, nothing is written
        enable = service.endpoints.EnableEndpoint(endpoint_pb2.EnableEndpointRequest(name=NAME.format("a")))
        assert (await refused(enable)).reason == "ENDPOINT_PAUSED"
        disable = endpoint_pb2.UpdateEndpointRequest(
            endpoint=endpoint_pb2.Endpoint(name=NAME.format("a"), state=endpoint_pb2.Endpoint.STATE_DISABLED)
        )
        await service.endpoints.UpdateEndpoint(disable)
        assert (await refused(resume(service))).reason == "ENDPOINT_DISABLED"
        assert (await refused(pause(service))).reason == "ENDPOINT_DISABLED"
        stale = endpoint_pb2.EnableEndpointRequest(name=NAME.format("a"), etag=first.etag)
        assert (await refused(service.endpoints.EnableEndpoint(stale))).reason == "ETAG_MISMATCH"
        assert (await refused(resume(service, 1e9))).fields == ["max_per_second"]


async def test_a_paused_tenant_holds_all_of_its_endpoints(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        for name in ("a", "b"):
            await service.endpoint(name, receiver.url(name))
        await service.publish("before")
        await receiver.wait_for(2)
        paused = await service.tenants.PauseTenant(tenant_pb2.PauseTenantRequest(name="tenants/acme", reason="INC-3"))
        assert (paused.state, paused.state_reason) == (tenant_pb2.Tenant.STATE_PAUSED, "INC-3")

        # The owner looks for changes every so often: once it knows, nothing starts any more.
        async def is_held() -> bool:
            runtimes = service.node.core.engine.board.runtimes.values()
            return all(runtime.is_held for runtime in runtimes)

        board = service.node.core.engine.board
        await service.publish("held-1")
        await until(is_held, 5)
        held_from = len(receiver.requests)
        await service.publish("held-2")
        assert (await service.status("a")).tenant_paused
        assert len(board.lanes) == 2
        assert len(receiver.requests) == held_from
        await service.tenants.ResumeTenant(tenant_pb2.ResumeTenantRequest(name="tenants/acme"))
        await receiver.wait_for(lambda: all(len(receiver.accepted(name)) == 3 for name in ("a", "b")))
    assert receiver.first_receipts("a") == ["before", "held-1", "held-2"]
