"""A publisher that costs little: requests are made beforehand, answers are not parsed.

`python -m tests.benchmarks.calling PORT KIND CALLERS CALLS BATCH` prints one JSON object. KIND is `publish`, or `empty`
for the health check of the same server, which is what a unary call costs that does nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc.aio
from grpc_health.v1 import health_pb2
from webhooks.v1 import event_pb2, publisher_pb2

from tests.benchmarks.seeding import DATA, TENANT, type_of

PUBLISH = "/webhooks.v1.PublisherService/Publish"
CHECK = "/grpc.health.v1.Health/Check"


def request_of(batch: int, first: int) -> bytes:
    """A request with so many events; each goes to one endpoint, the next one's."""
    events = [event_pb2.Event(type=type_of(first + number), data=DATA) for number in range(batch)]
    return publisher_pb2.PublishRequest(parent=f"tenants/{TENANT}", events=events).SerializeToString()


async def call_all(port: int, kind: str, callers: int, calls: int, batch: int) -> float:
    """Make `calls` calls, `callers` at a time; calls per second."""
    method, empty = (CHECK, health_pb2.HealthCheckRequest().SerializeToString()), kind == "empty"
    requests = [method[1]] if empty else [request_of(batch, number * batch) for number in range(16)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary(CHECK if empty else PUBLISH)
        await ask(requests[0], wait_for_ready=True)
        numbers = iter(range(calls))

        async def work() -> None:
            for number in numbers:
                await ask(requests[number % len(requests)])

        start_s = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(callers)))
        return calls / (time.perf_counter() - start_s)


if __name__ == "__main__":
    port, callers, calls, batch = (int(sys.argv[place]) for place in (1, 3, 4, 5))
    rate = asyncio.run(call_all(port, sys.argv[2], callers, calls, batch))
    print(json.dumps({"calls_per_s": rate, "cpu_s": time.process_time()}))
