"""Backlog gauges, read from memory every few seconds: how much waits, how long, and the worst endpoints by name.

An endpoint's backlog is what is known to be committed above what is done; its age is that of its lowest row that is
not. Where that row is not read yet, it is at least so old as it has been missing at every look.

What is *due* of it is what this process keeps waiting, so that another one would help: it has no place for it (all
attempts in flight that it, the tenant, or its slow endpoints may have), or no time (its core is busy). What waits for
its receiver, for a retry, a limit or an operator is not due. An endpoint adds no more than a share to the count, and to
the age only the time for which it has been found waiting at every look, however old its events are.

The due work of all instances is summed, so none of it may be told by two: a partition counts no more once it is gone,
and one that was taken over not until its former owner should have told what it has without it. So the sum falls short
for some seconds when partitions move, rather than ask for instances that nobody needs.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dispatcher.delivery.board import Board
from dispatcher.delivery.lane import Lane
from dispatcher.model import EndpointKey, OutboxRow
from dispatcher.telemetry import Instruments


@dataclass(frozen=True, slots=True)
class Backlog:
    """One endpoint's backlog in deliveries, and the age in seconds of the oldest."""

    lane: Lane
    count: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Due:
    """Deliveries that this process keeps waiting, and for how long (s) it has the one that waits longest."""

    count: int
    age_s: float


NOTHING_DUE = Due(0, 0.0)
BUSY_SHARE = 0.8
"""A process is one event loop: where it wants this share of a core everything waits for it."""
SCHEDSTAT = Path("/proc/self/schedstat")
"""Of Linux: time on a core, time in a run queue (both ns), slices; Documentation/scheduler/sched-stats."""
LIMITED_FOR_S = 60.0
"""An endpoint that its limits held up so lately goes as fast as they let it."""


def core_time_s(schedstat: Path = SCHEDSTAT) -> float:
    """Seconds that the main thread, which runs the event loop, has had a core or waited for one; where the kernel does
    not tell, those that the whole process has had one."""
    try:
        ran_ns, waited_ns, _ = map(int, schedstat.read_text().split())
    except (OSError, ValueError):
        return time.process_time()
    return (ran_ns + waited_ns) / 1e9


class Busyness:
    """How much of a core the process could have used since the last look: a crowded machine gives it less."""

    def __init__(self, cpu_clock: Callable[[], float]) -> None:
        self._cpu_clock = cpu_clock
        self._last: tuple[float, float] | None = None

    def look(self, clock_s: float) -> float:
        """0 at the first look."""
        last, self._last = self._last, (clock_s, self._cpu_clock())
        if last is None or clock_s <= last[0]:
            return 0.0
        return (self._last[1] - last[1]) / (clock_s - last[0])


