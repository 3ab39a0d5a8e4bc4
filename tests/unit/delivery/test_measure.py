"""Backlog gauges come from the lanes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from dispatcher.delivery.board import Board
from dispatcher.delivery.lane import LaneLimits
from dispatcher.delivery.measure import BacklogMeter
from dispatcher.delivery.scheduler import SchedulerLimits
from dispatcher.model import EndpointKey, OutboxRow, Payload
from dispatcher.store.backlog import EndpointPosition

NOW = datetime(2026, 11, 23, tzinfo=UTC)


class Recorded:
    """Takes what the meter sets."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.worst: list[tuple[str, str, int, float]] = []
        self.backlog = _Cell(self, "backlog")
        self.backlog_age_s = _Cell(self, "age")

    def worst_endpoints(self, worst: list[tuple[str, str, int, float]]) -> None:
        self.worst = worst


class _Cell:
    def __init__(self, owner: Recorded, name: str) -> None:
        self._owner, self._name = owner, name

    def set(self, value: float) -> None:
        self._owner.values[self._name] = value


def key_of(number: int) -> EndpointKey:
    return EndpointKey(UUID(int=1), UUID(int=number << 8))


def row_of(key: EndpointKey, seq: int, age_s: float) -> OutboxRow:
    time = NOW - timedelta(seconds=age_s)
    return OutboxRow(key, seq, time, f"e{seq}", time, "t", None, 1, 2, Payload(b"{}", "application/json", None))


async def test_the_backlog_is_summed_and_only_the_oldest_endpoints_are_named() -> None:
    board = Board(LaneLimits(100, 1000), SchedulerLimits(10, 10, 10, 1.0), 1000)
    idle, old, young = key_of(1), key_of(2), key_of(3)
    board.open(0, 1, [EndpointPosition(key, 0, NOW, 0) for key in (idle, old, young)])
    board.offer([row_of(old, 1, 60.0), row_of(old, 2, 50.0), row_of(young, 1, 5.0)])
    recorded = Recorded()
    meter = BacklogMeter(board, recorded, interval_s=1.0, worst_max=1, wall_clock=NOW.timestamp)  # type: ignore[arg-type]
    meter.measure()
    assert recorded.values == {"backlog": 3, "age": 60.0}
    assert recorded.worst == [(str(old.tenant_id), str(old.endpoint_id), 2, 60.0)]


async def test_an_empty_board_measures_zero() -> None:
    recorded = Recorded()
    board = Board(LaneLimits(100, 1000), SchedulerLimits(10, 10, 10, 1.0), 1000)
    BacklogMeter(board, recorded, interval_s=1.0, worst_max=3).measure()  # type: ignore[arg-type]
    assert (recorded.values, recorded.worst) == ({"backlog": 0, "age": 0.0}, [])
