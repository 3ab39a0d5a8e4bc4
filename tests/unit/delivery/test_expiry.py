"""The end of the retention does not come before it is on record what became of what was sent."""

from __future__ import annotations

import uuid
from typing import Any, cast

import pytest

from dispatcher.delivery.board import Board
from dispatcher.delivery.expiry import Expiry
from dispatcher.delivery.lane import LaneLimits, ModeSettings
from dispatcher.delivery.scheduler import SchedulerLimits
from dispatcher.delivery.sending import SendLoop
from dispatcher.model import Command, CommandKind
from dispatcher.store import backlog, commands, parked
from dispatcher.store.backlog import EndpointPosition
from dispatcher.store.database import Database
from dispatcher.telemetry import Instruments
from tests.support.lanes import KEY, ORDERED, row, row_time

COMMAND = Command(
    uuid.uuid4(), KEY, CommandKind.EXPIRE_BACKLOG, {"before": row_time(100).isoformat()}, actor="dispatcher"
)


class Sending:
    """A send loop with an attempt in flight, or without."""

    def __init__(self) -> None:
        self.is_sending = False

    def is_sending_to(self, _key: object) -> bool:
        return self.is_sending


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the database was asked; it knows of nothing old."""
    asked = list[str]()

    async def finds_nothing(*_arguments: Any) -> list[Any]:
        asked.append("backlog")
        return []

    async def done(*_arguments: Any) -> bool:
        return True

    monkeypatch.setattr(backlog, "load_positions", finds_nothing)
    monkeypatch.setattr(parked, "load_older", finds_nothing)
    monkeypatch.setattr(parked, "tidy", done)
    monkeypatch.setattr(commands, "finish", done)
    return asked


async def test_nothing_expires_beside_an_attempt_or_before_its_success_is_on_record(looked: list[str]) -> None:
    """Else what was delivered would be dead-lettered: nothing on record says that it was."""
    board, sending = Board(LaneLimits(64, 10_000), SchedulerLimits(100, 100, 10, 2.0), 1_000_000), Sending()
    board.open(KEY.partition, 1, [EndpointPosition(KEY, 0, row_time(0), 0)])
    expiry = Expiry(cast("Database", None), board, cast("SendLoop", sending), Instruments.silent())
    board.offer([row(1), row(2)])
    lane = board.lanes[KEY]
    lane.configure({1: ModeSettings(ORDERED, 1)})
    assert lane.start(0.0) is not None
    sending.is_sending = True
    assert not await expiry.expire(COMMAND, 1)
    lane.succeeded(1)
    sending.is_sending = False
    assert not await expiry.expire(COMMAND, 1)
    assert (looked, lane.paused) == ([], True)
    lane.flushed(1)
    assert await expiry.expire(COMMAND, 1)
    assert looked
