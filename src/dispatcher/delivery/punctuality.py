"""Whether deliveries keep the service's promise of time: a first attempt within `slo_threshold_s` of the acceptance.

An owner counts each of its deliveries once, replays aside, with what comes first:

    its first attempt ends ──within the threshold──> good, whatever the receiver said
                           └──later, not counted yet─> by what kept it at the threshold, as the rounds saw it
    a round finds it older, never tried ──> excused, slow, late: what kept it at the threshold, or keeps it now

So a delivery that never ends is counted all the same, as soon as it is late, and a stall shows while it lasts: by the
count of what turns late, and once nothing new does, by the age of the oldest. What lies in the database beyond a lane's
window is counted as it comes into memory, and by nobody where nobody owns it: there the gauge of partitions owned
tells. After a takeover a late one may be counted again, or not at all where it is tried before the first round.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from dispatcher.clocks import SYSTEM_CLOCKS, Clocks
from dispatcher.delivery.board import Board
from dispatcher.delivery.lane import Lane
from dispatcher.delivery.lane_types import Wait
from dispatcher.delivery.slots import DECIDING, Slot
from dispatcher.model import EndpointKey, OutboxRow
from dispatcher.telemetry import Instruments

GOOD, LATE = "good", "late"
WORDS = {Wait.ENDPOINT: "excused", Wait.ANSWER: "slow", Wait.US: LATE}
SLOTS_AT_ONCE = 2000
"""So many rows or lanes are looked at before others have their turn."""
FRONT_ROWS = 16
"""So many rows of a late lane are looked at for one that only we keep."""


@dataclass(frozen=True, slots=True)
class _Round:
    """A round's time, by the monotonic clock and the wall's, and the row times from which one is late, or soon."""

    now: float
    wall: float
    late: datetime
    soon: datetime


@dataclass(frozen=True, slots=True)
class _Seen:
    """What rounds saw of an endpoint with rows near the threshold or beyond it: until when (Unix seconds) something
    that is not us kept them all, and what; `is_free`: the last round saw one that nothing kept."""

    kept_until: float
    word: str
    is_free: bool


UNSEEN = _Seen(0.0, LATE, is_free=True)


class Punctuality:
    """`look` is called every `interval_s`; `first_ended` as attempts end."""

    def __init__(
        self,
        board: Board,
        instruments: Instruments,
        *,
        threshold_s: float,
        interval_s: float,
        clocks: Clocks = SYSTEM_CLOCKS,
    ) -> None:
        self._board = board
        self._instruments = instruments
        self._count: Callable[[str], None] = instruments.slo_delivery
        self._threshold_s = threshold_s
        self._margin_s = 2 * interval_s  # a round may come a little late
        self._clocks = clocks
        self._counted: dict[EndpointKey, int] = {}
        """Through which sequence what is late has been counted."""
        self._seen: dict[EndpointKey, _Seen] = {}

    def first_ended(self, row: OutboxRow, age_s: float) -> None:
        """The first attempt of a delivery has ended at that age. Called for each of them: quick."""
        if row.replay_of is not None:
            return
        if age_s <= self._threshold_s:
            self._count(GOOD)
        elif row.seq > self._counted.get(row.key, 0) and row.key in self._seen:
            self._count(self._word_of(row))

    def _word_of(self, row: OutboxRow) -> str:
        """What kept a row that nothing keeps now when it turned late."""
        seen = self._seen.get(row.key, UNSEEN)
        until = seen.kept_until if seen.is_free else seen.kept_until + self._margin_s
        return seen.word if row.time.timestamp() + self._threshold_s <= until else LATE

    async def look(self) -> None:
        """One round: count what has turned late, and note what keeps what is about to."""
        this = self._begin()
        oldest_s, looked_at = 0.0, 0
        for lane in list(self._board.lanes.values()):
            if lane.is_closed:
                continue
            looked_at += 1 + self._look_at(lane, this)
            if lane.key in self._counted:
                looked_at += FRONT_ROWS
                oldest_s = max(oldest_s, self._late_s(lane, this))
            if looked_at >= SLOTS_AT_ONCE:
                looked_at = 0
                await asyncio.sleep(0)
        self._instruments.slo_late_age_s.set(oldest_s)
        for kept in (self._counted, self._seen):
            for key in [key for key in kept if key not in self._board.lanes]:
                del kept[key]

    def _begin(self) -> _Round:
        wall = self._clocks.wall()
        late_s = wall - self._threshold_s
        late, soon = (datetime.fromtimestamp(at_s, UTC) for at_s in (late_s, late_s + self._margin_s))
        return _Round(self._clocks.monotonic(), wall, late, soon)

    def _look_at(self, lane: Lane, this: _Round) -> int:
        """Count the rows of one lane that are late and were not; returns how many were looked at."""
        words = list[str]()
        looked_at = 0
        for slot in lane.older(self._counted.get(lane.key, 0), this.soon):
            looked_at += 1
            is_late = slot.row.time <= this.late
            if is_untried(slot):
                if not (words and lane.is_serial):  # those of a serial lane all wait for its head
                    words.append(WORDS[lane.wait_of(slot, this.now)])
                if is_late and slot.row.replay_of is None:
                    self._count(self._word_of(slot.row) if words[-1] == LATE else words[-1])
            if not is_late:
                break  # one that is not late yet tells for those behind it
            self._counted[lane.key] = slot.row.seq
        if words:
            self._note(lane.key, LATE if LATE in words else words[-1], this.wall)
        return looked_at

    def _note(self, key: EndpointKey, word: str, wall: float) -> None:
        before = self._seen.get(key, UNSEEN)
        self._seen[key] = replace(before, is_free=True) if word == LATE else _Seen(wall, word, is_free=False)

    def _late_s(self, lane: Lane, this: _Round) -> float:
        """The age of the oldest row near the front that nothing but us keeps; 0.0 without one that is late."""
        for slot in itertools.islice(lane.older(0, this.late), 1 if lane.is_serial else FRONT_ROWS):
            if is_untried(slot) and slot.row.replay_of is None and lane.wait_of(slot, this.now) is Wait.US:
                return this.wall - slot.row.time.timestamp()
        return 0.0


def is_untried(slot: Slot) -> bool:
    """Not done, and no attempt of it has ended."""
    return slot.row.attempts == 0 and slot.state <= DECIDING
