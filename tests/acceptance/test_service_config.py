"""docs/examples/service_config.json, as gRPC itself understands it: two dispatchers behind one channel."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
from webhooks.admin.v1 import admin_pb2

from tests.support.callers import Caller, calling, event
from tests.support.mesh import SERVICE_CONFIG, SIDECAR_CONFIG
from tests.support.node import QUICK
from tests.support.postgres import TestDatabase
from tests.support.process import Served, processes

STOP_S = 3 * float(QUICK["DISPATCHER_DELIVERY_DRAIN_S"])
SEEN_WITHIN_S = 20.0
"""A channel looks again for an instance that was away after a pause of its own."""
ROUND = 4


class Balanced:
    """One channel to two dispatchers, without any retry but the config's."""

    def __init__(self, caller: Caller, served: tuple[Served, ...]) -> None:
        self.caller = caller
        self.ids: list[str] = []
        self._served = served
        self._numbers = itertools.count()

    async def publish(self, count: int) -> list[int]:
        """Publish so many events, one call each, none of which may fail; how many calls each has answered."""
        before = await asyncio.to_thread(self._answered)
        for number in itertools.islice(self._numbers, count):
            await self.caller.publish(event(f"e-{number}"))
            self.ids.append(f"e-{number}")
        after = await asyncio.to_thread(self._answered)
        return [b - a for a, b in zip(before, after, strict=True)]

    async def until_spread(self, shares: list[int]) -> None:
        """Publish until a round of calls is spread like that."""
        async with asyncio.timeout(SEEN_WITHIN_S):
            while await self.publish(ROUND) != shares:
                pass

    def _answered(self) -> list[int]:
        return [_count(served.page("/metrics")[1]) for served in self._served]


def _count(metrics: str) -> int:
    wanted = ("rpc_server_call_duration_seconds_count", "PublisherService/Publish", '"OK"')
    lines = [line for line in metrics.splitlines() if all(word in line for word in wanted)]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines)


@asynccontextmanager
async def balanced(*served: Served) -> AsyncIterator[Balanced]:
    target = "ipv4:" + ",".join(f"127.0.0.1:{each.grpc_port}" for each in served)
    options = [("grpc.service_config", SERVICE_CONFIG.read_text()), ("grpc.use_local_subchannel_pool", 1)]
    options += [(f"grpc.{bound}_reconnect_backoff_ms", 200) for bound in ("initial", "min", "max")]
    async with calling(*served) as (direct, *_):
        await direct.tenant()
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        made = Balanced(Caller(channel, channel), served)
        await made.until_spread([ROUND // 2, ROUND // 2])
        yield made


def test_through_a_sidecar_it_is_the_same_without_balancing_and_health() -> None:
    direct, sidecar = (json.loads(path.read_text()) for path in (SERVICE_CONFIG, SIDECAR_CONFIG))
    assert direct.keys() - sidecar.keys() == {"loadBalancingConfig", "healthCheckConfig"}
    assert sidecar["methodConfig"] == direct["methodConfig"]


async def test_no_call_fails_in_a_rolling_restart(database: TestDatabase, tmp_path: Path) -> None:
    with processes(database.dsn, tmp_path, 2) as both:
        async with balanced(*both) as calls:
            for served in both:
                served.terminate()
                stopping = asyncio.create_task(served.exit_code(STOP_S))
                while not stopping.done():
                    await calls.caller.publish(event(f"meanwhile-{served.pid}-{len(calls.ids)}"))
                    calls.ids.append(f"meanwhile-{served.pid}-{len(calls.ids)}")
                assert stopping.result() == 0
                await served.started()
                await calls.until_spread([ROUND // 2, ROUND // 2])
        async with calling(both[0]) as (direct,):
            for event_id in calls.ids:
                (result,) = await direct.publish(event(event_id))
                assert result.duplicate, f"{event_id} was acknowledged"


async def test_an_instance_that_an_operator_drains_is_not_called_any_more(
    database: TestDatabase, tmp_path: Path
) -> None:
    with processes(database.dsn, tmp_path, 2) as both:
        async with balanced(*both) as calls, calling(*both) as (first, _):
            await first.admin.Drain(admin_pb2.DrainRequest(), timeout=10)
            await calls.until_spread([0, ROUND])
            assert await calls.publish(20) == [0, 20]
