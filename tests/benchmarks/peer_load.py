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
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc

from dispatcher.cli.load import Load, Verdict, judge, publish_all, settle
from dispatcher.embedded.load_receiver import Receipt
from tests.benchmarks.peer_adapters import CONNECT, Peer, Server
from tests.benchmarks.processes import ROOT, clean_environ, cpu_s, ended_output, python
from tests.support.process import free_ports

SATURATION = "max"
READY_TIMEOUT_S = 10.0


REFUSALS = (RuntimeError, grpc.RpcError, aiohttp.ClientError, TimeoutError)
"""What a call raises that the server did not take."""


@dataclass(frozen=True, slots=True)
class PeerVerdict:
    """A verdict, and the CPU time of each process of the server for one event, in µs."""

    verdict: Verdict
    cpu_us: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self.verdict) | {"cpu_us_per_event": dict(self.cpu_us)}


async def run(peer: Peer, load: Load, pids: Mapping[str, int]) -> PeerVerdict:
    """Make the endpoints, publish, wait until all has come or `settle_s` is over, judge."""
    async with _receiver() as receiving:
        for number in range(load.endpoints):
            await peer.add_endpoint(number, receiving.url(number))
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        published = await publish_all(peer.publish, load, REFUSALS)
        await settle(receiving.count, published.expected, load.settle_s)
        cpu = {name: (cpu_s(pid) - before[name]) / max(1, published.count) * 1e6 for name, pid in pids.items()}
    for error in published.errors:
        print(f"refused: {error}", file=sys.stderr)
    return PeerVerdict(judge(load, published, receiving.receipts), cpu)


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
            out = await ended_output(process)
    receiving.receipts = [Receipt(*each) for each in json.loads(out)["receipts"]]


async def _answers(receiving: Receiving) -> bool:
    with contextlib.suppress(aiohttp.ClientError):
        return await receiving.count() == 0
    return False


async def main(arguments: Sequence[str] | None = None) -> list[PeerVerdict]:
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
        print(json.dumps(verdicts[-1].as_json()), flush=True)
    if said.json:
        said.json.write_text(json.dumps([verdict.as_json() for verdict in verdicts], indent=2) + "\n")
    return verdicts


if __name__ == "__main__":
    asyncio.run(main())
