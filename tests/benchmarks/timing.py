"""From the call of Publish to the receiver, at a steady rate; and one commit with one POST, alone. Small programs:

    python -m tests.benchmarks.timing receive PORT               until SIGTERM, then one JSON object
    python -m tests.benchmarks.timing offer PORT RATE SECONDS TYPES    an open loop: late calls are not waited for
    python -m tests.benchmarks.timing alone DSN URL COUNT        what the baseline is: one after the other

The monotonic clock is the same in all processes of a machine; an event carries the time at which its call began.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from typing import Any

import aiohttp
import asyncpg
import grpc.aio
from aiohttp import web
from webhooks.v1 import event_pb2, publisher_pb2

from dispatcher.store.database import Database, DatabaseOptions, prepare_connection
from dispatcher.store.publish import publish
from dispatcher.store.routes import load
from tests.benchmarks.calling import PUBLISH
from tests.benchmarks.inserting import DATA, batch_of
from tests.benchmarks.seeding import DATA_BYTES, TENANT, type_of

HANGS_S = 3600.0
WARM_UP = 50
"""First events of a run that are not counted: connections are made, plans are chosen."""


async def receive(port: int) -> None:
    """Answer 204 and note how long each event took; print all in ms, in the order of arrival."""
    took_ms: list[float] = []

    async def take(request: web.Request) -> web.Response:
        data = await request.read()
        now_ns = time.monotonic_ns()
        if data.startswith(b'{"sent_ns":'):
            took_ms.append((now_ns - int(json.loads(data)["sent_ns"])) / 1e6)
        return web.Response(status=204)

    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(HANGS_S)
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/hang", hang)
    app.router.add_post("/in", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    print(json.dumps({"took_ms": took_ms}))


async def offer(port: int, rate: float, seconds: float, types: int) -> None:
    """Publish single events at this rate, whatever becomes of them meanwhile."""
    calls: set[asyncio.Future[Any]] = set()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary(PUBLISH)
        start_s = time.monotonic()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start_s + number / rate - time.monotonic()))
            call = asyncio.ensure_future(_wait(ask(_stamped(number, types), wait_for_ready=True)))
            calls.add(call)
            call.add_done_callback(calls.discard)
        await asyncio.gather(*calls)
    print(json.dumps({"offered": int(rate * seconds), "took_s": time.monotonic() - start_s}))


async def _wait(call: Any) -> None:
    await call


def _stamped(number: int, types: int) -> bytes:
    data = json.dumps({"sent_ns": time.monotonic_ns()}).encode()
    data = data[:-1] + b',"note":"' + b"x" * (DATA_BYTES - len(data) - 11) + b'"}'
    event = event_pb2.Event(type=type_of(number, types), data=data)
    message: bytes = publisher_pb2.PublishRequest(parent=f"tenants/{TENANT}", events=[event]).SerializeToString()
    return message


async def alone(dsn: str, url: str, count: int) -> None:
    """One durable commit of one event and one POST of it, one after the other; print all in ms."""
    async with Database.open(DatabaseOptions(dsn)) as database:
        known = await load(database, TENANT)
    assert known is not None
    routes = [(type_of(number), known.subscriptions[type_of(number)][0]) for number in range(len(known.subscriptions))]
    connection = await asyncpg.connect(dsn)
    await prepare_connection(connection)
    took_ms = []
    async with aiohttp.ClientSession() as session:
        for _ in range(count):
            batch = batch_of(1, known.tenant_id, known.version, routes)
            begun_s = time.perf_counter()
            await publish(connection, [batch], lock_timeout_s=5.0, timeout_s=30.0)
            async with session.post(url, data=DATA) as answer:
                await answer.read()
            took_ms.append((time.perf_counter() - begun_s) * 1000)
    await connection.close()
    print(json.dumps({"took_ms": took_ms}))


if __name__ == "__main__":
    import uvloop

    match sys.argv[1:]:
        case ["receive", port]:
            uvloop.run(receive(int(port)))
        case ["offer", port, rate, seconds, types]:
            asyncio.run(offer(int(port), float(rate), float(seconds), int(types)))
        case ["alone", dsn, url, count]:
            uvloop.run(alone(dsn, url, int(count)))
        case _:
            raise SystemExit(__doc__)
