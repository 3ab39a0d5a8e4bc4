"""What this process delivers for: lanes with work, and where the idle endpoints of its partitions stand.

    unknown ──position read──> idle ──row handed off, hint, backlog at takeover──> lane ──all settled──> idle
       ^                                                                             │
       └──────────── partition released, lost or reset ──────────────────────────────┘

No I/O and no locks: everything runs on one event loop. What needs reading is noted in the ordered sets `unlocated`,
`unconfigured`, `hungry` and `thirsty`, which the feeder works off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from dispatcher.delivery.admissions import Admissions
from dispatcher.delivery.endpoint import EndpointRuntime
from dispatcher.delivery.lane import Lane, LaneLimits, ModeSettings
from dispatcher.delivery.lane_types import Resume, at_once
from dispatcher.delivery.payloads import PayloadBudget
from dispatcher.delivery.scheduler import Scheduler, SchedulerLimits
from dispatcher.model import Attempt, Cursor, EndpointKey, OutboxRow
from dispatcher.store.backlog import EndpointPosition

OrderedKeys = dict[EndpointKey, None]
"""A set that remembers the order of arrival, so that no endpoint waits for ever."""
RUNTIMES_MAX = 10_000
"""Configurations kept of endpoints without a lane."""


@dataclass(slots=True)
class OwnedPartition:
    """A partition taken over at `epoch`, at `opened_at` (monotonic): its lanes, the watermarks of its idle endpoints,
    and those that are `sought`: the database is asked where they stand."""

    epoch: int
    opened_at: float
    lanes: dict[EndpointKey, Lane] = field(default_factory=dict)
    idle: dict[EndpointKey, Cursor] = field(default_factory=dict)
    retired: set[EndpointKey] = field(default_factory=set)
    sought: set[EndpointKey] = field(default_factory=set)
    closing: bool = False

    @property
    def keys(self) -> AbstractSet[EndpointKey]:
        """All endpoints of the partition that anything can be kept of."""
        return self.lanes.keys() | self.idle.keys() | self.retired | self.sought


class Board:
    """Lanes and positions; every change of either goes through here."""

    def __init__(
        self,
        limits: LaneLimits,
        scheduling: SchedulerLimits,
        payload_bytes_budget: int,
        resume_of: Callable[[EndpointRuntime], Resume] = lambda _: at_once,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler: Scheduler[Lane] = Scheduler(scheduling, on_rest=self.feed)
        self._limits = limits
        self._resume_of = resume_of
        self.budget = PayloadBudget(payload_bytes_budget)
        self._partitions: dict[int, OwnedPartition] = {}
        self._horizons: dict[EndpointKey, int] = {}
        self._born: dict[EndpointKey, int] = {}
        self.lanes: dict[EndpointKey, Lane] = {}
        self.runtimes: dict[EndpointKey, EndpointRuntime] = {}
        self.unlocated: OrderedKeys = {}
        self.unconfigured: OrderedKeys = {}
        self.hungry: OrderedKeys = {}
        self.thirsty: OrderedKeys = {}
        self.dirty: OrderedKeys = {}
        self.unheld: OrderedKeys = {}
        self.cold: OrderedKeys = {}
        self.tight: OrderedKeys = {}
        self._aside: OrderedKeys = {}
        self._misplaced: OrderedKeys = {}
        self._clock = clock
        self.admissions = Admissions(clock)
        self.work = asyncio.Event()
        """Set when the feeder has something to read."""
        self.aside_work = asyncio.Event()
        """Set when something is to be parked, or to be read of what is."""
        self.ready = asyncio.Event()
        """Set when a lane may have something to send."""

    # -- partitions ------------------------------------------------------------------------------------------------

    @property
    def epochs(self) -> dict[int, int]:
        """The partitions delivered for, with their epochs."""
        return {partition: owned.epoch for partition, owned in self._partitions.items()}

    def epoch_of(self, partition: int) -> int | None:
        owned = self._partitions.get(partition)
        return None if owned is None else owned.epoch

    def has_had(self, partition: int, since: float) -> bool:
        """Whether the partition was taken over by then (monotonic), and is still here."""
        owned = self._partitions.get(partition)
        return owned is not None and owned.opened_at <= since

    def delivers_for(self, key: EndpointKey) -> bool:
        owned = self._partitions.get(key.partition)
        return owned is not None and not owned.closing and key not in owned.retired

    def open(self, partition: int, epoch: int, positions: Iterable[EndpointPosition]) -> None:
        """Take a partition over: a lane for each endpoint with a backlog, a position for each other."""
        self._partitions[partition] = OwnedPartition(epoch, self._clock())
        for position in positions:
            self.locate(position)

    def stop_starting(self, partition: int) -> None:
        """Before a release: nothing new starts in the partition, what is in flight goes on."""
        owned = self._partitions.get(partition)
        if owned is not None:
            owned.closing = True
            for lane in owned.lanes.values():
                lane.paused = True

    def close(self, partition: int) -> None:
        """Forget a partition and its lanes. Attempts in flight find their lane gone and only record facts."""
        owned = self._partitions.pop(partition, None)
        if owned is None:
            return
        keys = owned.keys  # no search through those of others: a drain closes every partition
        for lane in owned.lanes.values():
            self._drop(lane)
        for noted in (self.unlocated, self.unconfigured, self.hungry, self.thirsty, self.dirty):
            _forget(noted, keys)
        for noted in (self.unheld, self.cold, self.tight, self._aside, self._misplaced):
            _forget(noted, keys)
        self.admissions.forget(keys)
        # Only the endpoints of owned partitions are watched: what changes from here on would never be noticed.
        _forget(self.runtimes, keys)

    # -- positions and lanes ---------------------------------------------------------------------------------------

    def locate(self, position: EndpointPosition) -> None:
        """Learn where an endpoint stands: idle, or with a backlog that makes a lane.

        What is known here already is as new as what was read: then it is only a hint.
        """
        key = position.key
        owned = self._partitions.get(key.partition)
        if owned is None or key in owned.retired:
            return
        if key not in self.unlocated:
            owned.sought.discard(key)
        if key in self.lanes or key in owned.idle:
            self.hint(key, position.highest_seq)
            return
        cursor = Cursor(key, position.cursor_seq, position.cursor_time)
        if position.highest_seq > position.cursor_seq or position.has_held:
            # Rows up to here may have been attempted by a former owner; above, nobody but us can have.
            self._horizons[key] = position.highest_seq
            self._make_lane(owned, cursor, position.highest_seq, needs_held=position.has_held)
        else:
            owned.idle[key] = cursor

    def give_up(self, keys: Iterable[EndpointKey]) -> None:
        """These were looked for; of those that are still sought, and not anew, the database knows nothing."""
        for key in keys:
            owned = self._partitions.get(key.partition)
            if owned is not None and key in owned.sought and key not in self.unlocated:
                owned.sought.remove(key)
                if key not in self.lanes and key not in owned.idle:
                    self.runtimes.pop(key, None)
                    self.admissions.discard(key)

    def _make_lane(self, owned: OwnedPartition, cursor: Cursor, highest_seq: int, *, needs_held: bool = False) -> Lane:
        key = cursor.key
        owned.idle.pop(key, None)
        lane = Lane(key, owned.epoch, cursor, self._limits, highest_seq, self.budget, needs_held=needs_held)
        lane.paused = owned.closing
        self.lanes[key] = owned.lanes[key] = lane
        self._born[key] = cursor.seq
        self.scheduler.add(lane)
        runtime = self.runtimes.get(key)
        if runtime is None:
            self._note(self.unconfigured, key)
        else:
            self._apply(lane, runtime)
        if needs_held:
            self._note_aside(self.unheld, key)
        self.feed(lane)
        return lane

    def relocate(self, key: EndpointKey) -> None:
        """What is on record has been changed past the lane: look anew where the endpoint stands."""
        owned = self._partitions.get(key.partition)
        if owned is None or key in owned.retired:
            return
        owned.idle.pop(key, None)
        lane = self.lanes.get(key)
        if lane is not None:
            self._drop(lane)
        self._seek(owned, key)

    def _drop(self, lane: Lane) -> None:
        del self.lanes[lane.key]
        owned = self._partitions.get(lane.key.partition)
        if owned is not None:  # else it is being closed
            owned.lanes.pop(lane.key, None)
        lane.close()
        self._horizons.pop(lane.key, None)
        self._born.pop(lane.key, None)
        self._aside.pop(lane.key, None)
        self._misplaced.pop(lane.key, None)
        self.scheduler.remove(lane)
        if len(self.runtimes) > RUNTIMES_MAX or lane.key in self.unconfigured:
            self.runtimes.pop(lane.key, None)

    def offer(self, rows: Sequence[OutboxRow]) -> None:
        """Rows just committed by this process, ascending per endpoint."""
        for row in rows:
            if not self.delivers_for(row.key):
                continue
            lane = self.lanes.get(row.key) or self._revive(row)
            if lane is None:
                self._seek(self._partitions[row.key.partition], row.key)
            elif lane.offer(row):
                self.wake(lane)
            else:
                self._hint(lane, row.seq)

    def retire(self, key: EndpointKey) -> None:
        """A deleted endpoint: nothing is sent to it again, whoever hints at it."""
        owned = self._partitions.get(key.partition)
        if owned is not None:
            owned.retired.add(key)
            owned.idle.pop(key, None)
            lane = self.lanes.get(key)
            if lane is not None:
                self._drop(lane)
            self.admissions.discard(key)

    def _revive(self, row: OutboxRow) -> Lane | None:
        """The lane of an idle endpoint. A first row needs no position: a sequence is never used twice."""
        owned = self._partitions[row.key.partition]
        cursor = owned.idle.get(row.key)
        if cursor is None and row.seq == 1:
            cursor = Cursor(row.key, 0, row.time)
        return None if cursor is None else self._make_lane(owned, cursor, cursor.seq)

    def hint(self, key: EndpointKey, highest_seq: int) -> None:
        """Somebody says that an endpoint has rows up to `highest_seq`."""
        if not self.delivers_for(key):
            return
        lane = self.lanes.get(key)
        if lane is not None:
            self._hint(lane, highest_seq)
            return
        owned = self._partitions[key.partition]
        cursor = owned.idle.get(key)
        if cursor is None:
            self._seek(owned, key)
        elif cursor.seq < highest_seq:
            self._make_lane(owned, cursor, highest_seq)

    def _hint(self, lane: Lane, highest_seq: int) -> None:
        lane.hint(highest_seq)
        self.feed(lane)

    # -- configuration ---------------------------------------------------------------------------------------------

    def configure(self, runtime: EndpointRuntime) -> None:
        """Use a configuration that has been read for a lane; one that has gone meanwhile will ask anew.

        `unconfigured` is left alone: an endpoint named there again has changed since this was read.
        """
        lane = self.lanes.get(runtime.key)
        if lane is None:
            self.runtimes.pop(runtime.key, None)
            return
        self.runtimes[runtime.key] = runtime
        self._apply(lane, runtime)
        self._ask(lane)

    def forget_runtime(self, key: EndpointKey) -> None:
        """The endpoint changed: read its configuration anew; a lane goes on with the old one until then."""
        if key in self.lanes:
            self._note(self.unconfigured, key)
        else:
            self.runtimes.pop(key, None)

    def forget_tenants(self, tenants: AbstractSet[UUID]) -> None:
        """Tenants changed, and with each the configuration of all its endpoints."""
        if tenants:
            for key in [key for key in self.lanes.keys() | self.runtimes.keys() if key.tenant_id in tenants]:
                self.forget_runtime(key)

    def hold_until_read(self, key: EndpointKey) -> None:
        """The endpoint is disabled, or has changed: nothing starts until what is on record now has been read."""
        lane = self.lanes.get(key)
        if lane is not None:
            lane.paused = True
        self.forget_runtime(key)

    def retry_unconfigured(self) -> None:
        """Lanes whose configuration could not be used when it was read (a secret did not open): read it again."""
        for key, lane in self.lanes.items():
            if key not in self.runtimes or lane.needs_reload:
                self._note(self.unconfigured, key)

    def set_aside(self, lane: Lane) -> None:
        """The database does not hold what the lane needs: nothing is read for it until `retry_aside`."""
        self._aside[lane.key] = None

    def misplace(self, lane: Lane) -> None:
        """Rows that the lane expects are gone. Where they were settled past it (expired, their day dropped) the stored
        cursor stands behind them: `retry_aside` looks."""
        self.set_aside(lane)
        self._misplaced[lane.key] = None

    def retry_aside(self) -> None:
        """Read again for the lanes that were set aside."""
        for key in [key for key in self._misplaced if key in self.lanes]:
            lane = self.lanes[key]
            if not lane.in_flight and not lane.has_unflushed:  # what was sent is on record, so it is not sent again
                self.relocate(key)
        aside, self._aside = self._aside, dict(self._misplaced)
        for lane in [self.lanes[key] for key in aside if key in self.lanes]:
            self.feed(lane)

    def _apply(self, lane: Lane, runtime: EndpointRuntime) -> None:
        owned = self._partitions[lane.key.partition]
        lane.configure(_modes(runtime), self._resume_of(runtime))
        # What is to be read again is no word to start upon.
        is_stale = lane.paused and lane.key in self.unconfigured
        lane.paused = owned.closing or runtime.is_held or is_stale
        lane.gate = self.admissions.apply(runtime)

    # -- progress --------------------------------------------------------------------------------------------------

    def is_current(self, lane: Lane) -> bool:
        """Whether the lane is still the one this process delivers from: it dies with its epoch."""
        return not lane.is_closed

    def wake(self, lane: Lane) -> None:
        """The lane may have something to send, or needs something to be read first."""
        if lane.needs_reload:
            self._note(self.unconfigured, lane.key)
        self._ask(lane)

    def _ask(self, lane: Lane) -> None:
        self.scheduler.wake(lane)
        self.ready.set()

    def feed(self, lane: Lane) -> None:
        """Note what the lane wants to have read."""
        if self._aside and lane.key in self._aside:
            return
        if lane.wanted():
            self._note(self.hungry, lane.key)
        if lane.needs_payloads:
            self._note(self.thirsty, lane.key)
        if lane.is_tight and not lane.is_serial:
            self._note_aside(self.tight, lane.key)
        if lane.has_cold:
            self._note_aside(self.cold, lane.key)

    def take_lanes(self, wanted: OrderedKeys, limit: int) -> list[Lane]:
        """Up to `limit` lanes of a set, which are taken out of it; those that have gone are passed over."""
        keys = [key for key, _ in zip(wanted, range(limit), strict=False)]
        for key in keys:
            del wanted[key]
        return [lane for key in keys if (lane := self.lanes.get(key)) is not None]

    def _note_aside(self, keys: OrderedKeys, key: EndpointKey) -> None:
        keys[key] = None
        self.aside_work.set()

    def flushed(self, acknowledgements: Iterable[Attempt]) -> None:
        """Acknowledgements are durable. Each counts for its event alone: a failover may give its number to another."""
        lanes: dict[Lane, None] = {}
        for attempt in acknowledgements:
            lane = self.lanes.get(attempt.key)
            if lane is not None and lane.event_at(attempt.seq) in (None, attempt.event_id):
                lane.flushed(attempt.seq)
                lanes[lane] = None
        for lane in lanes:
            self.settled(lane)

    def settled(self, lane: Lane) -> None:
        """The lane's watermark may have moved: it is written at the next checkpoint; an idle lane goes."""
        self.dirty[lane.key] = None
        self.feed(lane)
        if lane.is_idle:
            owned = self._partitions[lane.key.partition]
            self._drop(lane)
            owned.idle[lane.key] = lane.watermark
        else:
            self.wake(lane)

    def is_fresh(self, lane: Lane) -> bool:
        """Whether nobody can have attempted the rows above the lane's tail."""
        return lane.tail >= self._horizons.get(lane.key, 0)

    def has_progressed(self, lane: Lane) -> bool:
        """Whether anything was settled since the lane was made."""
        return lane.settled_through > self._born.get(lane.key, 0)

    def take_dirty(self, partitions: Iterable[int] | None = None) -> list[Cursor]:
        """Watermarks that moved since they were last written."""
        keys = list(self.dirty) if partitions is None else self._dirty_in(partitions)
        for key in keys:
            del self.dirty[key]
        return [cursor for key in keys if (cursor := self.watermark(key)) is not None]

    def _dirty_in(self, partitions: Iterable[int]) -> list[EndpointKey]:
        """By their endpoints and not by all that is dirty: a release asks for its own partition alone."""
        owned = [owned for partition in partitions if (owned := self._partitions.get(partition)) is not None]
        return [key for each in owned for key in (*each.lanes, *each.idle) if key in self.dirty]

    def watermark(self, key: EndpointKey) -> Cursor | None:
        lane = self.lanes.get(key)
        if lane is not None:
            return lane.watermark
        owned = self._partitions.get(key.partition)
        return None if owned is None else owned.idle.get(key)

    def mark_dirty(self, cursors: Iterable[Cursor]) -> None:
        """A checkpoint failed: these are to be written again."""
        for cursor in cursors:
            if self.watermark(cursor.key) is not None:
                self.dirty[cursor.key] = None

    def _seek(self, owned: OwnedPartition, key: EndpointKey) -> None:
        owned.sought.add(key)
        self._note(self.unlocated, key)

    def _note(self, keys: OrderedKeys, key: EndpointKey) -> None:
        keys[key] = None
        self.work.set()


def _forget(kept: dict[EndpointKey, Any], keys: AbstractSet[EndpointKey]) -> None:
    if kept:
        for key in keys:
            kept.pop(key, None)


def _modes(runtime: EndpointRuntime) -> Mapping[int, ModeSettings]:
    return {
        revision: ModeSettings(settings.ordering_mode, settings.max_in_flight)
        for revision, settings in runtime.revisions.items()
    }
