"""What a lane promises, case by case; `test_lane_model` covers their mixtures."""

from __future__ import annotations

import pytest

from dispatcher.delivery.lane import Lane, LaneError, LoadResult, ModeSettings
from dispatcher.delivery.orders import DUE_STREAK_MAX
from dispatcher.delivery.payloads import PayloadBudget
from dispatcher.delivery.slots import SlotState
from dispatcher.model import Cursor, OrderingMode, OutboxRow
from tests.support.lanes import BY_KEY, KEY, ORDERED, UNORDERED, lane, payload_of, row, row_time

EVERY_MODE = list(OrderingMode)


def filled(mode: OrderingMode, *keys: str | None, **kwargs: int) -> Lane:
    """A lane that was offered one row per key."""
    made = lane(mode, **kwargs)
    for seq, ordering_key in enumerate(keys, 1):
        assert made.offer(row(seq, ordering_key=ordering_key))
    return made


def start_all(started_from: Lane, now: float = 0.0) -> list[int]:
    seqs = []
    while (started := started_from.start(now)) is not None:
        seqs.append(started.seq)
    return seqs


# --- order ---


def test_an_ordered_lane_has_one_in_flight_and_waits_for_its_success() -> None:
    one = filled(ORDERED, None, None)
    assert start_all(one) == [1]
    one.succeeded(1)
    assert start_all(one) == [2]


def test_an_ordered_lane_waits_for_its_failing_row() -> None:
    one = filled(ORDERED, None, None)
    start_all(one)
    one.failed(1, due=5)
    assert start_all(one, now=4.9) == []
    assert one.next_due() == 5
    assert start_all(one, now=5) == [1]


def test_a_keyed_lane_sends_one_of_each_key() -> None:
    one = filled(BY_KEY, "a", "a", "b", None, None)
    assert start_all(one) == [1, 3, 4]
    one.succeeded(4)
    assert start_all(one) == [5]
    one.failed(1, due=9)
    assert start_all(one) == []
    one.succeeded(3)
    assert one.acknowledged_through == 0
    assert start_all(one, now=9) == [1]


def test_an_unordered_lane_sends_up_to_its_cap() -> None:
    one = filled(UNORDERED, *[None] * 6, max_in_flight=3)
    assert start_all(one) == [1, 2, 3]
    one.failed(2, due=1)
    assert start_all(one) == [4]


def test_the_newest_revision_says_how_many_may_be_in_flight() -> None:
    one = filled(UNORDERED, *[None] * 6, max_in_flight=3)
    one.configure({2: ModeSettings(UNORDERED, 5)})
    assert start_all(one) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_what_waits_for_a_decision_starts_only_once_it_is_committed(mode: OrderingMode) -> None:
    one = filled(mode, "a", "a")
    start_all(one)
    assert one.deciding(1)
    assert start_all(one) == []
    one.decided(1)
    assert one.settled_through == 1
    assert one.state_of(2) is (SlotState.IN_FLIGHT if mode is UNORDERED else SlotState.WAITING)
    assert start_all(one) == ([] if mode is UNORDERED else [2])


def test_due_retries_go_first_but_not_for_ever() -> None:
    one = filled(UNORDERED, *[None] * 12, max_in_flight=6)
    for seq in start_all(one):
        one.failed(seq, due=1)
    assert start_all(one, now=2) == [1, 2, 3, 7, 4, 5]
    assert DUE_STREAK_MAX == 3


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_nothing_starts_while_paused(mode: OrderingMode) -> None:
    one = filled(mode, "a")
    one.paused = True
    assert start_all(one) == []
    one.paused = False
    assert start_all(one) == [1]


def test_a_paused_lane_waits_for_no_back_off() -> None:
    one = filled(ORDERED, None)
    start_all(one)
    one.failed(1, due=5)
    one.paused = True
    assert one.next_due() is None


# --- modes by revision ---


