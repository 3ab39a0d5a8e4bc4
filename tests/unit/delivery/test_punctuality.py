"""Each delivery is counted once: good by its first attempt's end, else by what kept it when it turned late."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.delivery.admission import Admission, AdmissionPolicy
from dispatcher.delivery.lane_types import Wait
from dispatcher.delivery.punctuality import GOOD, RUNS_MAX, UNKNOWN, WORDS
from dispatcher.telemetry.instruments import SLO_RESULTS
from tests.support.lanes import BY_KEY, KEY, ORDERED, START_TIME, UNORDERED, lane, row
from tests.support.watched import Shut, Watched, keyed, replay_row, watched


@pytest.mark.parametrize("succeeded", [True, False])
async def test_a_first_attempt_in_time_is_good_whatever_the_receiver_said(succeeded: bool) -> None:
    case = await watched(1).owned()
    assert case.end(case.begin(2), 61, succeeded=succeeded) == {"good": 1}
    assert await case.look(100) == {"good": 1}, "and is not counted again"


async def test_only_the_first_attempt_counts() -> None:
    case = await watched(1).owned()
    case.end(case.begin(2), 3, succeeded=False)
    case.end(case.begin(1100), 1101, succeeded=True)
    assert await case.look(1200) == {"good": 1}


async def test_what_only_we_keep_is_late_as_soon_as_a_round_finds_it_and_once() -> None:
    case = await watched(3).owned()
    assert await case.look(60) == {}
    assert await case.look(61) == {"late": 1}
    assert await case.look(62) == {"late": 2}, "a stall is counted while it lasts"
    assert await case.look(70) == {"late": 3}
    first = case.begin(71)
    assert case.end(first, 72, succeeded=True) == {"late": 3}, "the end of one that was counted"


async def test_how_long_the_same_one_has_waited_for_us_shows_a_stall_to_its_end() -> None:
    case = await watched(2).owned()
    await case.look(59)
    assert case.counted.late_age_s == 0
    await case.look(600)
    assert case.counted.late_age_s == 541, "since the round that found it first"
    for at_s in (601, 602):
        case.end(case.begin(at_s), at_s, succeeded=True)
    await case.look(603)
    assert case.counted.late_age_s == 0


async def test_what_waits_for_one_that_failed_is_excused() -> None:
    case = await watched(3).owned()
    case.end(case.begin(2), 3, succeeded=False)
    assert await case.look(100) == {"good": 1, "excused": 2}
    assert case.counted.late_age_s == 0


async def test_what_waits_while_one_that_failed_is_tried_again_is_excused() -> None:
    case = await watched(2).owned()
    case.end(case.begin(2), 3, succeeded=False)
    case.begin(1100)
    assert await case.look(1101) == {"good": 1, "excused": 1}


async def test_what_waits_for_an_answer_is_slow() -> None:
    case = await watched(3).owned()
    case.begin(50)
    assert await case.look(100) == {"slow": 3}
    assert case.counted.late_age_s == 0


async def test_as_many_in_flight_as_an_endpoint_allows_make_the_others_slow() -> None:
    case = await watched(3, UNORDERED, max_in_flight=2).owned()
    case.begin(2)
    assert await case.look(61) == {"slow": 1}, "one that is in flight at the threshold"
    case.begin(62)
    assert await case.look(100) == {"slow": 3}


async def test_a_paused_endpoint_and_one_behind_a_shut_gate_are_excused() -> None:
    paused, shut = await watched(1).owned(), await watched(1).owned()
    paused.lane.paused = True
    shut.lane.gate = Shut()
    assert await paused.look(100) == {"excused": 1}
    assert await shut.look(100) == {"excused": 1}


async def test_a_failing_key_excuses_no_other() -> None:
    made = lane(BY_KEY)
    for seq, key in ((1, "a"), (2, "a"), (3, "b")):
        made.offer(row(seq, ordering_key=key))
    case = await Watched(made).owned()
    first = case.begin(2)
    assert first.ordering_key == "a"
    case.end(first, 3, succeeded=False)
    assert await case.look(100) == {"good": 1, "excused": 1, "late": 1}
    await case.look(105)
    assert case.counted.late_age_s == 5


@pytest.mark.parametrize("ours", [True, False])
async def test_an_attempt_that_the_egress_proxy_may_hold_up_is_late_by_us(ours: bool) -> None:
    """One that the receiver alone keeps is slow."""
    case = await watched(1).owned()
    case.begin(2)
    case.lane.gate = Shut(ours=ours)
    assert await case.look(61) == {"late" if ours else "slow": 1}


async def test_an_endpoint_that_could_not_be_configured_is_ours_to_mend() -> None:
    made = lane()
    made._modes.clear()
    made.offer(row(1))
    case = await Watched(made).owned()
    assert await case.look(100) == {"late": 1}


async def test_a_decision_on_its_way_into_the_database_is_ours() -> None:
    case = await watched(2).owned()
    first = case.begin(2)
    first.attempts = 1
    assert case.lane.deciding(first.seq)
    assert await case.look(100) == {"late": 1}


async def test_an_attempt_that_counted_for_nothing_excuses_nobody() -> None:
    """As where an egress proxy of our own failed: the row backs off, and was never tried."""
    case = await watched(2).owned()
    case.lane.failed(case.begin(2).seq, 1000)
    case.lane.gate = Shut()
    assert await case.look(100) == {"late": 2}


async def test_what_waits_while_the_egress_proxy_fails_is_late() -> None:
    """None was tried yet, and any of them could be: it is one at a time."""
    case = await watched(3, mode=UNORDERED).owned()
    case.lane.gate = Shut(ours=True)
    assert await case.look(100) == {"late": 3}


@pytest.mark.parametrize("mode", [ORDERED, UNORDERED, BY_KEY])
async def test_all_that_wait_through_an_outage_of_the_egress_proxy_are_late_whatever_their_order(mode: Any) -> None:
    case = await (keyed("abcdefgh") if mode is BY_KEY else watched(8, mode, rows_max=8)).owned()
    policy = AdmissionPolicy(("http://a/",))
    case.lane.gate = gate = Admission(policy)
    gate.configure(policy, 0)
    for at_s in range(9, 300):
        case.now = at_s
        while gate.opens_at(at_s, START_TIME) <= at_s and (begun := case.lane.start(at_s)) is not None:
            case.lane.failed(begun.seq, at_s + gate.proxy_failed(at_s, 0.5))
        if at_s % 5 == 0:
            await case.look(at_s)
    assert case.counted.results == {"late": 8}
    assert case.counted.late_age_s > 60


async def test_a_halted_endpoint_is_excused() -> None:
    case = await watched(2).owned()
    first = case.begin(2)
    first.attempts = 1
    case.lane.deciding(first.seq)
    case.lane.halted(first.seq)
    assert await case.look(100) == {"excused": 1}


async def test_one_that_was_kept_until_just_now_and_is_late_between_two_rounds_is_excused() -> None:
    case = await watched(1).owned()
    case.lane.paused = True
    assert await case.look(59) == {}
    case.lane.paused = False
    assert case.end(case.begin(61.5), 62, succeeded=True) == {"excused": 1}
    assert await case.look(64) == {"excused": 1}


async def test_one_that_nothing_kept_and_is_late_between_two_rounds_is_late() -> None:
    case = await watched(1).owned()
    await case.look(59)
    assert case.end(case.begin(61.5), 62, succeeded=True) == {"late": 1}
    assert await case.look(64) == {"late": 1}


async def test_what_kept_it_long_ago_excuses_nothing() -> None:
    case = await watched(1).owned()
    case.lane.paused = True
    await case.look(51.5)
    case.lane.paused = False
    for at_s in (54, 57):
        await case.look(at_s)
    assert case.end(case.begin(61.5), 62, succeeded=True) == {"late": 1}


@pytest.mark.parametrize("mode", [ORDERED, UNORDERED, BY_KEY])
@pytest.mark.parametrize("reason", ["pause", "circuit"])
async def test_a_backlog_beyond_the_window_is_excused_if_what_kept_it_lasted_until_it_was_late(
    mode: Any, reason: str
) -> None:
    case = await watched(8, mode, rows_max=8).owned()
    case.lane.paused, case.lane.gate = reason == "pause", Shut() if reason == "circuit" else None
    await case.rounds(5, 300)
    assert case.counted.results == {"excused": 8}, "the window's"
    case.lane.paused, case.lane.gate = False, None
    assert await case.catch_up(301, through=200) == {"excused": 200}


async def test_a_backlog_beyond_the_window_is_excused_while_receivers_work_it_off() -> None:
    """In flight at a round or not: they turned late during the pause."""
    case = await watched(8, UNORDERED, rows_max=8, max_in_flight=2).owned()
    case.lane.paused = True
    await case.rounds(5, 300)
    case.lane.paused = False
    for at_s in range(300, 600, 10):
        begun = [case.begin(at_s), case.begin(at_s)]
        await case.look(at_s + 1)
        for one in begun:
            case.end(one, at_s + 2, succeeded=True)
        case.feed(through=60)
    assert case.counted.results == {"excused": 60}


@pytest.mark.parametrize("mode", [ORDERED, UNORDERED])
async def test_a_backlog_beyond_the_window_behind_a_receiver_that_fails_is_excused(mode: Any) -> None:
    case = await watched(8, mode, rows_max=8, max_in_flight=8).owned()
    tried = [case.begin(9) for _ in range(1 if mode is ORDERED else 8)]
    for one in tried:
        case.end(one, 10, succeeded=False)
    await case.rounds(15, 1100)
    good = len(tried)
    for one in [case.begin(1101) for _ in tried]:
        case.end(one, 1102, succeeded=True)
    assert await case.catch_up(1103, through=200) == {"good": good, "excused": 200 - good}


async def test_what_turns_late_while_a_backlog_is_worked_off_is_the_backlogs() -> None:
    """Row 50 was late at 110, ten seconds after the pause; the front moved on at every round."""
    case = await watched(40, rows_max=64).owned()
    case.lane.paused = True
    await case.rounds(5, 100)
    case.lane.paused = False
    for at_s in range(101, 121):
        await case.look(at_s)
        case.end(case.begin(at_s), at_s, succeeded=True)
        assert case.counted.late_age_s == 0
        case.feed(through=60)
    assert await case.look(121) == {"excused": 60}


async def test_a_stall_while_a_backlog_is_worked_off_is_late() -> None:
    case = await watched(40, rows_max=64).owned()
    case.lane.paused = True
    await case.rounds(5, 100)
    case.lane.paused = False
    case.feed(through=60)
    await case.look(101)
    assert await case.look(106) == {"excused": 41, "late": 5}
    assert await case.look(120) == {"excused": 41, "late": 19}
    assert case.counted.late_age_s == 19


async def test_a_healthy_catch_up_is_no_stall_however_old_its_rows_are() -> None:
    case = await watched(60).owned()
    for at_s in range(5, 60, 5):
        await case.look(at_s)
        case.end(case.begin(at_s), at_s, succeeded=True)
    for at_s in range(3600, 3640):
        await case.look(at_s)
        assert case.counted.late_age_s == 0
        case.end(case.begin(at_s), at_s, succeeded=True)


async def test_one_behind_many_of_a_failing_key_shows_a_stall_all_the_same() -> None:
    made = lane(BY_KEY)
    for seq in range(1, 41):
        made.offer(row(seq, ordering_key="b" if seq in (30, 35) else "a"))
    case = await Watched(made).owned()
    case.end(case.begin(2), 3, succeeded=False)
    await case.rounds(5, 200)
    assert case.counted.results == {"good": 1, "excused": 37, "late": 2}
    assert case.counted.late_age_s > 100


async def test_one_behind_more_of_a_failing_key_than_a_round_looks_at_is_late_once_those_are_counted() -> None:
    made = lane(BY_KEY)
    for seq in range(1, 61):
        made.offer(row(seq, ordering_key="b" if seq in (50, 55) else "a"))
    case = await Watched(made).owned()
    case.end(case.begin(2), 3, succeeded=False)
    await case.rounds(5, 200)
    assert case.counted.results == {"good": 1, "excused": 57, "late": 2}
    assert case.counted.late_age_s > 80


async def test_as_many_in_flight_as_a_tenant_may_have_make_the_others_slow() -> None:
    case = await watched(4, UNORDERED).owned()
    for _ in range(2):
        assert case.scheduler.take(5) is not None
    assert case.scheduler.take(5) is None, "the tenant's share is in flight"
    await case.rounds(10, 300)
    assert case.counted.results == {"slow": 4}
    assert case.counted.late_age_s == 0


async def test_changes_of_what_keeps_a_lane_are_remembered_up_to_a_bound_and_none_is_guessed() -> None:
    case = await watched(8, rows_max=8).owned()
    begun = case.begin(9)
    for turn in range(3 * RUNS_MAX):
        case.lane.paused = turn % 2 == 0
        await case.look(70 + turn)
    view = case.watch._views[KEY]
    assert len(view.runs) == RUNS_MAX
    assert view.word_at(71) == UNKNOWN
    case.end(begun, 300, succeeded=True)


async def test_what_was_late_before_a_takeover_is_not_counted() -> None:
    """A backlog of an hour's pause that the former owner was working off."""
    case = watched(8, rows_max=8, highest_known=200)
    for at_s in range(4000, 4200):
        await case.look(at_s)
        case.feed(through=200)
        case.end(case.begin(at_s), at_s, succeeded=True)
        case.feed(through=200)
    assert case.counted.results == {}


