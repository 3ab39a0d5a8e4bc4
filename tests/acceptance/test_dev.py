"""`dispatcher dev` as a newcomer meets it: whole processes in an empty folder, stopped in every way there is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dispatcher.embedded.processes import is_running
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 60.0
DEMO_TIMEOUT_S = 90.0
STOP_LIMIT_S = 5.0
ANY_PORTS = {f"DISPATCHER_{name}_LISTEN": "127.0.0.1:0" for name in ("GRPC", "ADMIN", "OPS")}
PLANTED = """
import sys
from dispatcher.cli import dev_session
from dispatcher.cli.main import main
from dispatcher.embedded.ledger import OrderLedger

dev_session.STALL_S = 1.0
real = OrderLedger.received
held = []

def received(self, endpoint, event_id, *, at_s, accepted, attempt):
    {fault}

OrderLedger.received = received
main(["dev", "--demo", "40"])
"""
SWAP = """
    held.append((endpoint, event_id))
    if endpoint != "warehouse":
        real(self, endpoint, event_id, at_s=at_s, accepted=accepted, attempt=attempt)
    elif sum(name == "warehouse" for name, _ in held) % 2 == 0:
        former = [event for name, event in held if name == "warehouse"][-2]
        for event in (event_id, former):
            real(self, endpoint, event, at_s=at_s, accepted=True, attempt=attempt)
"""
DROP = """
    if event_id not in held and len(held) < 1:
        held.append(event_id)
    if event_id not in held:
        real(self, endpoint, event_id, at_s=at_s, accepted=accepted, attempt=attempt)
"""


def environment(extra: Mapping[str, str] = ANY_PORTS) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT / "src" / "generated")))
    return {**ours, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


async def start(folder: Path, *arguments: str, env: Mapping[str, str] = ANY_PORTS) -> Process:
    command = arguments if arguments and arguments[0] == "-c" else ("-m", "dispatcher", "dev", *arguments)
    return await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=folder, env=environment(env), stdout=PIPE, stderr=PIPE
    )


async def finish(process: Process) -> tuple[int, str, str]:
    try:
        out, err = await asyncio.wait_for(process.communicate(), DEMO_TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def demo(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a demo that has to succeed; its line of JSON."""
    code, out, err = await finish(await start(folder, *arguments))
    assert code == 0, err
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


async def read_until(process: Process, pattern: str) -> re.Match[str]:
    """Read standard output up to the first line in which the pattern is found."""
    assert process.stdout is not None
    lines = []
    async with asyncio.timeout(START_TIMEOUT_S):
        while line := (await process.stdout.readline()).decode():
            lines.append(line)
            if found := re.search(pattern, line):
                return found
    stderr = (await process.stderr.read()).decode() if process.stderr else ""
    raise AssertionError(f"{pattern} was never said:\n{''.join(lines)}{stderr}")


@asynccontextmanager
async def running(folder: Path, env: Mapping[str, str] = ANY_PORTS) -> AsyncIterator[Process]:
    process = await start(folder, env=env)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def is_serving(channel: grpc.aio.Channel) -> bool:
    request = health_pb2.HealthCheckRequest(service="webhooks.v1.PublisherService")
    answer = await health_pb2_grpc.HealthStub(channel).Check(request)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def database_pid(folder: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return int((folder / ".local/postgres/data/postmaster.pid").read_text().split()[0])
    return None


async def stop(process: Process, number: signal.Signals) -> float:
    """Send the signal; seconds until the process has ended. What it says meanwhile is read, or it would block."""
    began = time.monotonic()
    process.send_signal(number)
    await asyncio.wait_for(process.communicate(), DEMO_TIMEOUT_S)
    return time.monotonic() - began


async def test_a_demo_delivers_all_in_order_prints_one_line_and_leaves_nothing_running(tmp_path: Path) -> None:
    found = await demo(tmp_path, "--demo", "300")
    assert (found["published"], found["delivered"], found["verified"], found["out_of_order"]) == (300, 300, 300, 0)
    assert list(found)[:8] == [
        "published", "delivered", "verified", "out_of_order", "duplicates", "retried", "p50_ms", "p99_ms",
    ]  # fmt: skip
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert found["retried"] > 0
    assert database_pid(tmp_path) is None
    assert (await demo(tmp_path, "--demo", "20", "--rate", "0"))["delivered"] == 20


async def test_a_killed_run_leaves_nothing_that_disturbs_the_next(tmp_path: Path) -> None:
    async with running(tmp_path) as process:
        await read_until(process, "first verified webhook")
        database = database_pid(tmp_path)
        assert database is not None
        process.kill()
        await process.wait()
    found = await demo(tmp_path, "--demo", "100")
    assert (found["delivered"], found["unverified"], found["out_of_order"]) == (100, 0, 0)
    assert not is_running(database)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_run_serves_all_ports_and_ends_within_5_s_of_the_signal(tmp_path: Path, number: signal.Signals) -> None:
    async with running(tmp_path) as process:
        grpc_port = (await read_until(process, r"gRPC API +127\.0\.0\.1:(\d+)"))[1]
        ops_port = (await read_until(process, r"http://127\.0\.0\.1:(\d+)/metrics"))[1]
        await read_until(process, "first verified webhook")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            await until(lambda: is_serving(channel))
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{ops_port}/readyz") as response:
            assert response.status == 200
        database = database_pid(tmp_path)
        assert database is not None
        assert await stop(process, number) < STOP_LIMIT_S
        assert process.returncode == 0
        assert not is_running(database)


async def test_a_second_run_in_the_same_folder_says_so_and_leaves_the_first_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as first:
        await read_until(first, "gRPC API")
        code, _, err = await finish(await start(tmp_path))
        assert code == 5
        assert f"already runs in this folder: {tmp_path}/.local is in use by process {first.pid}" in err
        await read_until(first, "first verified webhook")


async def test_a_port_in_use_is_named_with_the_setting_and_nothing_is_started(tmp_path: Path) -> None:
    holder = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with holder:
        port = holder.sockets[0].getsockname()[1]
        env = {**ANY_PORTS, "DISPATCHER_OPS_LISTEN": f"127.0.0.1:{port}"}
        code, _, err = await finish(await start(tmp_path, env=env))
    assert code == 5
    assert f"port {port} is in use" in err
    assert "DISPATCHER_OPS_LISTEN=" in err
    assert not (tmp_path / ".local/postgres").exists()


async def test_a_demo_that_is_interrupted_fails(tmp_path: Path) -> None:
    process = await start(tmp_path, "--demo", "100000", "--rate", "20")
    assert process.stderr is not None
    async with asyncio.timeout(START_TIMEOUT_S):
        while b"first verified webhook" not in await process.stderr.readline():
            pass
    process.send_signal(signal.SIGINT)
    code, out, _ = await finish(process)
    assert code == 130
    assert json.loads(out)["published"] < 100_000


@pytest.mark.parametrize(("fault", "field"), [(SWAP, "out_of_order"), (DROP, "missing")])
async def test_a_demo_whose_webhooks_come_in_the_wrong_order_or_not_at_all_fails(
    tmp_path: Path, fault: str, field: str
) -> None:
    code, out, err = await finish(await start(tmp_path, "-c", PLANTED.format(fault=fault.strip())))
    assert code == 1, err
    assert json.loads(out)[field] > 0
    assert "the demo found faults" in err