def test_another_mode_begins_once_every_lower_row_is_done() -> None:
    one = lane(UNORDERED)
    one.configure({2: ModeSettings(ORDERED, 4), 3: ModeSettings(UNORDERED, 4)})
    for seq, revision in enumerate([1, 1, 2, 2, 3, 3], 1):
        one.offer(row(seq, revision=revision))
    assert start_all(one) == [1, 2]
    one.succeeded(2)
    assert start_all(one) == []
    one.succeeded(1)
    assert start_all(one) == [3]
    one.succeeded(3)
    assert start_all(one) == [4]
    assert one.deciding(4)
    assert start_all(one) == []
    one.decided(4)
    assert start_all(one) == [5, 6]


def test_nothing_of_a_new_mode_is_parked_while_a_row_of_the_old_one_is_not_on_record_as_done() -> None:
    """A crash makes the acknowledgement pending again; its record, once parked, would pass for one left over."""
    changed = lane(BY_KEY, rows_max=8)
    changed.configure({2: ModeSettings(UNORDERED, 4)})
    for seq in range(1, 9):
        changed.offer(row(seq, revision=1 if seq == 1 else 2))
    assert start_all(changed) == [1]
    changed.succeeded(1)
    for seq in start_all(changed):
        changed.failed(seq, 1000.0)
    assert changed.to_park() == []
    changed.flushed(1)
    assert [held.row.seq for held in changed.to_park()] == [2, 3, 4, 5]


def test_nothing_at_or_above_an_unknown_revision_starts() -> None:
    one = lane(UNORDERED)
    for seq, revision in enumerate([1, 2, 1], 1):
        one.offer(row(seq, revision=revision))
    assert one.needs_reload
    assert start_all(one) == [1]
    one.succeeded(1)
    assert start_all(one) == []
    one.configure({2: ModeSettings(UNORDERED, 4)})
    assert not one.needs_reload
    assert start_all(one) == [2, 3]


# --- marks ---


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_an_acknowledgement_that_is_not_flushed_never_moves_the_watermark(mode: OrderingMode) -> None:
    one = filled(mode, "a", "b", "c")
    for seq in (1, 2, 3):
        assert start_all(one) == ([seq] if mode is ORDERED else [1, 2, 3][: 3 if seq == 1 else 0])
        one.succeeded(seq)
    assert (one.acknowledged_through, one.settled_through) == (3, 0)
    one.flushed(2)
    assert one.settled_through == 0
    one.flushed(1)
    assert one.watermark == Cursor(KEY, 2, row_time(2))
    assert not one.is_idle
    one.flushed(3)
    assert one.is_idle
    assert one.state_of(1) is SlotState.SETTLED


def test_rows_read_as_settled_are_passed_over() -> None:
    one = lane(ORDERED, position=4, highest_known=7)
    assert one.wanted() == 3
    rows = [row(5, settled=True), row(6, payload=False), row(7, settled=True)]
    assert one.loaded(rows, reached_end=True) is LoadResult.CONTIGUOUS
    assert (one.settled_through, one.acknowledged_through) == (5, 5)
    one.attach(rows[1], payload_of(rows[1]))
    assert start_all(one) == [6]
    one.succeeded(6)
    one.flushed(6)
    assert one.settled_through == 7
    assert one.is_idle


# --- rows in ---


def test_only_the_very_next_row_is_taken_from_the_hand_off() -> None:
    one = lane(highest_known=0)
    assert not one.offer(row(2))
    assert one.highest_known == 2
    assert one.wanted() == 2
    assert one.offer(row(1))
    assert not one.offer(row(1))
    assert one.tail == 1


def test_the_window_is_bounded_and_what_fails_at_its_bottom_stops_it() -> None:
    one = lane(UNORDERED, rows_max=8)
    assert [one.offer(row(seq)) for seq in range(1, 10)] == [True] * 8 + [False]
    assert one.start(0) is not None
    one.failed(1, due=1e9)
    while (started := one.start(0)) is not None:
        one.succeeded(started.seq)
        one.flushed(started.seq)
    assert (one.wanted(), one.settled_through, one.acknowledged_through) == (0, 0, 0)


