"""Which lane sends next: round-robin under caps. Pure; times are monotonic seconds that are passed in.

                          wake, finished, timer
    RESTING ───────────────────────────────────────────▶ READY ──take──▶ asked: it starts a row, or RESTING
       ▲                                                 │   ▲
       │                                                 ▼   │ an attempt of that tenant, or of a slow lane, has ended
       └── asked, nothing to start (timer if it backs   WAITS_FOR_TENANT | WAITS_FOR_SLOW
           off)

A lane is slow from an attempt that failed or took longer than `slow_threshold_s` to one that did neither. Slow lanes
share `slow_in_flight_max` of the `in_flight_max` places, so the rest is always left to those that answer. The cap of
one endpoint is its lane's own. A resting lane costs nothing but its entry.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from dispatcher.model import EndpointKey, OutboxRow


class SchedulableLane(Protocol):
    """What the scheduler asks of a lane."""

    @property
    def key(self) -> EndpointKey:
        """The endpoint."""

    @property
    def is_serial(self) -> bool:
        """While one attempt is in flight nothing else can start."""

    def start(self, now: float) -> OutboxRow | None:
        """The row to send at `now`, None if nothing may start."""

    def next_due(self) -> float | None:
        """When the lane should be asked again, None if only an event can change its answer."""


LaneT = TypeVar("LaneT", bound=SchedulableLane)


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Attempts in flight in the process, in one tenant, and over all slow lanes; what counts as slow."""

    in_flight_max: int
    tenant_in_flight_max: int
    slow_in_flight_max: int
    slow_threshold_s: float


class _Place(enum.Enum):
    RESTING = enum.auto()
    READY = enum.auto()
    WAITS_FOR_TENANT = enum.auto()
    WAITS_FOR_SLOW = enum.auto()


_RESTING, _READY = _Place.RESTING, _Place.READY


class _Entry(Generic[LaneT]):
    """A lane here. `lane` is None once removed, so that a far timer keeps no payload alive."""

    __slots__ = ("in_flight", "is_slow", "lane", "place", "slow_in_flight", "tenant", "timer_due")

    def __init__(self, lane: LaneT, tenant: _TenantShare[LaneT]) -> None:
        self.lane: LaneT | None = lane
        self.tenant = tenant
        self.place = _RESTING
        self.is_slow = False
        self.in_flight = 0
        self.slow_in_flight = 0
        self.timer_due: float | None = None


class _TenantShare(Generic[LaneT]):
    """A tenant's attempts in flight, its lanes known here, and those of them that wait for its cap."""

    __slots__ = ("in_flight", "lanes", "tenant_id", "waiting")

    def __init__(self, tenant_id: UUID) -> None:
        self.tenant_id = tenant_id
        self.in_flight = 0
        self.lanes = 0
        self.waiting: OrderedDict[_Entry[LaneT], None] = OrderedDict()


