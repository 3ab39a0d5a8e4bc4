"""Backlog gauges, read from memory every few seconds: how much waits, how long, and the worst endpoints by name.

An endpoint's backlog is what is known to be committed above what is done; its age is that of its lowest row that is
not, where that row is in memory. What is *due* of it is what another instance could help with: not that of endpoints
which are paused, halted, slow, back off or are limited, and of each endpoint no more than a share.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

from dispatcher.delivery.board import Board
from dispatcher.delivery.lane import Lane
from dispatcher.telemetry import Instruments


@dataclass(frozen=True, slots=True)
class Backlog:
    """One endpoint's backlog in deliveries, and the age in seconds of the oldest."""

    lane: Lane
    count: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Due:
    """Deliveries that could be made now if there were more hands, and the age in seconds of the oldest."""

    count: int
    age_s: float


NOTHING_DUE = Due(0, 0.0)


class BacklogMeter:
    """`run` is the task. `worst_max` endpoints are named on metrics, the others only summed; `due` is the last
    measure, to which an endpoint adds `due_rows_max` deliveries at most."""

    def __init__(
        self,
        board: Board,
        instruments: Instruments,
        *,
        interval_s: float,
        worst_max: int,
        due_rows_max: int,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._board = board
        self._instruments = instruments
        self._interval_s = interval_s
        self._worst_max = worst_max
        self._due_rows_max = due_rows_max
        self._clock = clock
        self._wall_clock = wall_clock
        self.due = NOTHING_DUE

    async def run(self) -> None:
        while True:
            self.measure()
            await asyncio.sleep(self._interval_s)

    def measure(self) -> None:
        """Set the gauges from the lanes as they are; idle endpoints have none and count nothing."""
        now = self._wall_clock()
        backlogs = [backlog for lane in self._board.lanes.values() if (backlog := backlog_of(lane, now)) is not None]
        self._instruments.backlog.set(sum(backlog.count for backlog in backlogs))
        self._instruments.backlog_age_s.set(max((backlog.age_s for backlog in backlogs), default=0.0))
        self.due = self._measure_due(now)
        self._instruments.backlog_due.set(self.due.count)
        self._instruments.backlog_due_age_s.set(self.due.age_s)
        worst = heapq.nlargest(self._worst_max, backlogs, key=lambda backlog: (backlog.age_s, backlog.count))
        self._instruments.worst_endpoints([(*self._names(b.lane), b.count, b.age_s) for b in worst])

    def _measure_due(self, now_s: float) -> Due:
        board, clock_s = self._board, self._clock()
        lanes = [lane for lane in board.lanes.values() if not board.scheduler.is_slow(lane)]
        dues = [due_of(lane, clock_s, now_s, self._due_rows_max) for lane in lanes]
        return Due(sum(due.count for due in dues), max((due.age_s for due in dues), default=0.0))

    def _names(self, lane: Lane) -> tuple[str, str]:
        runtime = self._board.runtimes.get(lane.key)
        if runtime is None:
            return str(lane.key.tenant_id), str(lane.key.endpoint_id)
        return runtime.tenant_name, runtime.endpoint_name


def backlog_of(lane: Lane, now_s: float) -> Backlog | None:
    """None where nothing is undelivered."""
    count = lane.unsettled
    if count <= 0:
        return None
    oldest = lane.blocked_by
    return Backlog(lane, count, 0.0 if oldest is None else max(0.0, now_s - oldest.time.timestamp()))


def due_of(lane: Lane, clock_s: float, now_s: float, rows_max: int) -> Due:
    """What of one lane is due, by the monotonic and the wall clock; `rows_max` at most, since it is one lane."""
    count = lane.highest_known - lane.acknowledged_through
    if count <= 0 or lane.is_held_back(clock_s):
        return NOTHING_DUE
    oldest = lane.oldest_untried
    if oldest is not None:
        return Due(min(count, rows_max), max(0.0, now_s - oldest.time.timestamp()))
    is_unread = lane.tail <= lane.acknowledged_through
    return Due(min(count, rows_max), 0.0) if is_unread else NOTHING_DUE
