"""The receiver of a peer's load: answers 204 and notes what came. `python -m tests.benchmarks.peer_receiving PORT`
prints one JSON object at SIGTERM: `receipts`, in the order of arrival, each `[endpoint, number, latency_ms]`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from dataclasses import dataclass

from aiohttp import web

BODY_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Receipt:
    """One webhook: the `number`-th event of its endpoint (from 0), and how long it took since its publishing began."""

    endpoint: int
    number: int
    latency_ms: float


async def receive(port: int) -> None:
    """Until SIGTERM."""
    receipts: list[tuple[int, int, float]] = []
    distinct: set[tuple[int, int]] = set()

    async def take(request: web.Request) -> web.Response:
        data = json.loads(await request.read())
        latency_ms = (time.monotonic_ns() - data["sent_ns"]) / 1e6
        key = int(request.match_info["endpoint"]), data["number"]
        distinct.add(key)
        receipts.append((*key, latency_ms))
        return web.Response(status=204)

    async def count(_: web.Request) -> web.Response:
        return web.json_response(len(distinct))

    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.router.add_post("/e/{endpoint}", take)
    app.router.add_get("/count", count)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    print(json.dumps({"receipts": receipts}))


if __name__ == "__main__":
    import uvloop

    uvloop.run(receive(int(sys.argv[1])))