class Scheduler(Generic[LaneT]):
    """Round-robin over the lanes that may have something to start."""

    def __init__(self, limits: SchedulerLimits, on_rest: Callable[[LaneT], None] = lambda _lane: None) -> None:
        """`on_rest` is told of a lane that was asked and had nothing to start: it may lack something to be read."""
        self._limits = limits
        self._on_rest = on_rest
        self._entries: dict[LaneT, _Entry[LaneT]] = {}
        self._tenants: dict[UUID, _TenantShare[LaneT]] = {}
        self._ready: deque[_Entry[LaneT]] = deque()
        self._slow_waiting: OrderedDict[_Entry[LaneT], None] = OrderedDict()
        self._timers: list[tuple[float, int, _Entry[LaneT]]] = []
        self._timer_numbers = itertools.count()
        self._in_flight = 0
        self._slow_in_flight = 0

    @property
    def in_flight(self) -> int:
        """Attempts taken and not finished, those of removed lanes included."""
        return self._in_flight

    @property
    def slow_in_flight(self) -> int:
        """Those of them that were taken from slow lanes."""
        return self._slow_in_flight

    @property
    def has_ready(self) -> bool:
        """Whether `take` would ask a lane: one may have something to start, and there is room."""
        return bool(self._ready) and self._in_flight < self._limits.in_flight_max

    def is_slow(self, lane: LaneT) -> bool:
        """Whether the lane is confined to the pool of the slow ones."""
        entry = self._entries.get(lane)
        return entry is not None and entry.is_slow

    def waits_for_place(self, lane: LaneT) -> bool:
        """The lane may have something to start, and others have all places: the process's, its tenant's, the slow."""
        entry = self._entries.get(lane)
        if entry is None or entry.place is _RESTING:
            return False
        return entry.place is not _READY or self._in_flight >= self._limits.in_flight_max

    def waits_for_tenant(self, lane: LaneT) -> bool:
        """The lane may have something to start, and its tenant has as much in flight as it may."""
        entry = self._entries.get(lane)
        if entry is None or entry.place is _RESTING:
            return False
        return entry.place is _Place.WAITS_FOR_TENANT or entry.tenant.in_flight >= self._limits.tenant_in_flight_max

    def add(self, lane: LaneT) -> None:
        """Schedule a lane from now on; it is asked at once. Raises ValueError for one that is here already."""
        if lane in self._entries:
            raise ValueError("the lane is scheduled already, or was removed with attempts still in flight")
        tenant_id = lane.key.tenant_id
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            tenant = self._tenants[tenant_id] = _TenantShare(tenant_id)
        tenant.lanes += 1
        entry = self._entries[lane] = _Entry(lane, tenant)
        self._make_ready(entry)

    def remove(self, lane: LaneT) -> None:
        """Start nothing of this lane any more; its attempts in flight count until they are `finished`."""
        entry = self._entries[lane]
        if entry.lane is None:
            return
        entry.lane = None
        entry.tenant.waiting.pop(entry, None)
        self._slow_waiting.pop(entry, None)
        self._pass_on(entry.tenant)
        self._forget(lane, entry)

    def wake(self, lane: LaneT) -> None:
        """Something changed with this lane: ask it. Ignored for lanes that are not here."""
        entry = self._entries.get(lane)
        if entry is not None and entry.place is _RESTING and entry.lane is not None:
            self._make_ready(entry)

    def take(self, now: float) -> tuple[LaneT, OutboxRow] | None:
        """The next lane and the row that it has started; None if nothing may start at `now`."""
        if self._timers and self._timers[0][0] <= now:
            self._fire(now)
        limits = self._limits
        while (self._ready or self._has_slow_turn()) and self._in_flight < limits.in_flight_max:
            entry = self._ready.popleft()
            lane = entry.lane
            if lane is None:
                continue
            if entry.tenant.in_flight >= limits.tenant_in_flight_max:
                entry.place = _Place.WAITS_FOR_TENANT
                entry.tenant.waiting[entry] = None
                self._pass_on(entry.tenant)
            elif entry.is_slow and self._slow_in_flight >= limits.slow_in_flight_max:
                entry.place = _Place.WAITS_FOR_SLOW
                self._slow_waiting[entry] = None
                self._pass_on(entry.tenant)
            else:
                entry.place = _RESTING
                row = lane.start(now)
                if row is not None:
                    self._charge(entry, lane)
                    return lane, row
                self._rest(entry, lane, now)
        return None

    def finished(self, lane: LaneT, *, failed: bool, duration_s: float) -> None:
        """An attempt that `take` handed out has ended, and the lane has been told."""
        entry = self._entries[lane]
        tenant = entry.tenant
        self._in_flight -= 1
        tenant.in_flight -= 1
        entry.in_flight -= 1
        if entry.slow_in_flight:
            entry.slow_in_flight -= 1
            self._slow_in_flight -= 1
        entry.is_slow = failed or duration_s > self._limits.slow_threshold_s
        if entry.lane is None:
            self._forget(lane, entry)
        elif entry.place is _RESTING:
            self._make_ready(entry)
        elif entry.place is _Place.WAITS_FOR_SLOW and not entry.is_slow:
            del self._slow_waiting[entry]
            self._make_ready(entry)
        if tenant.waiting or self._slow_waiting:
            self._pass_on(tenant)

    def next_due(self) -> float | None:
        """When `take` may have something again without any event; None if no lane backs off."""
        timers = self._timers
        while timers and (timers[0][2].lane is None or timers[0][2].timer_due != timers[0][0]):
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def _make_ready(self, entry: _Entry[LaneT]) -> None:
        entry.place = _READY
        self._ready.append(entry)

    def _charge(self, entry: _Entry[LaneT], lane: LaneT) -> None:
        self._in_flight += 1
        entry.tenant.in_flight += 1
        entry.in_flight += 1
        if entry.is_slow:
            entry.slow_in_flight += 1
            self._slow_in_flight += 1
        if not lane.is_serial:
            self._make_ready(entry)

    def _rest(self, entry: _Entry[LaneT], lane: LaneT, now: float) -> None:
        """Nothing to start: wait for its back-off, if any, and leave its place to whoever waits for one."""
        due = lane.next_due()
        # A back-off that has already ended is not what the lane waits for; a timer for it would spin.
        if due is not None and due > now and (entry.timer_due is None or due < entry.timer_due):
            entry.timer_due = due
            heapq.heappush(self._timers, (due, next(self._timer_numbers), entry))
        self._pass_on(entry.tenant)
        self._on_rest(lane)

    def _pass_on(self, tenant: _TenantShare[LaneT]) -> None:
        """Make one lane ready of those that wait for this tenant's cap, and one of the slow, where there is room."""
        if tenant.waiting and tenant.in_flight < self._limits.tenant_in_flight_max:
            self._make_ready(tenant.waiting.popitem(last=False)[0])
        if self._slow_waiting and self._slow_in_flight < self._limits.slow_in_flight_max:
            self._make_ready(self._slow_waiting.popitem(last=False)[0])

    def _has_slow_turn(self) -> bool:
        """Make one of the slow ready where there is room: whoever was given it last may have turned quick meanwhile."""
        if not self._slow_waiting or self._slow_in_flight >= self._limits.slow_in_flight_max:
            return False
        self._make_ready(self._slow_waiting.popitem(last=False)[0])
        return True

    def _fire(self, now: float) -> None:
        timers = self._timers
        while timers and timers[0][0] <= now:
            due, _, entry = heapq.heappop(timers)
            if entry.timer_due == due:
                entry.timer_due = None
                if entry.lane is not None and entry.place is _RESTING:
                    self._make_ready(entry)

    def _forget(self, lane: LaneT, entry: _Entry[LaneT]) -> None:
        """Drop a removed lane's entry with its last attempt, and its tenant's with the last lane."""
        if entry.in_flight:
            return
        del self._entries[lane]
        entry.tenant.lanes -= 1
        if not entry.tenant.lanes:
            del self._tenants[entry.tenant.tenant_id]
