"""A lane under watch, for the tests of how deliveries keep the promise of time."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from dispatcher.clocks import Clocks
from dispatcher.delivery.lane import Lane
from dispatcher.delivery.punctuality import Punctuality
from dispatcher.delivery.scheduler import Scheduler, SchedulerLimits
from dispatcher.model import OutboxRow
from dispatcher.telemetry import Instruments
from tests.support.lanes import BY_KEY, KEY, ORDERED, START_TIME, lane, row

THRESHOLD_S, INTERVAL_S = 60.0, 5.0
SCHEDULER_LIMITS = SchedulerLimits(in_flight_max=10, tenant_in_flight_max=2, slow_in_flight_max=2, slow_threshold_s=1)


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

    def __init__(self, *, ours: bool = False) -> None:
        self.ours = ours

    def opens_at(self, now: float, row_time: datetime) -> float:
        return math.inf

    def is_ours(self, now: float) -> bool:
        return self.ours


class Watched:
    """A lane under watch. `at(s)` is the time by both clocks: row n was accepted in second n."""

    def __init__(self, made: Lane) -> None:
        self.lane, self.now = made, 0.0
        self.counted = Counted(Instruments.silent())
        self.scheduler = Scheduler[Lane](SCHEDULER_LIMITS)
        self.scheduler.add(made)
        self.board: Any = SimpleNamespace(
            lanes={KEY: made}, scheduler=self.scheduler, epochs={KEY.partition: made.epoch}, unlocated={}
        )
        self.reading_fails_since: float | None = None
        clocks = Clocks(monotonic=lambda: self.now, wall=lambda: START_TIME.timestamp() + self.now)
        self.watch = Punctuality(
            self.board,
            self.counted,
            threshold_s=THRESHOLD_S,
            interval_s=INTERVAL_S,
            reading_fails_since=lambda: self.reading_fails_since,
            clocks=clocks,
        )

    async def owned(self) -> Watched:
        """As one that has been here since before the first event."""
        await self.look(0)
        return self

    async def look(self, at_s: float) -> dict[str, int]:
        self.now = at_s
        await self.watch.look()
        return dict(self.counted.results)

    async def rounds(self, first_s: float, last_s: float) -> None:
        for at_s in range(int(first_s), int(last_s) + 1, int(INTERVAL_S)):
            await self.look(at_s)

    def feed(self, through: int) -> None:
        """Read into the window what there is room for."""
        while self.lane.tail < through and self.lane.offer(row(self.lane.tail + 1)):
            pass

    async def catch_up(self, at_s: float, through: int) -> dict[str, int]:
        """All are delivered by one attempt, a few between two rounds."""
        done = 0
        while not self.lane.is_idle or self.lane.tail < through:
            self.feed(through)
            self.end(self.begin(at_s), at_s, succeeded=True)
            done += 1
            if done % 5 == 0:
                await self.look(at_s + done / 1000)
        return dict(self.counted.results)

    def drop(self) -> None:
        """The lane is gone."""
        self.board.lanes.clear()
        self.lane.close()

    def replace(self, made: Lane) -> None:
        """Another lane of the same endpoint."""
        self.drop()
        self.lane = self.board.lanes[KEY] = made
        self.scheduler.add(made)

    def park(self) -> list[int]:
        """What can't start is recorded as parked, as `Aside` does."""
        rows = [held.row for held in self.lane.to_park()]
        self.watch.set_aside(self.lane, rows)
        self.lane.parked([row.seq for row in rows])
        return [row.seq for row in rows]

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


def keyed(keys: str) -> Watched:
    """A row of each key, in a window that is full."""
    made = lane(BY_KEY, rows_max=len(keys))
    for seq, key in enumerate(keys, 1):
        made.offer(row(seq, ordering_key=key))
    return Watched(made)


def replay_row(seq: int) -> OutboxRow:
    made = row(seq)
    return replace(made, replay_of=7)
