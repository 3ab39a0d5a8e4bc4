"""The baseline of every delivery: a bare aiohttp loop with uvloop that does the same POSTs from one process.

`python -m tests.benchmarks.posting BASE_URL URLS COUNT IN_FLIGHT…` prints one JSON object: a rate for each number in
flight. As many bytes, headers and hosts as the deliveries have; no database, no signature, no record, no order.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aiohttp

from tests.benchmarks.seeding import DATA_BYTES

HEADERS = {
    "content-type": "application/json",
    "user-agent": "dispatcher",
    "webhook-id": "msg_0190163d8694739bb4a5d3c26f8d6f6e",
    "webhook-timestamp": "1750000000",
    "webhook-signature": "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    "webhook-sequence": "1000",
    "webhook-attempt": "1",
    "webhook-event-type": "order.paid",
}
BODY = b"x" * DATA_BYTES


async def post_all(base: str, urls: int, count: int, in_flight: int) -> float:
    """Post `count` times to `urls` addresses in turn; POSTs per second."""
    targets = [f"{base}{number}" for number in range(urls)]
    numbers = iter(range(count))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()) as s:

        async def work() -> None:
            for number in numbers:
                async with s.post(targets[number % urls], data=BODY, headers=HEADERS, allow_redirects=False) as answer:
                    await answer.read()
                    assert answer.status == 204

        start_s = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(in_flight)))
        return count / (time.perf_counter() - start_s)


if __name__ == "__main__":
    import uvloop

    base, urls, count, *levels = sys.argv[1], *map(int, sys.argv[2:])
    rates = [uvloop.run(post_all(base, urls, count, in_flight)) for in_flight in levels]
    print(json.dumps({"posts_per_s": rates, "cpu_s": time.process_time()}))
