"""What a lane finds parked or halted at its beginning, where a former owner's last receipts were lost with it; and what
an operator's word on a single delivery does to its place."""

from __future__ import annotations

from dispatcher.delivery.held import HeldHalt, HeldRow
from dispatcher.delivery.lane import Lane, LaneLimits, ModeSettings
from dispatcher.model import Cursor, OutboxRow
from tests.support.lanes import BY_KEY, KEY, ORDERED, lane, payload_of, row, row_time

KEYED_ROWS = 8


def parked_row(seq: int) -> OutboxRow:
    made = row(seq, ordering_key="a")
    made.parked = True
    return made


def deliver_all(lane: Lane, records: set[int]) -> list[int]:
    """Start, acknowledge and flush until nothing starts; what was sent. `records`: what is on record as parked."""
    sent: list[int] = []
    while (started := lane.start(0.0)) is not None:
        sent.append(started.seq)
        lane.succeeded(started.seq)
        lane.flushed(started.seq)
        for key, after_seq in lane.cold_wanted():
            found = [HeldRow(parked_row(seq), BY_KEY, 0.0) for seq in sorted(records) if seq > after_seq]
            lane.cold_read(key, found, more=False)
    return sent


def test_a_row_below_its_keys_parked_ones_is_not_forgotten_when_it_is_parked_behind_them() -> None:
    """Its former owner had its answer and parked 5 and 6 behind it; then it crashed before the answer was on record."""
    limits = LaneLimits(KEYED_ROWS, 10_000, parked_rows_max=64, parked_key_rows_max=1)
    lane = Lane(KEY, 2, Cursor(KEY, 0, row_time(0)), limits, KEYED_ROWS, needs_held=True)
    lane.configure({1: ModeSettings(BY_KEY, 4)})
    lane.hold([HeldRow(parked_row(5), BY_KEY, 0.0, more=True)], [])
    settled = [row(seq, settled=True) for seq in (2, 3, 4)]
    lane.loaded(
        [
            row(1, ordering_key="a"),
            *settled,
            parked_row(5),
            parked_row(6),
            row(7, ordering_key="a"),
            row(8, settled=True),
        ],
        reached_end=True,
    )
    chosen = [held.row.seq for held in lane.to_park()]
    assert chosen == [1, 7]
    lane.parked(chosen)
    assert sorted(deliver_all(lane, {1, 5, 6, 7})) == [1, 5, 6, 7]


def lane_with_expired_halt(halts: list[HeldHalt]) -> Lane:
    """2 is done, its record as parked still there; 3 is halted and expired, if `halts` says so; 4 waits."""
    lane = Lane(KEY, 2, Cursor(KEY, 2, row_time(2)), LaneLimits(64, 10_000), 4, needs_held=True)
    lane.configure({1: ModeSettings(BY_KEY, 4), 2: ModeSettings(ORDERED, 4), 3: ModeSettings(BY_KEY, 4)})
    done = parked_row(2)
    done.settled = True
    lane.hold([HeldRow(done, BY_KEY, 0.0)], halts)
    lane.loaded([row(3, revision=2, settled=True), row(4, ordering_key="b", revision=3)], reached_end=True)
    return lane


def test_nothing_passes_an_expired_halt_though_older_parked_ones_are_of_another_mode() -> None:
    halt = HeldHalt(row(3, revision=2, settled=True), ORDERED)
    assert lane_with_expired_halt([halt]).start(0.0) is None
    started = lane_with_expired_halt([]).start(0.0)
    assert started is not None
    assert started.seq == 4


def test_what_is_parked_between_its_keys_cold_ones_and_an_expired_halt_goes_on_once_that_is_lifted() -> None:
    """5 and 8 were parked, 8 cold; the halt at 10 expired before 7, whose answer was lost with its former owner."""
    limits = LaneLimits(KEYED_ROWS, 10_000, parked_rows_max=64, parked_key_rows_max=2)
    lane = Lane(KEY, 2, Cursor(KEY, 4, row_time(4)), limits, 12, needs_held=True)
    lane.configure({1: ModeSettings(BY_KEY, 4)})
    halt = HeldHalt(row(10, ordering_key="a", settled=True), BY_KEY)
    lane.hold([HeldRow(parked_row(5), BY_KEY, 0.0, more=True)], [halt])
    done = [row(6, settled=True), row(9, settled=True), row(10, ordering_key="a", settled=True)]
    waiting = [row(7, ordering_key="a"), row(11, settled=True), row(12, ordering_key="a")]
    rows = sorted([parked_row(5), parked_row(8), *done, *waiting], key=lambda r: r.seq)
    lane.loaded(rows, reached_end=True)
    chosen = [held.row.seq for held in lane.to_park()]
    assert chosen == [7, 12]
    lane.parked(chosen)
    lane.lift_halt(10)
    assert sorted(deliver_all(lane, {5, 7, 8, 12})) == [5, 7, 8, 12]
    assert not lane.has_cold


def test_a_delivery_that_is_tried_now_still_waits_for_the_one_before_it_of_its_key() -> None:
    made = lane(BY_KEY)
    for seq in (1, 2):
        assert made.offer(row(seq, ordering_key="a"))
    assert made.start(0.0) is not None
    made.failed(1, 10.0)
    assert made.claim(2)
    made.retry_now(2, 0.0)
    wanted = made.wants_payloads(0.0)
    for one in wanted:
        made.attach(one, payload_of(one))
    assert (wanted, made.start(0.0)) == ([], None)
    first = made.start(10.0)
    assert first is not None
    assert first.seq == 1
