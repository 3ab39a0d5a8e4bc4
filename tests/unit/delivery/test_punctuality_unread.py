"""What is known of and cannot be read stands still, unless it is an endpoint that keeps it."""

from __future__ import annotations

import pytest

from dispatcher.delivery.lane_types import LoadResult
from tests.support.lanes import BY_KEY, lane, row
from tests.support.watched import Shut, Watched, watched


@pytest.mark.parametrize("delivered", [0, 3])
async def test_a_lane_that_can_read_nothing_of_what_it_was_told_stands_still(delivered: int) -> None:
    case = await watched(delivered).owned()
    for seq in range(5, 5 + delivered):
        case.end(case.begin(seq), seq, succeeded=True)
    case.lane.hint(50)
    await case.rounds(10, 70)
    assert case.counted.late_age_s == 0, "nobody knows how old it is"
    await case.look(75)
    assert case.counted.late_age_s == 65, "since the round that found it first"
    await case.catch_up(76, through=50)
    await case.look(80)
    assert case.counted.late_age_s == 0


async def test_what_can_t_be_read_counts_by_that_once_it_is() -> None:
    case = await watched(0).owned()
    case.lane.hint(3)
    await case.rounds(10, 300)
    case.feed(through=3)
    for at_s in (301, 302, 303):
        case.end(case.begin(at_s), at_s, succeeded=True)
    assert case.counted.results == {"late": 3}


async def test_an_outbox_that_is_not_as_promised_shows_as_a_stall() -> None:
    case = await watched(3).owned()
    for seq in (5, 6, 7):
        case.end(case.begin(seq), seq, succeeded=True)
    case.lane.hint(6)
    for at_s in range(10, 300, 5):
        assert case.lane.loaded([row(5), row(6)], reached_end=True) is LoadResult.GAP
        await case.look(at_s)
    assert case.counted.late_age_s > 120


async def test_a_stall_of_reading_after_a_pause_shows() -> None:
    case = await watched(3).owned()
    case.lane.hint(50)
    case.lane.paused = True
    await case.rounds(5, 100)
    case.lane.paused = False
    for at_s in (101, 102, 103):
        case.end(case.begin(at_s), at_s, succeeded=True)
    await case.rounds(105, 600)
    assert case.counted.late_age_s > 120


@pytest.mark.parametrize("reason", ["pause", "circuit"])
async def test_what_an_endpoint_keeps_needs_no_reading(reason: str) -> None:
    case = await watched(0).owned()
    case.lane.hint(50)
    case.lane.paused, case.lane.gate = reason == "pause", Shut() if reason == "circuit" else None
    await case.rounds(5, 600)
    assert case.counted.late_age_s == 0


async def test_a_lane_that_waits_for_what_is_parked_to_be_read_stands_still() -> None:
    case = await Watched(lane(BY_KEY, needs_held=True)).owned()
    await case.rounds(10, 600)
    assert case.counted.late_age_s == 600


async def test_reading_that_fails_for_endpoints_without_a_lane_shows_as_a_stall() -> None:
    case = await watched(0).owned()
    case.reading_fails_since = 10
    await case.look(60)
    assert case.counted.late_age_s == 0
    await case.look(130)
    assert case.counted.late_age_s == 120
    case.reading_fails_since = None
    await case.look(135)
    assert case.counted.late_age_s == 0


async def test_a_window_that_is_done_but_not_on_record_keeps_what_lies_behind_it_late() -> None:
    """The database takes no record: nothing behind the window can be read."""
    case = await watched(4, rows_max=4).owned()
    for seq in range(1, 5):
        await case.look(60 + 0.1 * seq)
        begun = case.begin(60)
        begun.attempts = 1
        case.lane.succeeded(begun.seq)
    case.lane.hint(40)
    await case.rounds(65, 120)
    for seq in range(1, 5):
        case.lane.flushed(seq)
    case.feed(through=40)
    assert await case.look(121) == {"late": 4}


async def test_what_the_egress_proxy_keeps_from_being_read_stands_still() -> None:
    case = await watched(0).owned()
    case.lane.hint(50)
    case.lane.gate = Shut(ours=True)
    await case.rounds(5, 600)
    assert case.counted.late_age_s == 595