async def test_a_pause_that_a_new_owner_finds_excuses_what_turns_late_from_then_on() -> None:
    case = watched(40)
    case.lane.paused = True
    await case.rounds(70, 200)
    assert case.counted.results == {"excused": 31}, "row 10 was late when it came"


async def test_a_new_owner_that_stands_still_is_late_with_what_turns_late() -> None:
    case = watched(40)
    await case.rounds(70, 200)
    assert case.counted.results == {"late": 30}, "row 10 turned late just as it came"
    assert case.counted.late_age_s == 130


async def test_what_a_new_owner_tries_before_its_first_round_is_the_former_ones() -> None:
    case = watched(2)
    assert case.end(case.begin(500), 501, succeeded=True) == {}
    assert await case.look(502) == {}, "and nobody here saw why the other is late"


@pytest.mark.parametrize("is_tried_before_a_round", [True, False])
async def test_what_an_owner_finds_too_late_at_an_endpoint_without_a_lane_is_late(
    is_tried_before_a_round: bool,
) -> None:
    """A lost hint, and a sweep that fails: the owner has been here all the time."""
    case = watched(0)
    case.drop()
    await case.rounds(0, 3000)
    case.replace(lane(position=2999))
    case.lane.offer(row(3000))
    if is_tried_before_a_round:
        assert case.end(case.begin(3121), 3122, succeeded=True) == {"late": 1}
    else:
        assert await case.look(3125) == {"late": 1}


