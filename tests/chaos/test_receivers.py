"""Receivers that hang, reset the connection after they have processed, or drip: for a while, three times each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.chaos.scene import Scene
from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Behaviour, Drip, Hang, Request, Reset

pytestmark = pytest.mark.chaos
TIMES = 3
FOR_S = 6.0
"""Longer than the endpoints' timeout."""


@pytest.mark.parametrize("fault", ["hang", "reset after processing", "drip"])
async def test_a_receiver_that_misbehaves_gets_everything_in_order_once_it_is_well(
    database: TestDatabase, tmp_path: Path, fault: str
) -> None:
    async with Scene.open(f"receiver: {fault}", database.dsn, tmp_path) as scene:
        await scene.shared()
        async with scene.publishing():
            for _ in range(TIMES):
                over = asyncio.Event()
                with scene.fault():
                    scene.behave = _behaviour(fault, over)
                    await asyncio.sleep(FOR_S)
                    over.set()
                    scene.behave = lambda _: None
                await scene.flows()
        assert all(not each.troubles() for each in scene.served)
        await scene.judge()


def _behaviour(fault: str, over: asyncio.Event) -> Callable[[Request], Behaviour | None]:
    """One request in four of the endpoints in order is left alone, lest their circuits open for long."""
    made: dict[str, Behaviour] = {
        "hang": Hang(over, Answer(500)),
        "reset after processing": Reset(),
        "drip": Drip(),
    }
    return lambda request: None if request.number % 4 == 0 else made[fault]
