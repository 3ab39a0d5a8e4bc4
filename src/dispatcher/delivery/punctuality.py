"""Whether deliveries keep the service's promise of time: a first attempt within `slo_threshold_s` of the acceptance.

An owner counts each of its deliveries once, replays aside, with what comes first:

    its first attempt ends ──within the threshold──> good, whatever the receiver said
                           └──later, not counted yet─> by what kept it at the threshold, as the rounds saw it
    a round finds it older, never tried ──> excused, slow, late: what kept it at the threshold, or keeps it now

So a delivery that never ends is counted all the same, as soon as it is late, and a stall shows while it lasts: by the
count of what turns late, and once nothing new does, by how long the one at the front has waited for nothing but us.

What lies in the database beyond a lane's window waits for the window's front. Every round notes what keeps that, so
that a row which comes into memory later is counted by what kept the front when it turned late. A front that moves on
from round to round is no stall, though it is found without a reason now and then: what kept it last (a pause, an
outage) made the backlog, and goes on as the reason until the backlog is gone or the same row is found there twice.

What is parked untried stands behind one that failed: it is counted as it is set aside, never again, whoever owns it.

What turned late before this owner's first round over the partition, at a takeover, is not counted: nobody here saw why.
Nor is a backlog that was found then, as long as it moves and nothing is seen that keeps it. What turns late where there
is no lane, since nobody has told of the row, is late.

Nobody knows the age of rows that are known of and not read. A lane that has had nothing else for longer than the
threshold stands still like one with a late row at its front.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter

from dispatcher.clocks import SYSTEM_CLOCKS, Clocks
from dispatcher.delivery.board import Board
from dispatcher.delivery.lane import Lane
from dispatcher.delivery.lane_types import Wait
from dispatcher.delivery.slots import ACKNOWLEDGED, BACKING_OFF, DECIDING, Slot
from dispatcher.model import EndpointKey, OutboxRow
from dispatcher.telemetry import Instruments

GOOD, EXCUSED, SLOW, LATE = "good", "excused", "slow", "late"
WORDS = {Wait.ENDPOINT: EXCUSED, Wait.ANSWER: SLOW, Wait.US: LATE}
KEPT = (EXCUSED, SLOW)
"""Where rows at the front are kept by different things, those behind them are by the first of these."""
UNKNOWN = ""
"""What kept a row before this owner saw it: it is not counted."""
SLOTS_AT_ONCE = 2000
"""So many rows or lanes are looked at before others have their turn."""
FRONT_ROWS = 16
"""So many rows at the front of a late lane tell what keeps it."""
RUNS_MAX = 64
"""So many changes of what kept a lane are remembered; of what was before nothing is known."""


@dataclass(frozen=True, slots=True)
class _Round:
    """A round's time, by the monotonic clock and the wall's, and the row times from which one is late, or soon."""

    now: float
    wall: float
    late: datetime
    soon: datetime


class _View:
    """What rounds saw of one endpoint, whose lane may have been made anew meanwhile; all times are Unix seconds.

    `since`: the first round over its partition. `counted`: what is late has been counted through that sequence. `runs`:
    what has kept the front, and since when; the last run was seen until `noted`. `free`: the row at the front that
    nothing but us keeps, found at every round since `free_since`; `stalled_s`: for how long, where it is late.
    `is_gone`: a round has found that the lane is.
    """

    __slots__ = ("counted", "free", "free_since", "is_gone", "lane", "noted", "runs", "since", "stalled_s")

    def __init__(self, lane: Lane, since: float) -> None:
        self.lane = lane
        self.is_gone = False
        self.since = since
        self.counted = 0
        self.runs: list[tuple[float, str]] = []
        self.noted = 0.0
        self.free: int | None = None
        self.free_since = 0.0
        self.stalled_s = 0.0

    @property
    def word(self) -> str | None:
        """What keeps the front by the last round; None where nothing near the threshold was seen kept."""
        return self.runs[-1][1] if self.runs else None

    def word_at(self, at_s: float) -> str:
        """What kept the front then, within what was noted."""
        return self.runs[max(0, bisect_right(self.runs, at_s, key=itemgetter(0)) - 1)][1]

    def find_free(self, seq: int | None, wall: float) -> bool:
        """Whether the row that was found free is the one of the last round."""
        is_same = seq is not None and seq == self.free
        if not is_same:
            self.free, self.free_since = seq, wall
        return is_same

    def clear(self) -> None:
        """Forget all but since when it is watched and what has been counted."""
        self.runs.clear()
        self.free, self.stalled_s = None, 0.0

    def note(self, word: str, wall: float) -> None:
        if word != self.word:
            self.runs.append((wall, word))
        if len(self.runs) > RUNS_MAX:
            self.runs[:2] = [(self.runs[0][0], UNKNOWN)]
        self.noted = wall


class Punctuality:
    """`look` is called every `interval_s`; `first_ended` as attempts end; `set_aside` as rows are parked."""

    def __init__(
        self,
        board: Board,
        instruments: Instruments,
        *,
        threshold_s: float,
        interval_s: float,
        reading_fails_since: Callable[[], float | None] = lambda: None,
        clocks: Clocks = SYSTEM_CLOCKS,
    ) -> None:
        """`reading_fails_since` (monotonic): since when nothing can be read for endpoints, if so."""
        self._board = board
        self._instruments = instruments
        self._count: Callable[[str], None] = instruments.slo_delivery
        self._threshold_s = threshold_s
        self._margin_s = 2 * interval_s  # a round may come a little late
        self._reading_fails_since = reading_fails_since
        self._clocks = clocks
        self._views: dict[EndpointKey, _View] = {}
        self._owned: dict[int, tuple[int, float]] = {}
        """The partitions that rounds have seen: the epoch, and when the first did (Unix seconds)."""

    def first_ended(self, row: OutboxRow, age_s: float) -> None:
        """The first attempt of a delivery has ended at that age. Called for each of them: quick."""
        lane = self._board.lanes.get(row.key)
        # One that has outlived its lane is its next owner's to count, or the next lane's.
        if lane is None or row.replay_of is not None or lane.is_parked(row.seq) or not lane.holds(row):
            return
        view = self._known(lane)
        if view is not None and row.seq <= view.counted:
            return
        self._add(GOOD if age_s <= self._threshold_s else self._word_then(lane, view, self._late_at(row)))

    def set_aside(self, lane: Lane, rows: Sequence[OutboxRow]) -> None:
        """These are on record as parked; called before the lane is told."""
        view = self._known(lane)
        counted = 0 if view is None else view.counted
        for row in rows:
            state = lane.state_of(row.seq)
            if row.seq <= counted or row.attempts or row.replay_of is not None or state is None:
                continue
            if state < ACKNOWLEDGED:
                # One that backs off untried failed for a fault of our own.
                self._count(LATE if state is BACKING_OFF else EXCUSED)

    def _known(self, lane: Lane) -> _View | None:
        """The view of the endpoint, if it is of this tenure and of the same backlog."""
        view = self._views.get(lane.key)
        if view is None or view.lane is lane:
            return view
        return None if view.lane.epoch != lane.epoch or view.lane.is_idle else view

    def _since_of(self, lane: Lane) -> float | None:
        """When the first round saw the lane's partition under its epoch."""
        epoch, since = self._owned.get(lane.key.partition, (None, 0.0))
        return since if epoch == lane.epoch else None

    def _late_at(self, row: OutboxRow) -> float:
        return row.time.timestamp() + self._threshold_s

    def _word_then(self, lane: Lane, view: _View | None, late_at: float) -> str:
        """What kept a row that nothing keeps any more when it turned late."""
        since = self._since_of(lane) if view is None else view.since
        if since is None or late_at < since:
            return UNKNOWN
        if view is None or not view.runs or late_at > view.noted + self._margin_s:
            return LATE
        return view.word_at(late_at)

    def _add(self, word: str) -> None:
        if word != UNKNOWN:
            self._count(word)

    async def look(self) -> None:
        """One round: count what has turned late, and note what keeps what is about to."""
        this = self._begin()
        self._see_partitions(this)
        fails_since = self._reading_fails_since()
        stalled_s = 0.0 if fails_since is None else self._if_late(this.now - fails_since)
        looked_at = 0
        for lane in list(self._board.lanes.values()):
            if lane.is_closed:
                continue
            view = self._view_of(lane, this)
            looked_at += 1 + self._look_at(lane, view, this)
            stalled_s = max(stalled_s, view.stalled_s)
            if looked_at >= SLOTS_AT_ONCE:
                looked_at = 0
                await asyncio.sleep(0)
        self._instruments.slo_late_age_s.set(stalled_s)
        self._forget()

    def _see_partitions(self, this: _Round) -> None:
        seen = self._owned
        self._owned = {
            partition: seen[partition] if seen.get(partition, (None,))[0] == epoch else (epoch, this.wall)
            for partition, epoch in self._board.epochs.items()
        }

    def _view_of(self, lane: Lane, this: _Round) -> _View:
        view = self._known(lane)
        if view is None:
            since = self._since_of(lane)
            view = self._views[lane.key] = _View(lane, this.wall if since is None else since)
        view.lane, view.is_gone = lane, False
        return view

    def _forget(self) -> None:
        """Let go what was seen of lanes that are gone; of one that was not idle a round later: it may be made anew."""
        for key, view in [(key, view) for key, view in self._views.items() if view.lane.is_closed]:
            if view.lane.is_idle or (view.is_gone and key not in self._board.unlocated):
                del self._views[key]
            view.is_gone = True

    def _if_late(self, held_s: float) -> float:
        """For how long something stands still whose age nobody knows: it is that old at least."""
        return held_s if held_s > self._threshold_s else 0.0

    def _begin(self) -> _Round:
        wall = self._clocks.wall()
        late_s = wall - self._threshold_s
        late, soon = (datetime.fromtimestamp(at_s, UTC) for at_s in (late_s, late_s + self._margin_s))
        return _Round(self._clocks.monotonic(), wall, late, soon)

    def _look_at(self, lane: Lane, view: _View, this: _Round) -> int:
        """Note what keeps one lane and count its rows that are late and were not; returns how many were looked at."""
        # In a serial lane all wait for the first; the second tells of it while that one is in flight.
        front = list(itertools.islice(lane.older(0, this.soon), 2 if lane.is_serial else FRONT_ROWS))
        unread = None if front else lane.wait_of_unread(this.now)
        if not front and unread is None:
            aside = self._free_aside(lane, this)
            if aside is None:
                view.clear()  # nothing is near the threshold: whatever was is over
            else:
                view.runs.clear()
                self._stand_still(view, aside, this)
            return 0
        before = view.noted if view.runs else 0.0
        self._follow(lane, view, front, unread, this)
        looked_at = len(front)
        for slot in lane.older(view.counted, this.late):
            looked_at += 1
            view.counted = slot.row.seq
            if is_counted(slot):
                self._add(self._word_now(lane, view, slot, before, this))
        return looked_at

    def _word_now(self, lane: Lane, view: _View, slot: Slot, before: float, this: _Round) -> str:
        """What kept a row of the window when it turned late; `before`: the last round that noted anything."""
        late_at = self._late_at(slot.row)
        if late_at < view.since:
            return UNKNOWN
        if late_at <= before:
            return view.word_at(late_at)  # it was not in memory then
        word = self._word_of(lane, slot, this)
        return word if word != LATE or view.word is None else view.word

    def _follow(self, lane: Lane, view: _View, front: list[Slot], unread: Wait | None, this: _Round) -> None:
        """Note what keeps the front: us only where the same row is found free again, else what kept it last. `unread`:
        what keeps the rows behind a window of which nothing waits."""
        found = [(slot, self._word_of(lane, slot, this)) for slot in front if slot.state < ACKNOWLEDGED]
        words = {word for _, word in found} | ({WORDS[unread]} if unread is not None else set())
        free = next((slot for slot, word in found if word == LATE and is_counted(slot)), None)
        if front and free is None and not lane.is_serial:
            free = self._free_further(lane, view, front[-1], this)
        aside = None if free is not None else self._free_aside(lane, this)
        if unread is Wait.US and aside is None:
            is_ours = view.find_free(lane.tail + 1, this.wall)
            view.stalled_s = self._if_late(this.wall - view.free_since)
        else:
            is_ours = self._stand_still(view, free or aside, this)
        word: str | None = next((word for word in KEPT if word in words), None)
        if free is not None or word is None:
            is_unseen = bool(front) and self._late_at(front[0].row) < view.since
            word = LATE if is_ours else (UNKNOWN if view.word is None and is_unseen else view.word)
        if word is not None:
            view.note(word, this.wall)

    def _stand_still(self, view: _View, free: Slot | None, this: _Round) -> bool:
        """Whether the row that nothing but us keeps is that of the last round: a stall, where it is late."""
        is_same = view.find_free(None if free is None else free.row.seq, this.wall)
        view.stalled_s = this.wall - view.free_since if free is not None and free.row.time <= this.late else 0.0
        return is_same

    def _free_aside(self, lane: Lane, this: _Round) -> Slot | None:
        """A parked row that was never tried, waits for nothing but us, and is late."""
        slots = (slot for slot in lane.untried_aside(FRONT_ROWS) if slot.row.time <= this.late and is_counted(slot))
        return next((slot for slot in slots if self._is_ours(lane, slot, this)), None)

    def _is_ours(self, lane: Lane, slot: Slot, this: _Round) -> bool:
        return self._word_of(lane, slot, this) == LATE

    def _free_further(self, lane: Lane, view: _View, last: Slot, this: _Round) -> Slot | None:
        """The row behind the front that nothing but us keeps: that of the last round, or one about to turn late."""
        last_seq = max(view.counted, last.row.seq)
        slots: Iterator[Slot] = itertools.islice(lane.older(last_seq, this.soon), FRONT_ROWS)
        if view.free is not None:
            slots = itertools.chain(itertools.islice(lane.older(view.free - 1, this.soon), 1), slots)
        return next((slot for slot in slots if is_counted(slot) and self._is_ours(lane, slot, this)), None)

    def _word_of(self, lane: Lane, slot: Slot, this: _Round) -> str:
        """What keeps a slot that is not done, or what waits for it, just now."""
        if is_untried(slot):
            wait = lane.wait_of(slot, this.now)
        else:
            wait = Wait.US if slot.state is DECIDING else Wait.ENDPOINT
        if wait is Wait.US and self._board.scheduler.waits_for_tenant(lane):
            wait = Wait.ANSWER
        return WORDS[wait]


def is_untried(slot: Slot) -> bool:
    """Not done, and no attempt of it has ended."""
    return slot.row.attempts == 0 and slot.state <= DECIDING


def is_counted(slot: Slot) -> bool:
    """Counted if it is late: not done, never tried, no replay."""
    return is_untried(slot) and slot.row.replay_of is None
