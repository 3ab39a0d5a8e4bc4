"""The same load on any webhook server, the same checks: what is lost, twice or out of order, how long it took, CPU.

    python -m tests.benchmarks.peer_load dispatcher 127.0.0.1:50051 --rates 500,max --pids serve=PID,database=PID
    python -m tests.benchmarks.peer_load svix http://127.0.0.1:8071 --key TOKEN …

Run it on the server's machine: the receiver listens on loopback, and clocks and processes are read here. See
docs/benchmarks.md for what each product must be told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
import grpc

from tests.benchmarks.peer_adapters import CONNECT, Peer, Server
from tests.benchmarks.peer_receiving import Receipt
from tests.benchmarks.processes import ROOT, clean_environ, cpu_s, python
from tests.support.process import free_ports

SATURATION = "max"
PAD_BYTES = 360
"""With it an event's data has about 400 bytes."""
READY_TIMEOUT_S = 10.0
QUIET_S = 0.2


@dataclass(frozen=True, slots=True)
class Load:
    """`rate` events a second in all (None: as fast as the server takes them), for `seconds`, to `endpoints` in turn."""

    endpoints: int
    rate: float | None
    seconds: float
    settle_s: float


@dataclass(slots=True)
class Published:
    """By endpoint how many were taken, in order from 0 on; `uncertain` are calls that failed: the webhook may come."""

    taken: dict[int, list[int]] = field(default_factory=dict)
    uncertain: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the events that the server had taken. Times in ms from the call's start to the receipt."""

    offered_per_s: float | None
    published: int
    refused: int
    published_per_s: float
    received: int
    received_per_s: float
    lost: int
    duplicated: int
    out_of_order: int
    p50_ms: float | None
    p99_ms: float | None
    cpu_us_per_event: Mapping[str, float]


def judge(published: Published, receipts: Sequence[Receipt]) -> tuple[int, int, int]:
    """How many were lost, came again, and came first after a later one of their endpoint had."""
    highest: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    duplicated = out_of_order = 0
    for receipt in receipts:
        key = (receipt.endpoint, receipt.number)
        if key in seen:
            duplicated += 1
            continue
        seen.add(key)
        out_of_order += receipt.number < highest.get(receipt.endpoint, -1)
        highest[receipt.endpoint] = max(receipt.number, highest.get(receipt.endpoint, -1))
    taken = {(endpoint, number) for endpoint, numbers in published.taken.items() for number in numbers}
    return len(taken - seen), duplicated, out_of_order


async def publish_all(peer: Peer, load: Load) -> Published:
    """One publisher for each endpoint, which waits for the answer before the next event: so there is an order to keep.

    A late one does not wait for its turn; one that was not taken counts as refused.
    """
    published = Published(taken={endpoint: [] for endpoint in range(load.endpoints)})
    start_s = time.monotonic()

    async def work(endpoint: int) -> None:
        for number in itertools.count():
            due_s = start_s if load.rate is None else start_s + (number * load.endpoints + endpoint) / load.rate
            if max(due_s, time.monotonic()) >= start_s + load.seconds:
                return
            await asyncio.sleep(due_s - time.monotonic())
            data = {"number": number, "sent_ns": time.monotonic_ns(), "note": "x" * PAD_BYTES}
            try:
                await peer.publish(endpoint, data)
            except (RuntimeError, grpc.RpcError, aiohttp.ClientError, TimeoutError) as error:
                published.uncertain += 1
                published.errors.append(repr(error)[:200])
            else:
                published.taken[endpoint].append(number)

    async with asyncio.TaskGroup() as group:
        for endpoint in range(load.endpoints):
            group.create_task(work(endpoint))
    return published


