"""What is parked untried is counted once, by what it stood behind, and shows a stall where nothing else keeps it."""

from __future__ import annotations

from dispatcher.delivery.held import HeldRow
from dispatcher.delivery.lane_types import ModeSettings
from tests.support.lanes import BY_KEY, ORDERED, UNORDERED, lane, row
from tests.support.watched import Watched, keyed, replay_row, watched


async def test_what_was_parked_untried_is_excused_by_what_it_stood_behind() -> None:
    case = await watched(3, BY_KEY, rows_max=4).owned()
    case.end(case.begin(5), 6, succeeded=False)
    assert case.park() == [1, 2, 3]
    await case.rounds(10, 1100)
    case.end(case.begin(1200), 1201, succeeded=True)
    assert case.end(case.begin(1202), 1203, succeeded=True) == {"good": 1, "excused": 2}


async def test_what_was_parked_untried_is_counted_once_though_younger_ones_of_the_window_were_counted_before() -> None:
    case = await keyed("aaabbbbb").owned()
    case.end(case.begin(5), 6, succeeded=False)
    case.begin(9)
    assert case.park() == [1, 2, 3]
    await case.rounds(10, 1100)
    assert case.counted.results == {"good": 1, "excused": 2, "slow": 5}
    for at_s in (1200, 1202, 1204):
        case.end(case.begin(at_s), at_s + 1, succeeded=True)
    assert case.counted.results == {"good": 1, "excused": 2, "slow": 5}


async def test_what_was_late_as_it_was_parked_is_not_counted_again() -> None:
    case = await keyed("aaabbbbb").owned()
    case.end(case.begin(5), 6, succeeded=False)
    counted = await case.look(100)
    case.park()
    assert case.counted.results == counted


async def test_what_a_former_owner_has_parked_is_that_ones() -> None:
    made = lane(BY_KEY, needs_held=True)
    case = await Watched(made).owned()
    made.hold([HeldRow(row(1, ordering_key="a"), BY_KEY, 0.0)], [])
    assert case.end(case.begin(500), 501, succeeded=True) == {}


async def test_a_webhook_that_the_egress_proxy_kept_until_it_was_parked_is_late() -> None:
    case = await watched(3, UNORDERED, rows_max=4).owned()
    case.lane.failed(case.begin(5).seq, 1000)
    assert case.park() == [1]
    assert case.counted.results == {"late": 1}


async def test_one_that_is_parked_and_could_start_shows_a_stall() -> None:
    case = await keyed("aaabbbbb").owned()
    case.end(case.begin(5), 6, succeeded=False)
    case.park()
    for _ in range(5):
        case.end(case.begin(10), 11, succeeded=True)
    await case.rounds(15, 1100)
    assert case.counted.late_age_s == 0, "it stands behind one that failed"
    case.end(case.begin(1200), 1201, succeeded=True)
    await case.rounds(1205, 1805)
    assert case.counted.late_age_s == 600
    case.end(case.begin(1806), 1807, succeeded=True)
    await case.look(1810)
    assert case.counted.late_age_s == 0, "another one"


async def test_a_parked_one_that_a_new_owner_never_starts_shows_a_stall_though_another_key_fails() -> None:
    made = lane(BY_KEY, needs_held=True)
    failing = row(1, ordering_key="a")
    failing.attempts = 1
    case = await Watched(made).owned()
    made.hold([HeldRow(failing, BY_KEY, 9000.0), HeldRow(row(2, ordering_key="b"), BY_KEY, 0.0)], [])
    await case.rounds(65, 300)
    assert case.counted.late_age_s == 235


async def test_one_that_is_parked_and_could_start_excuses_the_window_of_nothing() -> None:
    """What keeps the others is theirs."""
    case = await keyed("aaabbbbb").owned()
    case.end(case.begin(5), 6, succeeded=False)
    failing = case.begin(7)
    case.park()
    case.end(failing, 8, succeeded=False)
    case.end(case.begin(1100), 1101, succeeded=True)
    await case.rounds(1105, 1305)
    assert case.counted.late_age_s == 200
    assert case.counted.results == {"good": 2, "excused": 6}


async def test_a_parked_one_of_a_paused_endpoint_is_no_stall() -> None:
    case = await keyed("aaabbbbb").owned()
    case.end(case.begin(5), 6, succeeded=False)
    case.park()
    case.end(case.begin(1100), 1101, succeeded=True)
    case.lane.paused = True
    await case.rounds(1105, 1305)
    assert case.counted.late_age_s == 0


async def test_replays_that_are_parked_are_not_counted() -> None:
    made = lane(BY_KEY, rows_max=4)
    for seq in (1, 2, 3):
        made.offer(replay_row(seq))
    case = await Watched(made).owned()
    case.end(case.begin(5), 6, succeeded=False)
    assert case.park() == [1, 2, 3]
    await case.rounds(10, 200)
    assert case.counted.results == {}


async def test_what_waits_in_a_new_order_for_parked_ones_of_the_former_is_excused_where_those_have_failed() -> None:
    made = lane(BY_KEY, rows_max=4)
    made.configure({1: ModeSettings(BY_KEY, 4), 2: ModeSettings(ORDERED, 4)})
    for seq in (1, 2, 3):
        made.offer(row(seq))
    case = await Watched(made).owned()
    case.end(case.begin(5), 6, succeeded=False)
    assert case.park() == [1, 2, 3]
    made.offer(row(4, revision=2))
    await case.rounds(10, 200)
    assert case.counted.results == {"good": 1, "excused": 3}
    assert case.counted.late_age_s == 0
