"""Backlog gauges come from the lanes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from dispatcher.delivery.board import Board
from dispatcher.delivery.lane import Lane, LaneLimits, ModeSettings
from dispatcher.delivery.measure import BacklogMeter, Due, core_time_s
from dispatcher.delivery.scheduler import SchedulerLimits
from dispatcher.model import EndpointKey, OrderingMode, OutboxRow, Payload
from dispatcher.store.backlog import EndpointPosition
from tests.support.lanes import BY_KEY, ORDERED, UNORDERED

NOW = datetime(2026, 11, 23, tzinfo=UTC)


class Recorded:
    """Takes what the meter sets."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.sources: dict[str, Callable[[], float]] = {}
        self.worst: list[tuple[str, str, int, float]] = []
        self.backlog = _Cell(self, "backlog")
        self.backlog_age_s = _Cell(self, "age")
        self.backlog_due = _Cell(self, "due")
        self.backlog_due_age_s = _Cell(self, "due_age")

    def due(self) -> tuple[float, float]:
        return self.sources["due"](), self.sources["due_age"]()

    def worst_endpoints(self, worst: list[tuple[str, str, int, float]]) -> None:
        self.worst = worst


class _Cell:
    def __init__(self, owner: Recorded, name: str) -> None:
        self._owner, self._name = owner, name

    def set(self, value: float) -> None:
        self._owner.values[self._name] = value

    def follow(self, source: Callable[[], float]) -> None:
        self._owner.sources[self._name] = source


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
    meter = BacklogMeter(board, recorded, worst_max=1, due_rows_max=10, settle_s=0.0, wall_clock=NOW.timestamp)  # type: ignore[arg-type]
    meter.measure()
    assert recorded.values == {"backlog": 3, "age": 60.0}
    assert recorded.due() == (0, 0.0)
    assert recorded.worst == [(str(old.tenant_id), str(old.endpoint_id), 2, 60.0)]


async def test_an_empty_board_measures_zero() -> None:
    recorded = Recorded()
    board = Board(LaneLimits(100, 1000), SchedulerLimits(10, 10, 10, 1.0), 1000)
    BacklogMeter(board, recorded, worst_max=3, due_rows_max=10, settle_s=0.0).measure()  # type: ignore[arg-type]
    assert (recorded.values, recorded.worst) == ({"backlog": 0, "age": 0.0}, [])
    assert recorded.due() == (0, 0.0)


class Scene:
    """A board with room for so many attempts, and its meter; time and CPU stand still until the test moves them."""

    def __init__(self, *, in_flight_max: int = 1, slow_in_flight_max: int = 10, rows_max: int = 10) -> None:
        limits = SchedulerLimits(in_flight_max, 10, slow_in_flight_max, 1.0)
        self.clock_s, self.cpu_s = 1000.0, 0.0
        self.board = Board(LaneLimits(100, 10_000), limits, 100_000, clock=lambda: self.clock_s)
        self.meter = BacklogMeter(
            self.board,
            Recorded(),  # type: ignore[arg-type]
            worst_max=1,
            due_rows_max=rows_max,
            settle_s=5.0,
            clock=lambda: self.clock_s,
            wall_clock=NOW.timestamp,
            cpu_clock=lambda: self.cpu_s,
        )
        self.board.open(0, 1, [EndpointPosition(key_of(number), 0, NOW, 0) for number in range(1, 9)])

    def endpoint(self, number: int, *ages_s: float, mode: OrderingMode = ORDERED, keys: str = "") -> Lane:
        key = key_of(number)
        rows = [row_of(key, seq, age_s) for seq, age_s in enumerate(ages_s, 1)]
        for row, ordering_key in zip(rows, keys, strict=False):
            row.ordering_key = ordering_key
        self.board.offer(rows)
        lane = self.board.lanes[key]
        lane.configure({1: ModeSettings(mode, 4)})
        return lane

    def take(self) -> Lane | None:
        taken = self.board.scheduler.take(self.clock_s)
        return None if taken is None else taken[0]

    def take_all(self) -> None:
        while self.take() is not None:
            pass

    def look(self, *, after_s: float = 10.0, busy: float = 0.0) -> Due:
        """Measure again, that much later, the process having used that share of a core."""
        self.clock_s += after_s
        self.cpu_s += busy * after_s
        self.meter.measure()
        return self.meter.due