def test_reading_waits_for_a_quarter_of_the_window_while_rows_wait() -> None:
    one = lane(ORDERED, rows_max=8, highest_known=20)
    one.loaded([row(seq) for seq in range(1, 9)], reached_end=False)
    wanted = []
    for seq in range(1, 4):
        one.start(0)
        one.succeeded(seq)
        one.flushed(seq)
        wanted.append(one.wanted())
    assert wanted == [0, 2, 3]


def test_a_gap_is_reported_and_never_skipped() -> None:
    one = lane(highest_known=5)
    assert one.loaded([row(1), row(2), row(4)], reached_end=False) is LoadResult.GAP
    assert one.tail == 2
    assert one.wanted() == 3


def test_a_hint_that_two_reads_prove_wrong_is_given_up_but_one_that_came_meanwhile_is_not() -> None:
    one = lane(highest_known=1)
    one.hint(2)
    assert one.loaded([row(1)], reached_end=True) is LoadResult.CONTIGUOUS
    assert one.wanted() == 1
    one.hint(3)
    assert one.loaded([], reached_end=True) is LoadResult.CONTIGUOUS
    assert one.loaded([], reached_end=True) is LoadResult.MISSING
    assert one.wanted() == 0


# --- late successes ---


def test_a_late_success_spares_a_row_that_waits_or_backs_off() -> None:
    one = filled(UNORDERED, None, None, None, max_in_flight=1)
    start_all(one)
    one.failed(1, due=1)
    one.late_success(1)
    one.late_success(2)
    assert one.acknowledged_through == 2
    assert start_all(one, now=2) == [3]
    assert one.next_due() is None


def test_a_late_success_lets_the_attempt_in_flight_come_to_its_end() -> None:
    one = filled(ORDERED, None, None)
    start_all(one)
    one.late_success(1)
    assert start_all(one) == []
    one.failed(1, due=1e9)
    assert start_all(one) == [2]


def test_there_is_nothing_to_decide_after_a_late_success() -> None:
    one = filled(ORDERED, None, None)
    start_all(one)
    one.flushed(1)
    assert not one.deciding(1)
    assert one.settled_through == 1
    assert one.in_flight == 0


def test_facts_about_rows_not_in_memory_are_passed_over() -> None:
    one = filled(ORDERED, None, position=0)
    one.flushed(7)
    one.late_success(7)
    assert one.state_of(7) is None


# --- payloads ---


def without_payloads(one: Lane, *rows: OutboxRow) -> Lane:
    one.hint(rows[-1].seq)
    one.loaded(rows, reached_end=True)
    return one


def test_a_row_starts_only_with_its_payload() -> None:
    first = row(1, payload=False)
    one = without_payloads(lane(ORDERED), first)
    assert one.start(0) is None
    assert one.needs_payloads
    assert one.wants_payloads(0) == [first]
    one.attach(first, payload_of(first))
    assert start_all(one) == [1]


def test_payloads_are_let_go_as_soon_as_they_are_not_needed() -> None:
    one = filled(ORDERED, None, None)
    started = one.start(0)
    assert started is not None
    assert one.bytes_held == 20
    one.succeeded(1)
    assert (one.bytes_held, started.payload) == (10, None)
    started = one.start(0)
    assert started is not None
    one.deciding(2)
    assert (one.bytes_held, started.payload) == (0, None)


def test_payloads_are_asked_for_within_bytes_and_rows() -> None:
    rows = [row(seq, payload=False, data_bytes=40) for seq in range(1, 9)]
    assert without_payloads(lane(UNORDERED, bytes_max=100), *rows).wants_payloads(0) == rows[:2]
    assert without_payloads(lane(UNORDERED, payload_rows_max=3), *rows).wants_payloads(0) == rows[:3]