async def test_what_was_late_before_this_tenure_is_not_counted_though_the_partition_was_ours_before() -> None:
    case = watched(0)
    case.lane.hint(1)
    await case.rounds(0, 100)
    case.board.epochs[KEY.partition] += 1
    case.replace(lane())
    case.lane.epoch += 1
    case.lane.offer(row(1))
    assert case.end(case.begin(500), 501, succeeded=True) == {}
    await case.look(505)
    case.lane.offer(row(2))
    assert case.end(case.begin(506), 507, succeeded=True) == {}


@pytest.mark.parametrize("rounds", [0, 1])
async def test_a_lane_that_is_made_anew_goes_on_with_what_is_known_of_its_endpoint(rounds: int) -> None:
    """As where rows of its backlog have expired: a pause that has excused some excuses all, and once."""
    case = await watched(8, rows_max=8, highest_known=20).owned()
    case.lane.paused = True
    await case.rounds(5, 300)
    assert case.counted.results == {"excused": 8}
    case.drop()
    if rounds:
        await case.look(305)
    case.replace(lane(rows_max=8, highest_known=20))
    case.feed(through=20)
    assert await case.catch_up(306, through=20) == {"excused": 20}


async def test_what_kept_a_backlog_that_is_gone_excuses_nothing_that_comes_after() -> None:
    case = await watched(8).owned()
    case.lane.paused = True
    await case.rounds(5, 300)
    case.lane.paused = False
    assert await case.catch_up(301, through=8) == {"excused": 8}
    case.replace(lane(position=299))
    case.lane.offer(row(300))
    assert await case.look(361) == {"excused": 8, "late": 1}


