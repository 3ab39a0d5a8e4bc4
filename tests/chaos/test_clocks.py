"""The wall clock of one process jumps by a minute, forwards and backwards: leases, order and retries go by others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import libfaketime
import pytest

from tests.support.chaos.scene import LEASE_TTL_S, Scene
from tests.support.postgres import TestDatabase

pytestmark = pytest.mark.chaos
JUMPS = ("+60", "-60", "+60")


async def test_a_wall_clock_that_jumps_by_a_minute_changes_nothing(database: TestDatabase, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    of_one = {
        "LD_PRELOAD": str(Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    name = "wall clock ±60 s"
    async with Scene.open(name, database.dsn, tmp_path, variables_of={0: of_one}) as scene:
        await scene.shared()
        instance = await scene.instance_of(scene.served[0])
        async with scene.publishing():
            for jump in JUMPS:
                clock.write_text(jump)
                scene.figures.runs += 1
                await asyncio.sleep(LEASE_TTL_S + 1.0)
                await scene.flows()
                assert await scene.instance_of(scene.served[0]) == instance
            clock.write_text("+0")
        assert "a lease was lost" not in {record["message"] for each in scene.served for record in each.records()}
        assert _seconds_jumped(scene) >= 60.0, "the clock was never moved"
        assert not any(each.troubles() for each in scene.served)
        await scene.judge()


def _seconds_jumped(scene: Scene) -> float:
    """The widest distance between when a webhook says that it was sent and when it arrived."""
    requests = scene.receiver.requests
    offsets = [float(request.headers["webhook-timestamp"]) - request.at_s for request in requests]
    return max(offsets) - min(offsets) - 1.0