def test_one_row_may_always_hold_its_payload() -> None:
    rows = [row(seq, payload=False, data_bytes=500) for seq in (1, 2)]
    one = without_payloads(lane(UNORDERED, bytes_max=100), *rows)
    assert one.wants_payloads(0) == rows[:1]
    one.attach(rows[0], payload_of(rows[0]))
    assert start_all(one) == [1]
    assert one.wants_payloads(0) == []
    one.succeeded(1)
    assert one.start(0) is None
    assert one.needs_payloads
    assert one.wants_payloads(0) == rows[1:]


def test_an_offered_payload_beyond_the_bytes_is_let_go_and_read_when_its_row_comes_up() -> None:
    one = lane(ORDERED, bytes_max=15)
    assert one.offer(row(1))
    second = row(2)
    assert one.offer(second)
    assert second.payload is None
    assert start_all(one) == [1]
    one.succeeded(1)
    assert start_all(one) == []
    assert one.wants_payloads(0) == [second]


def test_rows_that_back_off_give_their_bytes_to_those_that_can_start() -> None:
    one = filled(UNORDERED, None, None, bytes_max=20)
    third = row(3, payload=False)
    one.offer(third)
    for seq in start_all(one):
        one.failed(seq, due=100)
    assert one.start(0) is None
    assert one.wants_payloads(0) == [third]
    assert one.bytes_held == 10
    one.attach(third, payload_of(third))
    assert start_all(one) == [3]
    one.succeeded(3)
    assert [want.seq for want in one.wants_payloads(100)] == [1]


def test_a_payload_is_reserved_its_room_while_it_is_read() -> None:
    first = row(1, payload=False, data_bytes=80)
    one = without_payloads(lane(ORDERED, bytes_max=100), first)
    assert one.wants_payloads(0) == [first]
    second = row(2, data_bytes=40)
    assert one.offer(second)
    assert second.payload is None
    one.attach(first, payload_of(first))
    assert one.bytes_held == 80


def test_a_payload_that_comes_too_late_is_not_kept() -> None:
    first = row(1, payload=False)
    one = without_payloads(lane(ORDERED), first)
    one.late_success(1)
    one.attach(first, payload_of(first))
    assert (first.payload, one.bytes_held) == (None, 0)


def test_lanes_share_one_budget_of_bytes_and_each_may_hold_one_payload_all_the_same() -> None:
    budget = PayloadBudget(25)
    greedy, modest = lane(UNORDERED, budget=budget), lane(UNORDERED, budget=budget)
    rows = [row(seq) for seq in range(1, 5)]
    assert all(map(greedy.offer, rows))
    assert [offered.payload is None for offered in rows] == [False, False, True, True]
    assert budget.used == 20
    first, second = row(1), row(2)
    assert modest.offer(first)
    assert modest.offer(second)
    assert (first.payload is None, second.payload is None) == (False, True)
    assert start_all(greedy) == [1, 2]
    greedy.succeeded(1)
    greedy.succeeded(2)
    assert budget.used == modest.bytes_held == 10
    assert greedy.wants_payloads(0) == rows[2:3]


def test_a_dropped_lane_gives_its_bytes_back_once_whatever_it_is_told_afterwards() -> None:
    budget = PayloadBudget(100)
    dropped = lane(UNORDERED, budget=budget)
    rows = [row(1), row(2), row(3, payload=False)]
    assert all(map(dropped.offer, rows))
    assert dropped.start(0) is rows[0]
    dropped.close()
    assert budget.used == 0
    dropped.attach(rows[2], payload_of(rows[2]))
    dropped.succeeded(1)
    dropped.close()
    assert budget.used == 0


# --- what can't be ---


def test_what_can_not_have_happened_is_an_error() -> None:
    one = filled(ORDERED, None, None)
    with pytest.raises(LaneError, match="not in flight"):
        one.succeeded(1)
    with pytest.raises(LaneError, match="not in flight"):
        one.failed(2, due=0)
    with pytest.raises(LaneError, match="not in memory"):
        one.deciding(3)
    with pytest.raises(LaneError, match="no decision"):
        one.decided(1)
    one.deciding(1)
    with pytest.raises(LaneError, match="already"):
        one.deciding(1)
