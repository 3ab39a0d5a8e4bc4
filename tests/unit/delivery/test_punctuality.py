"""Each delivery is counted once: good by its first attempt's end, else by what kept it when it turned late."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from dispatcher.clocks import Clocks
from dispatcher.delivery.lane import Lane
from dispatcher.delivery.lane_types import Wait
from dispatcher.delivery.punctuality import GOOD, WORDS, Punctuality
from dispatcher.model import OutboxRow
from dispatcher.telemetry import Instruments
from dispatcher.telemetry.instruments import SLO_RESULTS
from tests.support.lanes import BY_KEY, KEY, ORDERED, START_TIME, UNORDERED, lane, row

THRESHOLD_S, INTERVAL_S = 60.0, 5.0


class Counted(Instruments):
    """Instruments that remember what they were told."""

    def __init__(self, silent: Instruments) -> None:
        vars(self).update(vars(silent))
        self.results: Counter[str] = Counter()

    def slo_delivery(self, result: str) -> None:
        self.results[result] += 1

    @property
    def late_age_s(self) -> float:
        return self.slo_late_age_s._points[0][0]


class Shut:
    """A gate that lets nothing begin."""

    def opens_at(self, now: float, row_time: datetime) -> float:
        return math.inf


class Watched:
    """A lane under watch. `at(s)` is the time by both clocks: row n was accepted in second n."""

    def __init__(self, made: Lane) -> None:
        self.lane, self.now = made, 0.0
        self.counted = Counted(Instruments.silent())
        self.board: Any = SimpleNamespace(lanes={KEY: made})
        clocks = Clocks(monotonic=lambda: self.now, wall=lambda: START_TIME.timestamp() + self.now)
        self.watch = Punctuality(
            self.board, self.counted, threshold_s=THRESHOLD_S, interval_s=INTERVAL_S, clocks=clocks
        )

    async def look(self, at_s: float) -> dict[str, int]:
        self.now = at_s
        await self.watch.look()
        return dict(self.counted.results)

    def begin(self, at_s: float) -> OutboxRow:
        self.now = at_s
        started = self.lane.start(at_s)
        assert started is not None
        return started

    def end(self, ended: OutboxRow, at_s: float, *, succeeded: bool) -> dict[str, int]:
        """An attempt ends, as the attempter and the send loop tell it."""
        self.now = at_s
        ended.attempts += 1
        if ended.attempts == 1:
            self.watch.first_ended(ended, at_s - ended.seq)
        if succeeded:
            self.lane.succeeded(ended.seq)
            self.lane.flushed(ended.seq)
        else:
            self.lane.failed(ended.seq, at_s + 1000)
        return dict(self.counted.results)


def watched(count: int, mode: Any = ORDERED, **options: Any) -> Watched:
    made = lane(mode, **options)
    for seq in range(1, count + 1):
        made.offer(row(seq))
    return Watched(made)


@pytest.mark.parametrize("succeeded", [True, False])
async def test_a_first_attempt_in_time_is_good_whatever_the_receiver_said(succeeded: bool) -> None:
    case = watched(1)
    assert case.end(case.begin(2), 61, succeeded=succeeded) == {"good": 1}
    assert await case.look(100) == {"good": 1}, "and is not counted again"


async def test_only_the_first_attempt_counts() -> None:
    case = watched(1)
    case.end(case.begin(2), 3, succeeded=False)
    case.end(case.begin(1100), 1101, succeeded=True)
    assert await case.look(1200) == {"good": 1}


async def test_what_only_we_keep_is_late_as_soon_as_a_round_finds_it_and_once() -> None:
    case = watched(3)
    assert await case.look(60) == {}
    assert await case.look(61) == {"late": 1}
    assert await case.look(62) == {"late": 2}, "a stall is counted while it lasts"
    assert await case.look(70) == {"late": 3}
    first = case.begin(71)
    assert case.end(first, 72, succeeded=True) == {"late": 3}, "the end of one that was counted"


async def test_the_age_of_the_oldest_late_one_shows_a_stall_to_its_end() -> None:
    case = watched(2)
    await case.look(59)
    assert case.counted.late_age_s == 0
    await case.look(600)
    assert case.counted.late_age_s == 599
    for at_s in (601, 602):
        case.end(case.begin(at_s), at_s, succeeded=True)
    await case.look(603)
    assert case.counted.late_age_s == 0


async def test_what_waits_for_one_that_failed_is_excused() -> None:
    case = watched(3)
    case.end(case.begin(2), 3, succeeded=False)
    assert await case.look(100) == {"good": 1, "excused": 2}
    assert case.counted.late_age_s == 0


async def test_what_waits_while_one_that_failed_is_tried_again_is_excused() -> None:
    case = watched(2)
    case.end(case.begin(2), 3, succeeded=False)
    case.begin(1100)
    assert await case.look(1101) == {"good": 1, "excused": 1}


async def test_what_waits_for_an_answer_is_slow() -> None:
    case = watched(3)
    case.begin(50)
    assert await case.look(100) == {"slow": 3}
    assert case.counted.late_age_s == 0


async def test_as_many_in_flight_as_an_endpoint_allows_make_the_others_slow() -> None:
    case = watched(3, UNORDERED, max_in_flight=2)
    case.begin(2)
    assert await case.look(61) == {"slow": 1}, "one that is in flight at the threshold"
    case.begin(62)
    assert await case.look(100) == {"slow": 3}


async def test_a_paused_endpoint_and_one_behind_a_shut_gate_are_excused() -> None:
    paused, shut = watched(1), watched(1)
    paused.lane.paused = True
    shut.lane.gate = Shut()
    assert await paused.look(100) == {"excused": 1}
    assert await shut.look(100) == {"excused": 1}


async def test_a_failing_key_excuses_no_other() -> None:
    made = lane(BY_KEY)
    for seq, key in ((1, "a"), (2, "a"), (3, "b")):
        made.offer(row(seq, ordering_key=key))
    case = Watched(made)
    first = case.begin(2)
    assert first.ordering_key == "a"
    case.end(first, 3, succeeded=False)
    assert await case.look(100) == {"good": 1, "excused": 1, "late": 1}
    assert case.counted.late_age_s == 97


async def test_an_endpoint_that_could_not_be_configured_is_ours_to_mend() -> None:
    made = lane()
    made._modes.clear()
    made.offer(row(1))
    case = Watched(made)
    assert await case.look(100) == {"late": 1}


async def test_a_decision_on_its_way_into_the_database_is_ours() -> None:
    case = watched(2)
    first = case.begin(2)
    first.attempts = 1
    assert case.lane.deciding(first.seq)
    assert await case.look(100) == {"late": 1}


async def test_an_attempt_that_counted_for_nothing_excuses_nobody() -> None:
    """As where an egress proxy of our own failed: the row backs off, and was never tried."""
    case = watched(2)
    case.lane.failed(case.begin(2).seq, 1000)
    case.lane.gate = Shut()
    assert await case.look(100) == {"late": 2}


async def test_a_halted_endpoint_is_excused() -> None:
    case = watched(2)
    first = case.begin(2)
    first.attempts = 1
    case.lane.deciding(first.seq)
    case.lane.halted(first.seq)
    assert await case.look(100) == {"excused": 1}


async def test_one_that_was_kept_until_just_now_and_is_late_between_two_rounds_is_excused() -> None:
    case = watched(1)
    case.lane.paused = True
    assert await case.look(59) == {}
    case.lane.paused = False
    assert case.end(case.begin(61.5), 62, succeeded=True) == {"excused": 1}
    assert await case.look(64) == {"excused": 1}


async def test_one_that_nothing_kept_and_is_late_between_two_rounds_is_late() -> None:
    case = watched(1)
    await case.look(59)
    assert case.end(case.begin(61.5), 62, succeeded=True) == {"late": 1}
    assert await case.look(64) == {"late": 1}


async def test_what_kept_it_long_ago_excuses_nothing() -> None:
    case = watched(1)
    case.lane.paused = True
    await case.look(51.5)
    case.lane.paused = False
    await case.look(56)
    assert case.end(case.begin(61.5), 62, succeeded=True) == {"late": 1}


async def test_what_comes_into_memory_later_is_told_by_what_kept_it_when_it_turned_late() -> None:
    """Of a backlog in the database: row 40 turned late during the pause, row 41 only afterwards."""
    case = watched(2)
    case.lane.paused = True
    assert await case.look(100) == {"excused": 2}
    case.lane.paused = False
    case.lane.offer(row(3))
    assert await case.look(101) == {"excused": 3}
    for seq in range(4, 61):
        case.lane.offer(row(seq))
    assert await case.look(121) == {"excused": 40, "late": 20}


async def test_what_a_new_owner_tries_before_its_first_round_is_the_former_ones() -> None:
    case = watched(2)
    assert case.end(case.begin(500), 501, succeeded=True) == {}
    assert await case.look(502) == {"late": 1}


async def test_replays_are_not_counted() -> None:
    made = lane()
    for seq in (1, 2):
        made.offer(replay_row(seq))
    case = Watched(made)
    assert case.end(case.begin(2), 3, succeeded=True) == {}
    assert await case.look(100) == {}
    assert case.counted.late_age_s == 0


def replay_row(seq: int) -> OutboxRow:
    made = row(seq)
    return replace(made, replay_of=7)


async def test_rows_that_a_former_owner_tried_are_not_counted_again() -> None:
    made = lane()
    tried = row(1)
    tried.attempts = 2
    made.offer(tried)
    assert await Watched(made).look(100) == {}


async def test_an_endpoint_that_is_gone_is_forgotten() -> None:
    case = watched(1)
    case.lane.paused = True
    await case.look(100)
    case.board.lanes.clear()
    await case.look(101)
    assert not case.watch._counted
    assert not case.watch._seen


async def test_a_closed_lane_is_left_alone() -> None:
    case = watched(1)
    case.lane.close()
    assert await case.look(100) == {}


def test_every_wait_has_a_word() -> None:

    assert set(WORDS) == set(Wait)
    assert {GOOD, *WORDS.values()} == set(SLO_RESULTS)