async def test_what_can_t_be_read_is_as_old_as_it_has_been_missing() -> None:
    board = Board(LaneLimits(100, 1000), SchedulerLimits(10, 10, 10, 1.0), 1000)
    board.open(0, 1, [EndpointPosition(key_of(1), 0, NOW, 0)])
    recorded, at_s = Recorded(), [100.0]
    meter = BacklogMeter(
        board,
        recorded,  # type: ignore[arg-type]
        worst_max=1,
        due_rows_max=10,
        settle_s=0.0,
        clock=lambda: at_s[0],
        wall_clock=NOW.timestamp,
    )
    board.hint(key_of(1), 7)
    meter.measure()
    assert (recorded.values["backlog"], recorded.values["age"]) == (7, 0.0)
    at_s[0] = 400.0
    meter.measure()
    assert (recorded.values["age"], recorded.worst[0][3]) == (300.0, 300.0)
    board.lanes[key_of(1)].offer(row_of(key_of(1), 1, 60.0))
    meter.measure()
    assert recorded.values["age"] == 60.0, "once it is read its own age is known"
    board.lanes[key_of(1)].late_success(1)
    meter.measure()
    assert recorded.values["age"] == 0.0, "another row"


def test_what_no_place_is_left_for_is_due() -> None:
    scene = Scene(in_flight_max=1)
    scene.endpoint(1, 60.0, 60.0)
    scene.endpoint(2, 50.0, 40.0)
    scene.take_all()
    assert scene.look().count == 2, "the first endpoint waits for its own receiver"


def test_what_is_due_of_a_partition_is_told_by_nobody_until_its_former_owner_tells_no_more() -> None:
    scene = Scene(in_flight_max=1)
    scene.endpoint(1, 60.0)
    scene.endpoint(2, 50.0)
    scene.take_all()
    assert [scene.look(after_s=after_s).count for after_s in (4.9, 0.1)] == [0, 1]
    scene.board.close(0)
    assert scene.meter.due == Due(0, 0.0), "at once, not with the next measure"
    scene.board.open(0, 2, [])
    assert scene.meter.due == Due(0, 0.0), "what was measured before is not told again"


def test_what_waits_for_its_receiver_alone_is_not_due_however_much_and_old_it_is() -> None:
    scene = Scene(in_flight_max=10)
    scene.endpoint(1, *[10_800.0] * 5)
    scene.take_all()
    assert [scene.look() for _ in range(3)] == [Due(0, 0.0)] * 3


def test_it_has_waited_since_it_was_first_found_waiting_not_since_it_was_published() -> None:
    scene = Scene(in_flight_max=1)
    scene.endpoint(1, 10_800.0)
    scene.endpoint(2, 10_800.0)
    scene.take_all()
    assert [scene.look().age_s for _ in range(3)] == [0.0, 10.0, 20.0]


def test_it_has_not_waited_longer_than_since_it_was_published() -> None:
    scene = Scene(in_flight_max=1)
    scene.endpoint(1, 3.0)
    scene.endpoint(2, 3.0)
    scene.take_all()
    assert [scene.look().age_s for _ in range(3)] == [0.0, 3.0, 3.0]


def test_one_that_got_a_place_in_between_begins_to_wait_anew() -> None:
    scene = Scene(in_flight_max=1)
    first, second = scene.endpoint(1, 100.0, 100.0), scene.endpoint(2, 100.0, 100.0)
    assert scene.take() is first
    scene.take_all()
    assert [scene.look().age_s for _ in range(2)] == [0.0, 10.0]
    first.succeeded(1)
    scene.board.scheduler.finished(first, failed=False, duration_s=0.1)
    assert scene.take() is second
    scene.take_all()
    assert [scene.look().age_s for _ in range(2)] == [0.0, 10.0]


def test_an_endpoint_adds_its_share_at_most() -> None:
    scene = Scene(in_flight_max=1, rows_max=3)
    scene.endpoint(1, 1.0)
    scene.endpoint(2, *[1.0] * 9)
    scene.take_all()
    assert scene.look().count == 3


