"""What is parked, what is told of it, and what stays wanted when the database does not answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dispatcher.delivery.aside import Aside, AsideOptions
from dispatcher.delivery.held import HeldRow
from dispatcher.delivery.lane import Lane, LaneLimits, ModeSettings
from dispatcher.errors import UnavailableError
from dispatcher.model import Cursor
from dispatcher.store import parked
from tests.support.lanes import BY_KEY, KEY, UNORDERED, lane, payload_of, row, row_time


def tight() -> Lane:
    """A lane whose first row fails and is in the way."""
    made = lane(UNORDERED, max_in_flight=8, rows_max=8)
    for seq in range(1, 7):
        made.offer(row(seq))
    while (started := made.start(0.0)) is not None:
        if started.seq == 1:
            made.failed(1, 50.0)
        else:
            made.succeeded(started.seq)
            made.flushed(started.seq)
    return made


def test_a_lane_with_parked_deliveries_starts_none_before_it_knows_where_to_send_them() -> None:
    """Their ordering mode is on record with them, so nothing else would keep them."""
    fresh = Lane(KEY, 2, Cursor(KEY, 5, row_time(5)), LaneLimits(8, 1000), 5, needs_held=True)
    waiting = row(3, payload=False)
    fresh.hold([HeldRow(waiting, BY_KEY, 0.0)], [])
    for wanted in fresh.wants_payloads(0.0):
        fresh.attach(wanted, payload_of(wanted))
    assert (fresh.start(1.0), fresh.next_due()) == (None, None)
    fresh.configure({1: ModeSettings(BY_KEY, 4)})
    assert fresh.start(1.0) is waiting


def test_what_may_have_been_parked_stays_in_line_and_its_record_goes_with_its_end() -> None:
    one = tight()
    assert [held.row.seq for held in one.to_park()] == [1]
    one.maybe_parked()
    assert one.settled_through == 0
    assert one.start(50.0) is not None
    one.succeeded(1)
    assert one.take_finished() == {}
    one.flushed(1)
    assert one.settled_through == 6
    assert one.take_finished() == {1: "event-1"}


def test_what_ended_before_it_was_known_whether_it_is_parked_leaves_no_record() -> None:
    one = tight()
    assert one.to_park()
    assert one.start(50.0) is not None
    one.succeeded(1)
    one.flushed(1)
    one.maybe_parked()
    assert one.take_finished().keys() == {1}


def test_a_lane_is_not_idle_before_its_records_are_deleted() -> None:
    one = tight()
    one.parked([held.row.seq for held in one.to_park()])
    assert one.start(50.0) is not None
    one.succeeded(1)
    one.flushed(1)
    finished = one.take_finished()
    assert not one.is_idle
    one.not_deleted()
    assert one.take_finished() == finished
    one.deleted()
    assert one.is_idle


async def test_who_counts_is_told_of_what_is_parked_before_its_lane_is(monkeypatch: pytest.MonkeyPatch) -> None:
    one, told = tight(), list[tuple[int, bool]]()

    async def park(*_arguments: object) -> set[int]:
        return {KEY.partition}

    monkeypatch.setattr(parked, "park", park)
    board = SimpleNamespace(is_current=lambda _: True, settled=lambda _: None)
    aside = Aside(
        cast("Any", None),
        cast("Any", board),
        AsideOptions(1.0),
        on_parked=lambda on, rows: told.extend((row.seq, on.is_parked(row.seq)) for row in rows),
    )
    await aside._park([one])
    assert told == [(seq, False) for seq, _ in told] != []
    assert all(one.is_parked(seq) for seq, _ in told)


async def test_a_page_is_never_filled_by_what_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost answer to a large park leaves many rows both on record and in the window."""
    asked: list[int] = []

    async def load(_database: object, _key: object, _ordering_key: object, _after: int, limit: int) -> Any:
        asked.append(limit)
        return [], False

    monkeypatch.setattr(parked, "load_cold", load)
    lane_with_cold = SimpleNamespace(key=KEY, cold_wanted=lambda: [("a", 1)], doubtful_count=70)
    aside = Aside(
        cast("Any", None), cast("Any", SimpleNamespace(is_current=lambda _: False)), AsideOptions(1.0, cold_rows_max=64)
    )
    await aside._read_cold(cast("Any", lane_with_cold))
    assert asked == [134]


async def test_where_reading_fails_for_one_key_those_behind_it_are_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    unread: list[str] = []

    async def away(*_arguments: object) -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(parked, "load_cold", away)
    lane_with_cold = SimpleNamespace(
        key=KEY, cold_wanted=lambda: [("a", 1), ("b", 2)], cold_unread=unread.append, doubtful_count=0
    )
    aside = Aside(cast("Any", None), cast("Any", None), AsideOptions(1.0))
    with pytest.raises(UnavailableError):
        await aside._read_cold(cast("Any", lane_with_cold))
    assert unread == ["a", "b"]


async def test_where_reading_fails_for_one_lane_those_behind_it_stay_wanted() -> None:
    lanes = {name: SimpleNamespace(key=name) for name in "abc"}
    asked: list[str] = []

    def take(wanted: dict[str, None], _limit: int) -> list[SimpleNamespace]:
        taken = [lanes[name] for name in wanted]
        wanted.clear()
        return taken

    async def read(one: SimpleNamespace) -> None:
        asked.append(one.key)
        if one.key == "b":
            raise UnavailableError("away")

    aside = Aside(cast("Any", None), cast("Any", SimpleNamespace(take_lanes=take)), AsideOptions(1.0))
    wanted = cast("Any", dict.fromkeys("abc"))
    with pytest.raises(UnavailableError):
        await aside._each(wanted, cast("Any", read))
    assert (asked, list(wanted)) == (["a", "b"], ["b", "c"])