async def test_an_attempt_that_ends_when_its_round_has_counted_it_is_not_counted_again() -> None:
    """The loop was late, or the clock stepped back."""
    case = await watched(1, UNORDERED).owned()
    begun = case.begin(2)
    assert await case.look(61.05) == {"slow": 1}
    assert case.end(begun, 60.9, succeeded=True) == {"slow": 1}


async def test_an_attempt_that_outlives_its_lane_is_the_next_owners_to_count() -> None:
    case = await watched(1).owned()
    begun = case.begin(2)
    case.drop()
    begun.attempts = 1
    case.watch.first_ended(begun, 10.0)
    assert case.counted.results == {}


async def test_an_attempt_that_outlives_its_lane_is_not_counted_beside_that_of_the_next() -> None:
    case = await watched(1).owned()
    begun = case.begin(2)
    case.replace(lane())
    case.lane.offer(row(1))
    begun.attempts = 1
    case.watch.first_ended(begun, 10.0)
    assert case.end(case.begin(12), 13, succeeded=True) == {"good": 1}


async def test_replays_are_not_counted() -> None:
    made = lane()
    for seq in (1, 2):
        made.offer(replay_row(seq))
    case = await Watched(made).owned()
    assert case.end(case.begin(2), 3, succeeded=True) == {}
    assert await case.look(100) == {}
    assert case.counted.late_age_s == 0


async def test_rows_that_a_former_owner_tried_are_not_counted_again() -> None:
    made = lane()
    tried = row(1)
    tried.attempts = 2
    made.offer(tried)
    assert await Watched(made).look(100) == {}


async def test_an_endpoint_that_is_gone_is_forgotten() -> None:
    case = await watched(1).owned()
    case.lane.paused = True
    await case.look(100)
    case.drop()
    case.board.unlocated[KEY] = None
    for at_s in (101, 102, 103):
        await case.look(at_s)
    assert case.watch._views, "it may be made anew"
    case.board.unlocated.clear()
    await case.look(104)
    assert not case.watch._views


async def test_a_closed_lane_is_left_alone() -> None:
    case = await watched(1).owned()
    case.lane.close()
    assert await case.look(100) == {}


def test_every_wait_has_a_word() -> None:

    assert set(WORDS) == set(Wait)
    assert {GOOD, *WORDS.values()} == set(SLO_RESULTS)