class BacklogMeter:
    """`measure` is called every so often. `worst_max` endpoints are named on metrics, the others only summed. To what
    is due an endpoint adds `due_rows_max` deliveries at most, and a partition nothing for `settle_s` after it was taken
    over."""

    def __init__(
        self,
        board: Board,
        instruments: Instruments,
        *,
        worst_max: int,
        due_rows_max: int,
        settle_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        cpu_clock: Callable[[], float] = core_time_s,
    ) -> None:
        self._board = board
        self._instruments = instruments
        self._worst_max = worst_max
        self._due_rows_max = due_rows_max
        self._settle_s = settle_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._busyness = Busyness(cpu_clock)
        self._due_since: dict[EndpointKey, float] = {}
        self._unread_since: dict[tuple[EndpointKey, int], float] = {}
        """Since when (monotonic) the row above that tail is known of and not read."""
        self._due: dict[int, Due] = {}
        """By partition, as last measured; never changed, only replaced: gauges are read by another thread."""
        instruments.backlog_due.follow(lambda: self.due.count)
        instruments.backlog_due_age_s.follow(lambda: self.due.age_s)

    @property
    def due(self) -> Due:
        """By the last measure, of the partitions that are still here."""
        since = self._clock() - self._settle_s
        found = [due for partition, due in self._due.items() if self._board.has_had(partition, since)]
        return Due(sum(due.count for due in found), max((due.age_s for due in found), default=0.0))

    def measure(self) -> None:
        """Set the gauges from the lanes as they are; idle endpoints have none and count nothing."""
        now = self._wall_clock()
        backlogs = self._backlogs(now)
        self._instruments.backlog.set(sum(backlog.count for backlog in backlogs))
        self._instruments.backlog_age_s.set(max((backlog.age_s for backlog in backlogs), default=0.0))
        self._due = self._measure_due(now)
        worst = heapq.nlargest(self._worst_max, backlogs, key=lambda backlog: (backlog.age_s, backlog.count))
        self._instruments.worst_endpoints([(*self._names(b.lane), b.count, b.age_s) for b in worst])

    def _backlogs(self, now_s: float) -> list[Backlog]:
        clock_s, before = self._clock(), self._unread_since
        self._unread_since = {}
        backlogs = []
        for lane in self._board.lanes.values():
            backlog = backlog_of(lane, now_s)
            if backlog is not None and lane.is_unread:
                since_s = before.get((lane.key, lane.tail), clock_s)
                self._unread_since[lane.key, lane.tail] = since_s
                backlog = Backlog(lane, backlog.count, max(backlog.age_s, clock_s - since_s))
            if backlog is not None:
                backlogs.append(backlog)
        return backlogs

    def _measure_due(self, now_s: float) -> dict[int, Due]:
        clock_s, before = self._clock(), self._due_since
        is_busy = self._busyness.look(clock_s) >= BUSY_SHARE
        self._due_since = {}
        due: dict[int, Due] = {}
        for lane in self._board.lanes.values():
            rows = self._kept_waiting(lane, clock_s, is_busy=is_busy)
            if rows:
                since_s = self._due_since[lane.key] = before.get(lane.key, clock_s)
                age_s = min(now_s - rows[0].time.timestamp(), clock_s - since_s)
                known = due.get(lane.key.partition, NOTHING_DUE)
                count = known.count + due_count(lane, len(rows), self._due_rows_max)
                due[lane.key.partition] = Due(count, max(known.age_s, age_s))
        return due

    def _kept_waiting(self, lane: Lane, clock_s: float, *, is_busy: bool) -> list[OutboxRow]:
        """What could start, or is in flight while nobody has time for it; nothing where the lane waits for others."""
        scheduler = self._board.scheduler
        if scheduler.waits_for_place(lane):
            return lane.front(clock_s)
        if not is_busy or scheduler.is_slow(lane) or lane.was_limited(clock_s - LIMITED_FOR_S):
            return []
        in_flight = [lane.blocked_by] if lane.in_flight and lane.blocked_by is not None else []
        return in_flight + lane.front(clock_s)

    def _names(self, lane: Lane) -> tuple[str, str]:
        runtime = self._board.runtimes.get(lane.key)
        if runtime is None:
            return str(lane.key.tenant_id), str(lane.key.endpoint_id)
        return runtime.tenant_name, runtime.endpoint_name


def backlog_of(lane: Lane, now_s: float) -> Backlog | None:
    """None where nothing is undelivered; the age is 0 where the oldest is not read yet."""
    count = lane.unsettled
    if count <= 0:
        return None
    oldest = lane.blocked_by
    return Backlog(lane, count, 0.0 if oldest is None else max(0.0, now_s - oldest.time.timestamp()))


def due_count(lane: Lane, front: int, rows_max: int) -> int:
    """Of a lane with so many rows at its front: those behind them follow where there is one line, and so may those that
    are not read yet; `rows_max` at most, since more instances don't make one endpoint faster."""
    behind = lane.unsettled - front if lane.is_serial else lane.highest_known - lane.tail
    return min(front + behind, rows_max)
