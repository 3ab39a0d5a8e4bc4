"""The same load on dispatcher, and on stand-ins that take the calls which the other products' documents describe."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from dispatcher.cli.load import Verdict
from tests.benchmarks import peer_load
from tests.support.postgres import TestDatabase
from tests.support.process import free_ports, processes

KEY = "key"
SMALL = ("--seconds", "1", "--endpoints", "4", "--settle-s", "5", "--rates", "40")
COUNT = 40


async def test_a_load_on_dispatcher_is_delivered_whole_and_in_order(database: TestDatabase, tmp_path: Path) -> None:
    with processes(database.dsn, tmp_path) as (served,):
        address = f"127.0.0.1:{served.grpc_port}"
        (told,) = await peer_load.main(["dispatcher", address, *SMALL, "--pids", f"serve={served.pid}"])
    verdict = told.verdict
    assert (verdict.published, verdict.received) == (COUNT, COUNT)
    assert (verdict.refused, verdict.lost, verdict.duplicated, verdict.out_of_order) == (0, 0, 0, 0)
    assert verdict.p50_ms is not None
    assert verdict.p99_ms is not None
    assert 0 < verdict.p50_ms <= verdict.p99_ms
    assert told.cpu_us["serve"] > 0


class StandIn:
    """Takes an endpoint's URL under some id and forwards an event's data to it, but for what `loses` says."""

    def __init__(self) -> None:
        self.urls: dict[str, str] = {}
        self.loses = self.taken = 0

    async def forward(self, key: str, data: dict[str, Any]) -> None:
        self.taken += 1
        if self.taken > self.loses:
            async with aiohttp.ClientSession() as session, session.post(self.urls[key], json=data) as answer:
                assert answer.status == 204

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Its address."""

        @web.middleware
        async def authorized(request: web.Request, handler: Any) -> web.StreamResponse:
            assert request.headers["authorization"] == f"Bearer {KEY}"
            answer: web.StreamResponse = await handler(request)
            return answer

        app = web.Application(middlewares=[authorized])
        app.router.add_route("*", "/api/v1/{path:.*}", self.take)
        runner = web.AppRunner(app, access_log=None)
        (port,) = free_ports(1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            await runner.cleanup()

    async def take(self, request: web.Request) -> web.Response:
        body = await request.json()
        match request.method, *request.match_info["path"].strip("/").split("/"):
            case "POST", "app" if body["name"] and body["uid"]:
                return web.json_response({}, status=201)
            case "POST", "app", app, "endpoint":
                self.urls[app] = body["url"]
            case "POST", "app", app, "msg" if body["eventType"]:
                await self.forward(app, body["payload"])
            case "POST", "projects", "mine", "endpoints":
                self.urls[f"uid-{body['name']}"] = body["url"]
                return web.json_response({"status": True, "data": {"uid": f"uid-{body['name']}"}}, status=201)
            case "POST", "projects", "mine", "subscriptions" if body["endpoint_id"] in self.urls:
                return web.json_response({"status": True, "data": {}}, status=201)
            case "POST", "projects", "mine", "events" if body["event_type"]:
                await self.forward(body["endpoint_id"], body["data"])
            case "PUT", "tenants", _:
                return web.json_response({}, status=201)
            case "POST", "tenants", tenant, "destinations" if (body["type"], body["topics"]) == ("webhook", ["mine"]):
                self.urls[tenant] = body["config"]["url"]
            case "POST", "publish" if body["topic"] == "mine":
                await self.forward(body["tenant_id"], body["data"])
            case unknown:
                raise web.HTTPNotFound(text=str(unknown))
        return web.json_response({}, status=202)


@pytest.mark.parametrize("product", ["svix", "convoy", "outpost"])
async def test_a_load_on_a_peer_goes_by_its_rest_api(product: str) -> None:
    stand_in = StandIn()
    async with stand_in.serving() as address:
        verdict = await _load(product, address)
    assert len(stand_in.urls) == 4
    assert (verdict.published, verdict.received) == (COUNT, COUNT)
    assert (verdict.refused, verdict.lost, verdict.duplicated, verdict.out_of_order) == (0, 0, 0, 0)


async def test_what_a_peer_took_and_never_sent_is_told_as_lost() -> None:
    stand_in = StandIn()
    stand_in.loses = 3
    async with stand_in.serving() as address:
        verdict = await _load("outpost", address, "--settle-s", "1")
    assert (verdict.published, verdict.received, verdict.lost) == (COUNT, COUNT - 3, 3)


async def test_what_a_peer_refuses_is_told_and_counts_neither_as_published_nor_as_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in = StandIn()
    refusing = asyncio.Event()
    forward = stand_in.forward

    async def refuse(key: str, data: dict[str, Any]) -> None:
        if not refusing.is_set():
            refusing.set()
            raise web.HTTPTooManyRequests(text="slowly")
        await forward(key, data)

    stand_in.forward = refuse  # type: ignore[method-assign]
    async with stand_in.serving() as address:
        verdict = await _load("svix", address)
    assert (verdict.published, verdict.refused, verdict.lost) == (COUNT - 1, 1, 0)
    assert "429 slowly" in capsys.readouterr().err


async def _load(product: str, address: str, *arguments: str) -> Verdict:
    own = ("--key", KEY, "--project", "mine", "--topic", "mine", "--pids", f"here={os.getpid()}")
    (told,) = await peer_load.main([product, address, *SMALL, *own, *arguments])
    return told.verdict
