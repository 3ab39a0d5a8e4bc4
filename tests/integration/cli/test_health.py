"""What a container's probes and hooks run."""

from __future__ import annotations

import asyncio
import time

from tests.support.api import serving
from tests.support.cli import CliResult, run_cli
from tests.support.postgres import TestDatabase
from tests.support.process import free_ports


async def health(port: int, *arguments: str) -> CliResult:
    return await asyncio.to_thread(run_cli, "health", *arguments, "--target", f"127.0.0.1:{port}")


async def test_health_is_0_while_the_service_serves_and_3_once_it_drains(database: TestDatabase) -> None:
    async with serving(database.options) as api:
        served = await health(api.server.port)
        assert (served.code, served.out) == (0, "SERVING\n")
        assert (await health(api.server.port, "--service", "webhooks.v1.PublisherService")).code == 0
        assert (await health(api.server.port, "--service", "webhooks.v1.NoService")).code == 4
        await api.server.drain()
        drained = await health(api.server.port)
        assert (drained.code, drained.out) == (3, "NOT_SERVING\n")


async def test_health_is_3_where_nobody_listens() -> None:
    (port,) = free_ports(1)
    assert (await health(port, "--timeout", "1")).code == 3


def test_prestop_waits_as_long_as_it_is_told() -> None:
    begun = time.monotonic()
    assert run_cli("prestop", "--sleep-s", "0.3").code == 0
    assert 0.3 <= time.monotonic() - begun < 5
    assert run_cli("prestop", "--sleep-s", "301").code == 2
