"""What an owner looks for by itself, and how often it does."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from dispatcher.delivery import watch as watching
from dispatcher.delivery.board import Board
from dispatcher.delivery.lane import LaneLimits
from dispatcher.delivery.scheduler import SchedulerLimits
from dispatcher.delivery.watch import Watch, WatchOptions
from dispatcher.store import backlog
from dispatcher.store.database import Database

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
OPTIONS = WatchOptions(sweep_interval_s=300.0, poll_interval_s=300.0, look_back_s=60.0)


class Clock:
    """The only thing that the watch asks of its database."""

    async def fetchval(self, _query: str) -> datetime:
        return NOW


async def nothing() -> None:
    """No commands."""


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Of a process that has taken one partition over, in which nothing is found."""

    async def finds_nothing(*_arguments: Any) -> tuple[datetime, list[Any]]:
        return NOW, []

    monkeypatch.setattr(backlog, "sweep", finds_nothing)
    monkeypatch.setattr(watching, "SECOND_SWEEP_S", 0.0)
    board = Board(LaneLimits(64, 10_000), SchedulerLimits(100, 100, 10, 2.0), 1_000_000)
    board.open(7, 1, [])
    return Watch(cast("Database", Clock()), board, nothing, OPTIONS)


async def test_a_takeover_is_followed_by_one_more_sweep_and_then_by_the_ordinary_ones(watch: Watch) -> None:
    assert watch._sweep_pause_s() == OPTIONS.sweep_interval_s
    await watch.sweep()
    assert watch._sweep_pause_s() == 0.0
    await watch.sweep()
    assert watch._sweep_pause_s() == OPTIONS.sweep_interval_s
