"""SIGSTOP beyond the life of a lease, then SIGCONT: anywhere, and in the middle of what a lease or a lock protects."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.support.chaos.scene import LEASE_TTL_S, SETTINGS, Scene
from tests.support.postgres import TestDatabase
from tests.support.process import Served
from tests.support.waiting import until

pytestmark = pytest.mark.chaos
TIMES = ("ordered", "keyed", "failing")
FROZEN_S = LEASE_TTL_S + 2.0
AT_ONCE_S = 2.0
"""No publish of the others takes longer while one is frozen: far less than it is frozen for."""


async def test_frozen_anywhere_it_wakes_as_one_that_owns_nothing(database: TestDatabase, tmp_path: Path) -> None:
    async with Scene.open("SIGSTOP", database.dsn, tmp_path) as scene:
        await scene.shared()
        async with scene.publishing():
            for endpoint in TIMES:
                victim = await scene.owner_of(endpoint)
                with scene.fault():
                    os.kill(victim.pid, signal.SIGSTOP)
                    await _sleeps_and_wakes(scene, victim)
                await scene.shared()
                await scene.flows()
        await scene.judge()


@pytest.mark.parametrize("point", ["before_send", "after_2xx", "before_flush", "before_decision", "before_checkpoint"])
async def test_frozen_there_it_acts_on_no_lease_that_is_over(
    database: TestDatabase, tmp_path: Path, point: str
) -> None:
    variables = {"CHAOS_AT": f"{point}:SIGSTOP"}
    async with Scene.open(f"SIGSTOP {point}", database.dsn, tmp_path, variables=variables) as scene:
        await scene.shared()
        async with scene.publishing():
            for endpoint in TIMES:
                victim = await scene.owner_of("failing" if point == "before_decision" else endpoint)
                with scene.fault():
                    os.kill(victim.pid, signal.SIGUSR1)
                    await _sleeps_and_wakes(scene, victim)
                await scene.shared()
                await scene.flows()
        await scene.judge()


async def test_frozen_while_it_publishes_it_holds_up_no_other_publisher(database: TestDatabase, tmp_path: Path) -> None:
    variables = {"CHAOS_AT": "in_publish:SIGSTOP"}
    async with Scene.open("SIGSTOP in_publish", database.dsn, tmp_path, variables=variables) as scene:
        await scene.shared()
        async with scene.publishing():
            for number, victim in enumerate(scene.served):
                others = [p for n, p in enumerate(scene.publishers) if n != number]
                for publisher in others:
                    publisher.longest_s = 0.0
                with scene.fault():
                    os.kill(victim.pid, signal.SIGUSR1)
                    await until(lambda v=victim: _is_stopped(v), 30.0)
                    before = [len(publisher.ids) for publisher in others]
                    await asyncio.sleep(FROZEN_S)
                    counts = [len(publisher.ids) - had for publisher, had in zip(others, before, strict=True)]
                    os.kill(victim.pid, signal.SIGCONT)
                assert min(counts) > FROZEN_S, "the others publish on"
                assert max(publisher.longest_s for publisher in others) < AT_ONCE_S
                await scene.shared()
                await scene.flows()
        await scene.judge()
    assert float(SETTINGS["DISPATCHER_STATEMENT_TIMEOUT_S"]) > AT_ONCE_S, "else the server's limits could explain it"


async def _sleeps_and_wakes(scene: Scene, victim: Served) -> None:
    """It is stopped, the others take over and go on, it wakes."""
    await until(lambda: _is_stopped(victim), 30.0)
    asleep_at = asyncio.get_running_loop().time()
    instance = await scene.instance_of(victim)
    await scene.taken_over(instance, asleep_at)
    await scene.flows()
    await asyncio.sleep(max(0.0, asleep_at + FROZEN_S - asyncio.get_running_loop().time()))
    os.kill(victim.pid, signal.SIGCONT)


async def _is_stopped(victim: Served) -> bool:
    return victim.is_stopped()
