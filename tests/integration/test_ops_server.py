"""The operators' port over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import aiohttp
import jwt
import pytest

from dispatcher.errors import UnavailableError
from dispatcher.model import EndpointKey
from dispatcher.ops.server import OpsServer, OwnPages, TenantMetrics
from dispatcher.security.signing import Ed25519Key
from dispatcher.telemetry import ExportPlan, Health, Telemetry, start_telemetry


@pytest.fixture
async def telemetry() -> AsyncIterator[Telemetry]:
    started = start_telemetry(ExportPlan(), version="0.1", instance_id="i-1")
    yield started
    assert await started.shutdown(5)


async def get(server: OpsServer, path: str) -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{server.port}{path}") as answer:
        return answer.status, await answer.text(), answer.headers["Content-Type"]


async def test_readyz_says_what_is_wrong_and_livez_does_not_care(telemetry: Telemetry) -> None:
    health = Health(database_away_s=0)
    async with OpsServer("127.0.0.1:0", OwnPages(health, telemetry.registry)) as server:
        status, text, _ = await get(server, "/readyz")
        assert (status, text.partition(" (for")[0]) == (503, "not ready\nstarting: not yet serving")
        health.started()
        assert (await get(server, "/readyz"))[:2] == (200, "ready\n")
        health.follow_database(lambda: 7.25)
        status, text, _ = await get(server, "/readyz")
        assert status == 503
        assert "database: does not answer (for 7.2 s)" in text
        health.follow_database(lambda: 0.0)
        health.start_draining()
        status, text, _ = await get(server, "/readyz")
        assert status == 503
        assert "draining: shutting down" in text
        assert (await get(server, "/livez"))[:2] == (200, "alive\n")


async def test_metrics_are_served_for_prometheus(telemetry: Telemetry) -> None:
    telemetry.instruments.delivered(0.2)
    telemetry.instruments.in_flight.follow(lambda: 3)
    telemetry.instruments.commit(events=2, rows=4, duration_s=0.01, result="committed")
    async with OpsServer("127.0.0.1:0", OwnPages(Health(database_away_s=5), telemetry.registry)) as server:
        status, text, content_type = await get(server, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    assert 'dispatcher_deliveries_total{dispatcher_delivery_outcome="delivered"} 1.0' in text
    assert "dispatcher_attempts_in_flight 3.0" in text
    assert 'dispatcher_delivery_latency_seconds_bucket{le="0.25"} 1.0' in text
    assert "dispatcher_outbox_rows_total 4.0" in text
    assert 'service_instance_id="i-1"' in text


async def test_scrapes_at_once_all_see_every_metric(telemetry: Telemetry) -> None:
    telemetry.instruments.delivered(0.2)
    async with OpsServer("127.0.0.1:0", OwnPages(Health(database_away_s=5), telemetry.registry)) as server:
        answers = await asyncio.gather(*(get(server, "/metrics") for _ in range(10)))
    assert all(text.count("\ndispatcher_deliveries_total{") == 3 for _, text, _ in answers)


async def test_nothing_else_is_served(telemetry: Telemetry) -> None:
    async with OpsServer("127.0.0.1:0", OwnPages(Health(database_away_s=5), telemetry.registry)) as server:
        assert (await get(server, "/"))[0] == 404


async def test_a_taken_port_is_an_error_and_the_port_is_free_after_the_end(telemetry: Telemetry) -> None:
    async with OpsServer("127.0.0.1:0", OwnPages(Health(database_away_s=5), telemetry.registry)) as server:
        listen = f"127.0.0.1:{server.port}"
        with pytest.raises(OSError, match="in use"):
            await OpsServer(listen, OwnPages(Health(database_away_s=5), telemetry.registry)).__aenter__()
    async with OpsServer(listen, OwnPages(Health(database_away_s=5), telemetry.registry)) as again:
        assert (await get(again, "/livez"))[0] == 200


@pytest.mark.parametrize(
    ("seen_by", "authorization", "are_shown"),
    [
        (TenantMetrics(None, is_open=True), "", True),
        (TenantMetrics(None, is_open=False), "", False),
        (TenantMetrics(None, is_open=False), "Bearer ", False),
        (TenantMetrics("secret", is_open=False), "Bearer secret", True),
        (TenantMetrics("secret", is_open=True), "", False),
        (TenantMetrics("secret", is_open=False), "Bearer wrong", False),
        (TenantMetrics("secret", is_open=False), "secret", False),
        (TenantMetrics("secret", is_open=False), "Bearer \udce9", False),
    ],
)
async def test_metrics_of_single_tenants_are_for_those_who_may_see_them(
    telemetry: Telemetry,
    seen_by: TenantMetrics,
    authorization: str,
    are_shown: bool,
) -> None:
    telemetry.instruments.worst_endpoints([("acme", "billing", 7, 1.5)])
    telemetry.instruments.delivered(0.2)
    pages = OwnPages(Health(database_away_s=5), telemetry.registry)
    assert seen_by.are_shown_to(authorization) is are_shown
    async with OpsServer("127.0.0.1:0", pages, seen_by) as server:
        headers = {"Authorization": authorization} if authorization.isascii() else {}
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{server.port}/metrics", headers=headers) as answer,
        ):
            text = await answer.text()
    assert ("acme" in text) is are_shown
    assert "billing" not in text or are_shown
    assert "dispatcher_delivery_latency_seconds_bucket" in text


async def test_public_keys_are_published_where_they_are_asked_for_and_nothing_else(telemetry: Telemetry) -> None:
    key = EndpointKey(UUID(int=1), UUID(int=2))
    known = Ed25519Key(b"e" * 32)

    async def keys(asked: EndpointKey) -> dict[str, bytes]:
        if asked == EndpointKey(UUID(int=3), UUID(int=3)):
            raise UnavailableError("away")
        return {"key-1": known.public} if asked == key else {}

    health = Health(database_away_s=5)
    path = f"/.well-known/webhook-keys/{key.tenant_id}/{key.endpoint_id}"
    async with OpsServer("127.0.0.1:0", OwnPages(health, telemetry.registry, keys)) as server:
        status, text, kind = await get(server, path)
        assert (status, kind) == (200, "application/jwk-set+json")
        read = jwt.PyJWKSet.from_json(text)["key-1"].key
        read.verify(known.sign(b"what was sent"), b"what was sent")
        assert (await get(server, path.replace("2", "9")))[0] == 404
        assert (await get(server, "/.well-known/webhook-keys/x/y"))[0] == 404
        away = f"/.well-known/webhook-keys/{UUID(int=3)}/{UUID(int=3)}"
        assert (await get(server, away))[0] == 503
    async with OpsServer("127.0.0.1:0", OwnPages(health, telemetry.registry)) as server:
        assert (await get(server, path))[0] == 404
