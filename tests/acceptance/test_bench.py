"""`dispatcher bench` against a running service: it tells what became of every event, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from webhooks.v1 import tenant_pb2

from tests.support.callers import CALL_TIMEOUT_S, WAIT_S, Caller, calling
from tests.support.cli import CliResult, interruptible_cli, run_cli
from tests.support.postgres import TestDatabase
from tests.support.process import Served, free_ports, processes
from tests.support.waiting import until

SMALL = ("--seconds", "1", "--endpoints", "4", "--rate", "40")
COUNT = 40


@pytest.fixture
async def running(database: TestDatabase, tmp_path: Path) -> AsyncIterator[tuple[Served, Caller]]:
    with processes(database.dsn, tmp_path) as (served,):
        async with calling(served) as (caller,):
            yield served, caller


async def bench(served: Served, *arguments: str) -> CliResult:
    target = ("--target", f"127.0.0.1:{served.grpc_port}")
    return await asyncio.to_thread(run_cli, "bench", *SMALL, *target, *arguments)


async def tenants(caller: Caller) -> list[str]:
    listed = await caller.tenants.ListTenants(tenant_pb2.ListTenantsRequest(), timeout=CALL_TIMEOUT_S)
    return [tenant.name for tenant in listed.tenants]


async def test_every_event_of_a_load_comes_once_and_in_order_and_nothing_is_left_behind(
    running: tuple[Served, Caller],
) -> None:
    served, caller = running
    result = await bench(served, "--json")
    assert result.code == 0, result.err
    assert isinstance(result.json, dict)
    told = {name: result.json[name] for name in ("published", "received", "refused", "lost", "out_of_order")}
    assert told == {"published": COUNT, "received": COUNT, "refused": 0, "lost": 0, "out_of_order": 0}
    assert 0 < result.json["p50_ms"] <= result.json["p99_ms"] < 60_000
    assert await tenants(caller) == []


async def test_what_never_comes_is_told_as_lost_and_fails(running: tuple[Served, Caller]) -> None:
    served, caller = running
    (nobody,) = free_ports(1)
    result = await bench(served, "--url", f"http://127.0.0.1:{nobody}", "--settle", "0.5")
    assert result.code == 1
    assert f"lost             {COUNT}" in result.out
    assert await tenants(caller) == []


async def test_a_tenant_that_is_kept_can_be_looked_at(running: tuple[Served, Caller]) -> None:
    served, caller = running
    result = await bench(served, "--keep")
    assert result.code == 0, result.err
    (tenant,) = await tenants(caller)
    assert tenant.startswith("tenants/bench-")


async def test_ctrl_c_ends_the_load_and_leaves_nothing_behind(running: tuple[Served, Caller]) -> None:
    served, caller = running
    target = f"127.0.0.1:{served.grpc_port}"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        *interruptible_cli("bench", "--seconds", "600", "--target", target), env=environ
    )
    try:
        await until(lambda: tenants(caller), WAIT_S)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(WAIT_S):
            assert await process.wait() == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert await tenants(caller) == []


@pytest.mark.parametrize("wrong", [("--rate", "0"), ("--rate", "fast"), ("--listen", "nowhere")])
async def test_wrong_options_are_refused_before_anything_is_made(
    running: tuple[Served, Caller], wrong: tuple[str, str]
) -> None:
    served, caller = running
    result = await bench(served, *wrong)
    assert result.code == 2
    assert await tenants(caller) == []
