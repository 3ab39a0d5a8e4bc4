"""The network between dispatchers and PostgreSQL: cut, slow, half open, and without the reply to a commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.chaos.scene import LEASE_TTL_S, Scene
from tests.support.postgres import TestDatabase
from tests.support.proxy import TcpProxy, proxied

pytestmark = pytest.mark.chaos
TIMES = 3


async def cut(proxy: TcpProxy) -> None:
    """Everything is reset, and nothing gets through for a while."""
    proxy.refuse = True
    proxy.cut()
    await asyncio.sleep(LEASE_TTL_S + 1.0)
    proxy.refuse = False


async def cut_for_a_moment(proxy: TcpProxy) -> None:
    proxy.cut()


async def delayed(proxy: TcpProxy) -> None:
    """Every packet takes a tenth of a second each way."""
    proxy.delay_s = 0.1
    await asyncio.sleep(5.0)
    proxy.delay_s = 0.0


async def half_open(proxy: TcpProxy) -> None:
    """Nothing passes and nobody is told; then the old connections turn out to be dead."""
    proxy.open_road.clear()
    await asyncio.sleep(LEASE_TTL_S + 1.0)
    proxy.cut()
    proxy.open_road.set()


async def silent_for_a_while(proxy: TcpProxy) -> None:
    """The same, but everything that was under way arrives in the end, late."""
    proxy.open_road.clear()
    await asyncio.sleep(LEASE_TTL_S + 1.0)
    proxy.open_road.set()


async def replies_lost(proxy: TcpProxy) -> None:
    """Requests arrive, commits happen, nobody hears of it; then the connections break."""
    proxy.swallow_replies = True
    await asyncio.sleep(0.3)
    proxy.cut()
    proxy.swallow_replies = False


@pytest.mark.parametrize("fault", [cut, cut_for_a_moment, delayed, half_open, silent_for_a_while, replies_lost])
async def test_whatever_the_network_does_to_the_database_connections_all_resumes_by_itself(
    database: TestDatabase, tmp_path: Path, fault: Callable[[TcpProxy], Awaitable[None]]
) -> None:
    name = f"network {fault.__name__}"
    async with (
        proxied(database.dsn) as (proxy, through),
        Scene.open(name, database.dsn, tmp_path, through=through) as scene,
    ):
        await scene.shared()
        async with scene.publishing():
            for _ in range(TIMES):
                with scene.fault():
                    await fault(proxy)
                    await scene.shared()
                await scene.flows()
        await scene.judge()


async def test_one_replica_cut_off_from_the_database_gives_way_to_the_others(
    database: TestDatabase, tmp_path: Path
) -> None:
    name = "network, one replica cut off"
    async with (
        proxied(database.dsn) as (proxy, through),
        Scene.open(name, database.dsn, tmp_path, through_of={0: through}) as scene,
    ):
        await scene.shared()
        async with scene.publishing():
            for _ in range(TIMES):
                instance = await scene.instance_of(scene.served[0])
                with scene.fault():
                    began_at = time.monotonic()
                    proxy.open_road.clear()
                    await scene.taken_over(instance, began_at)
                    await scene.flows()
                    proxy.open_road.set()
                    await scene.shared()
                await scene.flows()
        await scene.judge()
