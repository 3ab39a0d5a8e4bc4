"""Backlog gauges come from the lanes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from dispatcher.delivery.board import Board
from dispatcher.delivery.lane import Lane, LaneLimits, ModeSettings
from dispatcher.delivery.measure import BacklogMeter, Due, due_of
from dispatcher.delivery.scheduler import SchedulerLimits
from dispatcher.model import EndpointKey, OrderingMode, OutboxRow, Payload
from dispatcher.store.backlog import EndpointPosition
from tests.support.lanes import BY_KEY, ORDERED, UNORDERED, lane, row, row_time

NOW = datetime(2026, 11, 23, tzinfo=UTC)


class Recorded:
    """Takes what the meter sets."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.worst: list[tuple[str, str, int, float]] = []
        self.backlog = _Cell(self, "backlog")
        self.backlog_age_s = _Cell(self, "age")
        self.backlog_due = _Cell(self, "due")
        self.backlog_due_age_s = _Cell(self, "due_age")

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
    meter = BacklogMeter(board, recorded, interval_s=1.0, worst_max=1, due_rows_max=10, wall_clock=NOW.timestamp)  # type: ignore[arg-type]
    meter.measure()
    assert recorded.values == {"backlog": 3, "age": 60.0, "due": 0, "due_age": 0.0}
    assert recorded.worst == [(str(old.tenant_id), str(old.endpoint_id), 2, 60.0)]


async def test_an_empty_board_measures_zero() -> None:
    recorded = Recorded()
    board = Board(LaneLimits(100, 1000), SchedulerLimits(10, 10, 10, 1.0), 1000)
    BacklogMeter(board, recorded, interval_s=1.0, worst_max=3, due_rows_max=10).measure()  # type: ignore[arg-type]
    assert (recorded.values, recorded.worst) == ({"backlog": 0, "age": 0.0, "due": 0, "due_age": 0.0}, [])


def due(made: Lane, *, clock_s: float = 0.0, age_s: float = 30.0, rows_max: int = 100) -> tuple[int, float]:
    """What is due of a lane, `age_s` after its first row."""
    found = due_of(made, clock_s, row_time(1).timestamp() + age_s, rows_max)
    return found.count, found.age_s


def filled(mode: OrderingMode, *keys: str | None) -> Lane:
    made = lane(mode)
    for seq, ordering_key in enumerate(keys, 1):
        assert made.offer(row(seq, ordering_key=ordering_key))
    return made


def test_what_waits_for_its_first_attempt_is_due_and_so_is_what_is_in_it() -> None:
    one = filled(ORDERED, None, None, None)
    assert due(one) == (3, 30.0)
    one.start(0.0)
    assert due(one) == (3, 30.0)
    one.succeeded(1)
    assert due(one) == (2, 29.0)


def test_an_endpoint_adds_its_share_at_most() -> None:
    assert due(filled(ORDERED, None, None, None), rows_max=2) == (2, 30.0)


def failing(mode: OrderingMode, *keys: str | None) -> Lane:
    """Its first delivery has failed and backs off."""
    made = filled(mode, *keys)
    started = made.start(0.0)
    assert started is not None
    started.attempts += 1
    made.failed(1, due=9.0)
    return made


def test_nothing_is_due_behind_a_delivery_that_backs_off() -> None:
    one = failing(ORDERED, None, None)
    assert due(one) == (0, 0.0)
    one.start(9.0)
    assert due(one, clock_s=9.0) == (0, 0.0)


def test_what_may_pass_a_delivery_that_backs_off_is_due() -> None:
    assert due(failing(UNORDERED, None, None)) == (2, 29.0)
    assert due(failing(BY_KEY, "a", "a", "b")) == (3, 28.0)
    assert due(failing(BY_KEY, "a", "a")) == (0, 0.0)


def test_nothing_of_a_paused_endpoint_is_due() -> None:
    one = filled(ORDERED, None)
    one.paused = True
    assert due(one) == (0, 0.0)


class Shut:
    """A gate that opens at 5."""

    def opens_at(self, now: float, time: datetime) -> float:
        return 5.0


def test_nothing_is_due_before_a_limit_or_a_circuit_lets_it_through() -> None:
    one = filled(ORDERED, None)
    one.gate = Shut()
    assert one.start(0.0) is None
    assert due(one, clock_s=4.9) == (0, 0.0)
    assert due(one, clock_s=5.0) == (1, 30.0)


def test_what_is_committed_and_not_read_yet_is_due_and_of_no_known_age() -> None:
    assert due(lane(highest_known=7)) == (7, 0.0)


def test_nothing_of_an_endpoint_that_is_done_is_due() -> None:
    assert due(lane()) == (0, 0.0)


async def test_a_slow_endpoint_is_not_due_since_more_instances_make_it_no_faster() -> None:
    board = Board(LaneLimits(100, 1000), SchedulerLimits(10, 10, 10, 1.0), 1000)
    slow, fast = key_of(1), key_of(2)
    board.open(0, 1, [EndpointPosition(key, 0, NOW, 0) for key in (slow, fast)])
    board.offer([row_of(slow, 1, 60.0), row_of(slow, 2, 50.0), row_of(fast, 1, 5.0)])
    for made in board.lanes.values():
        made.configure({1: ModeSettings(ORDERED, 1)})
    board.scheduler._entries[board.lanes[slow]].is_slow = True
    recorded = Recorded()
    meter = BacklogMeter(
        board, recorded, interval_s=1.0, worst_max=1, due_rows_max=10, clock=lambda: 0.0, wall_clock=NOW.timestamp
    )  # type: ignore[arg-type]
    meter.measure()
    assert (meter.due, recorded.values["due"], recorded.values["due_age"]) == (Due(1, 5.0), 1, 5.0)
