"""The scheduler: turns, caps, the pool of the slow, timers; and never an idle place while something could start."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from typing import ClassVar
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from dispatcher.delivery.scheduler import Scheduler, SchedulerLimits
from dispatcher.model import EndpointKey, OutboxRow
from tests.support.acting import ActingMachine, Choose, quickly
from tests.support.lanes import row

LIMITS = SchedulerLimits(in_flight_max=10, tenant_in_flight_max=10, slow_in_flight_max=2, slow_threshold_s=1)


class FakeLane:
    """Rows to start at once, and times at which others become due."""

    def __init__(self, tenant: int = 1, *, rows: int = 1, width: int = 1) -> None:
        self.key = EndpointKey(UUID(int=tenant), UUID(int=7))
        self.waiting, self.width, self.in_flight, self.asked = rows, width, 0, 0
        self.dues: list[float] = []

    @property
    def is_serial(self) -> bool:
        return self.width == 1

    def could_start(self, now: float) -> bool:
        return self.in_flight < self.width and (self.waiting > 0 or any(due <= now for due in self.dues))

    def start(self, now: float) -> OutboxRow | None:
        self.asked += 1
        if not self.could_start(now):
            return None
        if self.waiting:
            self.waiting -= 1
        else:
            self.dues.remove(min(self.dues))
        self.in_flight += 1
        return row(1)

    def next_due(self) -> float | None:
        return min(self.dues, default=None)


def scheduler_of(*lanes: FakeLane, limits: SchedulerLimits = LIMITS) -> Scheduler[FakeLane]:
    scheduler: Scheduler[FakeLane] = Scheduler(limits)
    for lane in lanes:
        scheduler.add(lane)
    return scheduler


def take_all(scheduler: Scheduler[FakeLane], now: float = 0.0) -> list[FakeLane]:
    taken = []
    while (found := scheduler.take(now)) is not None:
        taken.append(found[0])
    return taken


def finish(scheduler: Scheduler[FakeLane], lane: FakeLane, *, failed: bool = False, duration_s: float = 0.1) -> None:
    lane.in_flight -= 1
    scheduler.finished(lane, failed=failed, duration_s=duration_s)


def make_slow(scheduler: Scheduler[FakeLane], *lanes: FakeLane) -> None:
    for lane in lanes:
        lane.waiting += 1
        scheduler.wake(lane)
    for lane in take_all(scheduler):
        finish(scheduler, lane, failed=True)


def test_lanes_take_turns() -> None:
    first, second = FakeLane(rows=3, width=3), FakeLane(rows=3, width=3)
    assert take_all(scheduler_of(first, second)) == [first, second] * 3


def test_the_process_cap_holds_and_a_free_place_is_taken() -> None:
    lanes = [FakeLane(rows=2) for _ in range(12)]
    scheduler = scheduler_of(*lanes)
    assert take_all(scheduler) == lanes[:10]
    finish(scheduler, lanes[0])
    assert take_all(scheduler) == [lanes[10]]
    assert scheduler.in_flight == 10


def test_one_tenant_leaves_room_for_the_others() -> None:
    limits = SchedulerLimits(in_flight_max=10, tenant_in_flight_max=2, slow_in_flight_max=2, slow_threshold_s=1)
    greedy, modest = [FakeLane(1) for _ in range(5)], FakeLane(2)
    scheduler = scheduler_of(*greedy, modest, limits=limits)
    assert take_all(scheduler) == [*greedy[:2], modest]
    finish(scheduler, greedy[1])
    assert take_all(scheduler) == [greedy[2]]


def test_who_waits_for_its_tenant_is_known() -> None:
    limits = SchedulerLimits(in_flight_max=10, tenant_in_flight_max=2, slow_in_flight_max=2, slow_threshold_s=1)
    greedy, modest, idle = [FakeLane(1) for _ in range(3)], FakeLane(2), FakeLane(1, rows=0)
    scheduler = scheduler_of(*greedy, modest, limits=limits)
    take_all(scheduler)
    assert [scheduler.waits_for_tenant(lane) for lane in (*greedy, modest, idle)] == [False, False, True, False, False]
    finish(scheduler, greedy[0])
    assert not scheduler.waits_for_tenant(greedy[2]), "there is a place for it"


def test_slow_lanes_share_a_pool_and_the_others_do_not_notice() -> None:
    slow, quick = [FakeLane() for _ in range(5)], [FakeLane() for _ in range(5)]
    scheduler = scheduler_of(*slow)
    make_slow(scheduler, *slow)
    for lane in slow:
        lane.waiting = 1
        scheduler.wake(lane)
    for lane in quick:
        scheduler.add(lane)
    assert take_all(scheduler) == [*slow[:2], *quick]
    assert scheduler.slow_in_flight == 2
    finish(scheduler, slow[0], failed=True)
    assert take_all(scheduler) == [slow[2]]


def test_a_place_among_the_slow_that_its_lane_no_longer_needs_goes_to_the_next() -> None:
    first, other, third, fourth = (FakeLane(rows=0) for _ in range(4))
    lanes = [first, other, third, fourth]
    scheduler = scheduler_of(*lanes)
    make_slow(scheduler, *lanes)
    assert take_all(scheduler) == []
    for lane in (first, other):
        lane.waiting = 1
        scheduler.wake(lane)
    assert take_all(scheduler) == [first, other]  # both places of the slow
    for lane in (first, third, fourth):
        lane.waiting = 1
        scheduler.wake(lane)
    assert take_all(scheduler) == []
    scheduler.remove(other)
    finish(scheduler, other, failed=True)  # its place is the turn of the first,
    finish(scheduler, first)  # which is slow no longer
    assert take_all(scheduler) == [first, third, fourth]


@pytest.mark.parametrize(
    ("failed", "duration_s", "is_slow"), [(True, 0.1, True), (False, 1.1, True), (False, 1.0, False)]
)
def test_a_lane_is_slow_by_its_last_attempt(failed: bool, duration_s: float, is_slow: bool) -> None:
    lane = FakeLane(rows=2)
    scheduler = scheduler_of(lane)
    take_all(scheduler)
    finish(scheduler, lane, failed=failed, duration_s=duration_s)
    assert scheduler.is_slow(lane) is is_slow
    take_all(scheduler)
    finish(scheduler, lane)
    assert not scheduler.is_slow(lane)


def test_a_back_off_wakes_its_lane_when_it_is_due_and_not_before() -> None:
    lane = FakeLane(rows=0)
    lane.dues = [5.0, 9.0]
    scheduler = scheduler_of(lane)
    assert take_all(scheduler, now=1) == []
    assert scheduler.next_due() == 5
    asked = lane.asked
    assert take_all(scheduler, now=4.9) == []
    assert lane.asked == asked
    assert take_all(scheduler, now=5) == [lane]
    finish(scheduler, lane)
    assert take_all(scheduler, now=6) == []
    assert scheduler.next_due() == 9


def test_a_lane_whose_back_off_is_over_but_that_can_not_start_is_not_asked_again_and_again() -> None:
    lane = FakeLane(rows=0)
    lane.dues = [5.0]
    lane.could_start = lambda now: False  # type: ignore[method-assign] -- as if its payload had to be read first
    scheduler = scheduler_of(lane)
    assert take_all(scheduler, now=6) == []
    assert lane.asked == 1
    assert scheduler.next_due() is None


def test_whoever_feeds_the_lanes_hears_of_each_that_had_nothing_to_start() -> None:
    resting: list[FakeLane] = []
    scheduler: Scheduler[FakeLane] = Scheduler(LIMITS, on_rest=resting.append)
    busy, idle = FakeLane(), FakeLane(rows=0)
    scheduler.add(busy)
    scheduler.add(idle)
    assert take_all(scheduler) == [busy]
    assert resting == [idle]


def test_idle_lanes_are_not_asked() -> None:
    idle = [FakeLane(rows=0) for _ in range(1000)]
    busy = FakeLane(rows=2)
    scheduler = scheduler_of(*idle, busy)
    take_all(scheduler)
    asked = sum(lane.asked for lane in idle)
    finish(scheduler, busy)
    assert take_all(scheduler) == [busy]
    assert sum(lane.asked for lane in idle) == asked


def test_attempts_of_a_removed_lane_count_until_they_end_and_leave_nothing_behind() -> None:
    lane = FakeLane(rows=3, width=3)
    lane.dues = [1e6]
    scheduler = scheduler_of(lane)
    take_all(scheduler)
    scheduler.remove(lane)
    scheduler.wake(lane)
    assert scheduler.in_flight == 3
    for _ in range(3):
        finish(scheduler, lane)
    assert (scheduler.in_flight, take_all(scheduler), scheduler.next_due()) == (0, [], None)
    gone = weakref.ref(lane)
    del lane
    gc.collect()
    assert gone() is None


def test_a_lane_is_added_once() -> None:
    lane = FakeLane()
    scheduler = scheduler_of(lane)
    with pytest.raises(ValueError, match="already"):
        scheduler.add(lane)


class SchedulerMachine(ActingMachine):
    """Caps are never exceeded, and nothing that may start is left waiting."""

    ACTIONS: ClassVar[Mapping[str, int]] = {
        "add": 3,
        "remove": 1,
        "work_comes": 20,
        "take": 20,
        "finish": 20,
        "time_passes": 5,
    }

    @initialize(process=st.integers(1, 8), tenant=st.integers(1, 4), slow=st.integers(1, 3))
    def begin(self, process: int, tenant: int, slow: int) -> None:
        self.limits = SchedulerLimits(process, tenant, slow, slow_threshold_s=1)
        self.scheduler: Scheduler[FakeLane] = Scheduler(self.limits)
        self.lanes: list[FakeLane] = []
        self.flying: list[FakeLane] = []
        self.now = 0.0

    def add(self, choose: Choose) -> None:
        if len(self.lanes) < 12:
            self.lanes.append(FakeLane(choose([1, 2, 3]), width=choose([1, 1, 2, 3])))
            self.scheduler.add(self.lanes[-1])

    def remove(self, choose: Choose) -> None:
        if self.lanes:
            lane = choose(self.lanes)
            self.lanes.remove(lane)
            self.scheduler.remove(lane)

    def work_comes(self, choose: Choose) -> None:
        if not self.lanes:
            return
        lane, delay_s = choose(self.lanes), choose([0, 0, 2, 5])
        if delay_s:
            lane.dues.append(self.now + delay_s)
        else:
            lane.waiting += 1
        self.scheduler.wake(lane)

    def take(self, choose: Choose) -> None:
        for _ in range(choose([1, 2, 10])):
            found = self.scheduler.take(self.now)
            if found is None:
                self.nothing_could_start()
                return
            lane = found[0]
            assert lane in self.lanes
            self.flying.append(lane)
            assert self.in_flight(lane.key.tenant_id) <= self.limits.tenant_in_flight_max

    def in_flight(self, tenant_id: UUID) -> int:
        return sum(lane.key.tenant_id == tenant_id for lane in self.flying)

    def nothing_could_start(self) -> None:
        """Each lane that has something meets a cap; and whatever only waits for its time has a timer."""
        if len(self.flying) >= self.limits.in_flight_max:
            return
        for lane in self.lanes:
            pool_is_full = (
                self.scheduler.is_slow(lane) and self.scheduler.slow_in_flight >= self.limits.slow_in_flight_max
            )
            tenant_is_full = self.in_flight(lane.key.tenant_id) >= self.limits.tenant_in_flight_max
            if pool_is_full or tenant_is_full or lane.in_flight >= lane.width:
                continue
            assert not lane.could_start(self.now)
            due, timer = lane.next_due(), self.scheduler.next_due()
            assert due is None or (timer is not None and self.now < timer <= due)

    def finish(self, choose: Choose) -> None:
        if self.flying:
            lane = choose(self.flying)
            self.flying.remove(lane)
            finish(self.scheduler, lane, failed=choose([True, False]))

    def time_passes(self, choose: Choose) -> None:
        self.now += choose([1, 3])

    @invariant()
    def check(self) -> None:
        assert self.scheduler.in_flight == len(self.flying) <= self.limits.in_flight_max
        assert self.scheduler.slow_in_flight <= min(self.limits.slow_in_flight_max, len(self.flying))


TestSchedulerKeepsItsCaps = SchedulerMachine.TestCase
TestSchedulerKeepsItsCaps.settings = quickly(max_examples=200)
