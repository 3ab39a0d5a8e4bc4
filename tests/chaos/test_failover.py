"""A standby is promoted: a synchronous one loses nothing, an asynchronous one loses what is stated and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from dispatcher.embedded.postgres import EmbeddedPostgres
from tests.support.chaos.scene import LEASE_TTL_S, Scene
from tests.support.chaos.standby import Server, ask, chain_of_servers
from tests.support.proxy import TcpProxy, place_of, proxied

pytestmark = pytest.mark.chaos
TIMES = 3
UNSYNCED_S = 1.5
COMMITS_WAIT = "ALTER SYSTEM SET synchronous_standby_names = '*'"
CANCEL_WAITS = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


async def test_a_synchronous_standby_is_promoted_and_nothing_is_lost(
    crashable_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with (
        proxied(crashable_postgres.dsn) as (proxy, through),
        chain_of_servers(tmp_path, TIMES + 1) as standbys,
        Scene.open("synchronous standby promoted", crashable_postgres.dsn, tmp_path, through=through) as scene,
    ):
        servers = [crashable_postgres, *standbys]
        await _follow_synchronously(standbys[0], scene.dsn)
        await scene.shared()
        async with scene.publishing():
            for number in range(TIMES):
                with scene.fault():
                    assert await _fail_over(scene, proxy, servers[number], standbys[number]) == 0
                    await _follow_synchronously(standbys[number + 1], scene.dsn)
                    await scene.shared()
                    await scene.forget_receipts(number + 1)
                await scene.flows()
        await scene.judge()


async def test_a_cancelled_wait_for_the_synchronous_standby_is_no_acknowledgement(
    crashable_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with (
        proxied(crashable_postgres.dsn) as (proxy, through),
        chain_of_servers(tmp_path, TIMES + 1) as standbys,
        Scene.open("cancelled wait for standby", crashable_postgres.dsn, tmp_path, through=through) as scene,
    ):
        servers = [crashable_postgres, *standbys]
        await _follow_synchronously(standbys[0], scene.dsn)
        await scene.shared()
        async with scene.publishing():
            for number in range(TIMES):
                with scene.fault():
                    await standbys[number].stop_following()
                    assert await _cancel_waits_for(scene.dsn, UNSYNCED_S) > 0, "nobody waited"
                    assert await _fail_over(scene, proxy, servers[number], standbys[number]) == 0
                    await _follow_synchronously(standbys[number + 1], scene.dsn)
                    await scene.shared()
                    await scene.forget_receipts(number + 1)
                await scene.flows()
        told = {reason for publisher in scene.publishers for reason in publisher.refusals}
        assert "COMMIT_UNKNOWN" in told, told
        await scene.judge()


async def test_an_asynchronous_standby_is_promoted_and_only_what_it_had_not_is_lost(
    crashable_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with (
        proxied(crashable_postgres.dsn) as (proxy, through),
        chain_of_servers(tmp_path, TIMES + 1) as standbys,
        Scene.open("asynchronous standby promoted", crashable_postgres.dsn, tmp_path, through=through) as scene,
    ):
        servers = [crashable_postgres, *standbys]
        await standbys[0].follow(scene.dsn)
        await scene.shared()
        async with scene.publishing():
            for number in range(TIMES):
                with scene.fault():
                    synced = scene.acknowledged()
                    await _caught_up(scene.dsn, standbys[number])
                    await standbys[number].stop_following()
                    await asyncio.sleep(UNSYNCED_S)
                    assert await _fail_over(scene, proxy, servers[number], standbys[number], synced) > 0
                    await standbys[number + 1].follow(scene.dsn)
                    await scene.shared()
                    await scene.forget_receipts(number + 1)
                await scene.flows()
        await scene.judge()


async def test_a_standby_that_nobody_has_promoted_is_no_database(
    crashable_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """The address leads to it too early, or by mistake: everything waits, nothing ends, all resumes."""
    async with (
        proxied(crashable_postgres.dsn) as (proxy, through),
        chain_of_servers(tmp_path, 1) as (standby,),
        Scene.open("address leads to a standby", crashable_postgres.dsn, tmp_path, through=through) as scene,
    ):
        await standby.follow(scene.dsn)
        await scene.shared()
        pids = [each.pid for each in scene.served]
        async with scene.publishing():
            for _ in range(TIMES):
                with scene.fault():
                    proxy.lead_to(*place_of(standby.dsn))
                    proxy.cut()
                    await asyncio.sleep(UNSYNCED_S + LEASE_TTL_S)
                    proxy.lead_to(*place_of(scene.dsn))
                    proxy.cut()
                    await scene.shared()
                await scene.flows()
        assert [each.pid for each in scene.served if each.is_running()] == pids
        await scene.judge()


async def _follow_synchronously(standby: Server, primary: str) -> None:
    """Commits on the primary wait for the standby, and on the standby, once it is promoted, for the next one."""
    await standby.follow(primary)
    for dsn in (primary, standby.dsn):
        await ask(dsn, COMMITS_WAIT)
        await ask(dsn, "SELECT pg_reload_conf()")


async def _fail_over(
    scene: Scene,
    proxy: TcpProxy,
    primary: EmbeddedPostgres | Server,
    standby: Server,
    synced: Mapping[str, int] | None = None,
) -> int:
    """The primary's machine is lost; the standby becomes primary, and the service's address leads to it. Returns how
    many acknowledged events are gone; only those behind `synced` may be, and without it none."""
    proxy.refuse = True
    killed = primary.kill()
    if killed is not None:
        await killed
    proxy.cut()
    await standby.promote()
    proxy.lead_to(*place_of(standby.dsn))
    scene.dsn = standby.dsn
    lost = await scene.forget_acknowledged(scene.acknowledged() if synced is None else synced)
    proxy.refuse = False
    return lost


async def _caught_up(primary: str, standby: Server) -> None:
    """Until the standby has what the primary had flushed when asked."""
    flushed = await ask(primary, "SELECT pg_current_wal_flush_lsn()::text")
    async with asyncio.timeout(20):
        while not await ask(standby.dsn, f"SELECT pg_last_wal_receive_lsn() >= '{flushed}'::pg_lsn"):
            await asyncio.sleep(0.02)


async def _cancel_waits_for(dsn: str, seconds: float) -> int:
    """Cancel every wait for the standby as it begins; how many that were."""
    until = asyncio.get_running_loop().time() + seconds
    count = 0
    while asyncio.get_running_loop().time() < until:
        count += int(str(await ask(dsn, CANCEL_WAITS)))
        await asyncio.sleep(0.05)
    return count
