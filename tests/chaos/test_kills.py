"""SIGKILL at each place where it hurts, three times each, and what takeovers take."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.chaos.launch import POINTS
from tests.support.chaos.scene import LEASE_TTL_S, Scene
from tests.support.chaos.senders import sender_of
from tests.support.postgres import TestDatabase
from tests.support.process import Served
from tests.support.receiver import Hang, Request

pytestmark = pytest.mark.chaos
TIMES = ("ordered", "keyed", "free")
"""The owner of each is the victim, one after the other: whoever it is, it has something to do."""
BUSY_S = 2.0
"""What a machine that runs three dispatchers and their tests on two cores may add to a takeover."""


@pytest.mark.parametrize("point", sorted(POINTS))
async def test_killed_there_nothing_is_lost_and_only_what_was_under_way_comes_again(
    database: TestDatabase, tmp_path: Path, point: str
) -> None:
    variables = {"CHAOS_AT": f"{point}:SIGKILL"}
    async with Scene.open(f"SIGKILL {point}", database.dsn, tmp_path, variables=variables) as scene:
        await scene.shared()
        async with scene.publishing():
            for endpoint in TIMES:
                victim = await scene.owner_of("failing" if "decision" in point else endpoint)
                os.kill(victim.pid, signal.SIGUSR1)
                await _dies_and_is_replaced(scene, victim)
        await scene.judge()


async def _dies_and_is_replaced(scene: Scene, victim: Served) -> None:
    instance = await scene.instance_of(victim)
    assert await victim.exit_code(60.0) == -signal.SIGKILL
    died_at = time.monotonic()
    scene.crash(died_at)
    await victim.started()
    assert await scene.taken_over(instance, died_at) < LEASE_TTL_S + 1.0 + BUSY_S
    await scene.shared()
    await scene.flows()


async def test_killed_after_the_request_left_and_before_its_answer(database: TestDatabase, tmp_path: Path) -> None:
    async with Scene.open("SIGKILL after_send", database.dsn, tmp_path) as scene:
        await scene.shared()
        async with scene.publishing():
            for endpoint in TIMES:
                victim = await scene.owner_of(endpoint)
                instance = await scene.instance_of(victim)
                died_at = await _killed_by_receiver(scene, victim)
                await victim.started()
                assert await scene.taken_over(instance, died_at) < LEASE_TTL_S + 1.0 + BUSY_S
                await scene.shared()
                await scene.flows()
        await scene.judge()


async def _killed_by_receiver(scene: Scene, victim: Served) -> float:
    """The receiver has read a request of the victim; it dies before there is an answer."""
    never, pid, died_at = scene.never, victim.pid, []

    def behave(request: Request) -> Hang | None:
        if died_at or sender_of(request, [pid]) is None:
            return None
        os.kill(pid, signal.SIGKILL)
        died_at.append(time.monotonic())
        scene.crash(died_at[0])
        return Hang(never)

    scene.behave = behave
    assert await victim.exit_code(30.0) == -signal.SIGKILL
    scene.behave = lambda _: None
    return died_at[0]


async def test_a_takeover_with_the_default_lease_takes_its_ttl_and_a_second(
    database: TestDatabase, tmp_path: Path
) -> None:
    ttl_s = 10.0
    variables = {"DISPATCHER_LEASE_TTL_S": f"{ttl_s}"}
    async with Scene.open("SIGKILL, default lease", database.dsn, tmp_path, variables=variables) as scene:
        await scene.shared()
        async with scene.publishing():
            for victim in scene.served:
                instance = await scene.instance_of(victim)
                victim.kill()
                died_at = time.monotonic()
                scene.crash(died_at)
                assert await scene.taken_over(instance, died_at) < ttl_s + 1.0 + BUSY_S
                await victim.started()
                await scene.shared()
        await scene.judge()