def test_slow_endpoints_that_wait_for_the_places_of_the_slow_are_due() -> None:
    scene = Scene(in_flight_max=10, slow_in_flight_max=1)
    lanes = [scene.endpoint(number, 9.0) for number in (1, 2, 3)]
    for lane in lanes:
        scene.board.scheduler._entries[lane].is_slow = True
    scene.take_all()
    assert scene.look().count == 2


def test_nothing_is_due_that_could_not_start_with_a_place() -> None:
    scene = Scene(in_flight_max=1)
    failing = scene.endpoint(1, 9.0, 9.0)
    assert scene.take() is failing
    failing.failed(1, due=scene.clock_s + 600)
    scene.board.scheduler.finished(failing, failed=True, duration_s=0.1)
    paused = scene.endpoint(2, 9.0)
    paused.paused = True
    limited = scene.endpoint(3, 9.0)
    limited.gate = Gate(opens_at=scene.clock_s + 600)
    scene.endpoint(4, 9.0)
    scene.take_all()
    for lane in (failing, paused, limited):
        scene.board.scheduler.wake(lane)
    assert scene.board.scheduler.in_flight == 1
    assert scene.look() == Due(0, 0.0)


class Gate:
    """Lets nothing through before its time."""

    def __init__(self, opens_at: float) -> None:
        self.opening = opens_at

    def opens_at(self, now: float, time: datetime) -> float:
        return self.opening


def test_of_an_unordered_endpoint_what_backs_off_is_not_due_and_what_may_pass_it_is() -> None:
    scene = Scene(in_flight_max=2)
    lane = scene.endpoint(1, *[9.0] * 4, mode=UNORDERED)
    for seq in (1, 2):
        assert scene.take() is lane
        lane.failed(seq, due=scene.clock_s + 600)
        scene.board.scheduler.finished(lane, failed=True, duration_s=0.1)
    scene.endpoint(2, 9.0)
    scene.endpoint(3, 9.0)
    scene.board.scheduler._in_flight = 2  # others have both places
    assert scene.look().count == 2 + 1 + 1


def test_of_a_keyed_endpoint_the_first_of_each_key_is_due() -> None:
    scene = Scene(in_flight_max=1)
    scene.endpoint(1, 9.0)
    scene.take_all()
    scene.endpoint(2, *[9.0] * 4, mode=BY_KEY, keys="aaab")
    assert scene.look().count == 2


def test_what_is_not_read_yet_counts_with_a_lane_that_waits() -> None:
    scene = Scene(in_flight_max=1, rows_max=100)
    scene.endpoint(1, 9.0)
    scene.take_all()
    scene.endpoint(2, 9.0)
    scene.board.hint(key_of(2), 30)
    assert scene.look().count == 30


def test_a_process_whose_core_is_busy_keeps_waiting_what_it_has_in_flight() -> None:
    scene = Scene(in_flight_max=10)
    scene.endpoint(1, 60.0, 60.0)
    scene.take_all()
    scene.look()
    assert [scene.look(busy=0.9) for _ in range(2)] == [Due(2, 0.0), Due(2, 10.0)]
    assert scene.look(busy=0.5) == Due(0, 0.0)


def test_a_busy_process_does_not_answer_for_endpoints_that_fail_are_slow_or_limited() -> None:
    scene = Scene(in_flight_max=10)
    slow, limited = scene.endpoint(1, 60.0), scene.endpoint(2, 60.0, 60.0)
    scene.board.scheduler._entries[slow].is_slow = True
    limited.gate = Gate(opens_at=scene.clock_s + 1)
    scene.take_all()
    assert limited.in_flight == 0
    scene.clock_s += 2
    scene.board.scheduler.wake(limited)
    scene.take_all()
    assert (slow.in_flight, limited.in_flight) == (1, 1)
    scene.look()
    assert scene.look(busy=1.0) == Due(0, 0.0)
    assert scene.look(after_s=120, busy=1.0).count == 2, "its limit has long not held it up"


def test_the_time_in_a_run_queue_counts_like_that_on_a_core(tmp_path: Path) -> None:
    told = tmp_path / "schedstat"
    told.write_text("1500000000 250000000 17\n")
    assert core_time_s(told) == 1.75


def test_where_the_kernel_does_not_tell_it_is_the_time_of_the_process(tmp_path: Path) -> None:
    before = time.process_time()
    assert before <= core_time_s(tmp_path / "none") <= time.process_time()