async def run(peer: Peer, load: Load, pids: Mapping[str, int]) -> Verdict:
    """Make the endpoints, publish, wait until all has come or `settle_s` is over, judge."""
    async with _receiver() as receiving:
        for number in range(load.endpoints):
            await peer.add_endpoint(number, receiving.url(number))
        before, begun_s = {name: cpu_s(pid) for name, pid in pids.items()}, time.monotonic()
        published = await publish_all(peer, load)
        took_s = time.monotonic() - begun_s
        count = sum(map(len, published.taken.values()))
        received_s = await receiving.settled(count, load.settle_s) - begun_s
        cpu = {name: (cpu_s(pid) - before[name]) / max(1, count) * 1e6 for name, pid in pids.items()}
    for error in published.errors[:3]:
        print(f"refused: {error}", file=sys.stderr)
    receipts = receiving.receipts
    latencies = sorted(receipt.latency_ms for receipt in receipts)
    tails = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else None
    lost, duplicated, out_of_order = judge(published, receipts)
    return Verdict(
        offered_per_s=load.rate,
        published=count,
        refused=published.uncertain,
        published_per_s=count / took_s,
        received=len(receipts) - duplicated,
        received_per_s=len(receipts) / received_s,
        lost=lost,
        duplicated=duplicated,
        out_of_order=out_of_order,
        p50_ms=tails[49] if tails else None,
        p99_ms=tails[98] if tails else None,
        cpu_us_per_event=cpu,
    )


class Receiving:
    """The receiver's process, as it is seen from here; `receipts` once it has ended."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self._base, self._session = f"http://127.0.0.1:{port}", session
        self.receipts: list[Receipt] = []

    def url(self, endpoint: int) -> str:
        return f"{self._base}/e/{endpoint}"

    async def count(self) -> int:
        """Events of which a webhook came so far."""
        async with self._session.get(f"{self._base}/count") as answer:
            return int(await answer.json())

    async def settled(self, expected: int, timeout_s: float) -> float:
        """Wait until so many have come, or none has come for `timeout_s`; the time of the last (monotonic, s)."""
        known, last_s = -1, time.monotonic()
        while known < expected and time.monotonic() < last_s + timeout_s:
            if (count := await self.count()) > known:
                known, last_s = count, time.monotonic()
            await asyncio.sleep(QUIET_S)
        return last_s


@contextlib.asynccontextmanager
async def _receiver() -> AsyncIterator[Receiving]:
    (port,) = free_ports(1)
    command = python("tests.benchmarks.peer_receiving", str(port))
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=clean_environ(), stdout=asyncio.subprocess.PIPE
    )
    async with aiohttp.ClientSession() as session:
        receiving = Receiving(port, session)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await _answers(receiving):
                    await asyncio.sleep(0.02)
            yield receiving
        finally:
            process.terminate()
            out, _ = await process.communicate()
    receiving.receipts = [Receipt(*each) for each in json.loads(out)["receipts"]]


async def _answers(receiving: Receiving) -> bool:
    with contextlib.suppress(aiohttp.ClientError):
        return await receiving.count() == 0
    return False


async def main(arguments: Sequence[str] | None = None) -> list[Verdict]:
    """One run for each rate, on endpoints of its own; a line of JSON each, all of them in `--json`."""
    parser = argparse.ArgumentParser(prog="peer_load")
    parser.add_argument("product", choices=sorted(CONNECT))
    parser.add_argument("address", help="HOST:PORT of dispatcher's gRPC, else the base URL of the REST API")
    parser.add_argument("--key", default="", help="the API key or token")
    parser.add_argument("--project", default="", help="Convoy's project")
    parser.add_argument("--topic", default="bench.load", help="one of the topics that Outpost was started with")
    parser.add_argument("--rates", default="500,1000,5000,max", help="events a second; max: as fast as it goes")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--settle-s", type=float, default=30.0, help="so long without a webhook is the end")
    parser.add_argument("--endpoints", type=int, default=100)
    parser.add_argument("--pids", default="", help="NAME=PID,…: all processes of the server, with database and queue")
    parser.add_argument("--json", type=Path)
    said = parser.parse_args(arguments)
    pids = {name: int(pid) for name, _, pid in (each.partition("=") for each in said.pids.split(",") if each)}
    verdicts = []
    for rate in said.rates.split(","):
        load = Load(said.endpoints, None if rate == SATURATION else float(rate), said.seconds, said.settle_s)
        async with CONNECT[said.product](Server(said.address, said.key, said.project, said.topic)) as peer:
            verdicts.append(await run(peer, load, pids))
        print(json.dumps(asdict(verdicts[-1])), flush=True)
    if said.json:
        said.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=2) + "\n")
    return verdicts


if __name__ == "__main__":
    asyncio.run(main())
