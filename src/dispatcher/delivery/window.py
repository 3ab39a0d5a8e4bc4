"""One endpoint's deliveries in memory: pure, no I/O, no clock; times are monotonic seconds that are passed in.

    watermark        acknowledged_through          tail        highest_known
        │                     │                     │                │
    ────┼─────────────────────┼─────────────────────┼────────────────┼──▶ seq
        │ done, some of them  │ the window's rest:  │ committed, not │
        │ not yet on record   │ any slot state      │ read yet       │

The window is gapless: one slot for each row from just above the watermark to the tail. A slot's states and its way
through them are drawn in `slots`; which slot may start is asked of `orders`.

A row belongs to the ordering mode of its own revision. Rows are admitted to the running order one by one, ascending; a
row of another mode is admitted only when every lower row is done, and a row of an unknown revision not at all, so
nothing at or above it starts. How many may be in flight is the newest revision's word, as the URL is.

`rows_max` counts every slot above the watermark. Where a row that keeps failing would stop the window and the mode
lets others pass, what can't start is parked (`held`): a settled slot keeps its place in the window, and the watermark
passes over it. The payloads of rows that are done, or about to be decided, are let go at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dispatcher.delivery.held import HeldHalt
from dispatcher.delivery.lane_state import LaneState
from dispatcher.delivery.lane_types import Gate, LaneError, LoadResult, ModeSettings, Resume, at_once
from dispatcher.delivery.orders import order_of
from dispatcher.delivery.slots import (
    ACKNOWLEDGED,
    BACKING_OFF,
    DECIDING,
    HALTED,
    IN_FLIGHT,
    SETTLED,
    WAITING,
    Slot,
)
from dispatcher.model import OrderingMode, OutboxRow, Payload


class WindowLane(LaneState):
    """The straight line: rows in, deliveries, ends. `lane.Lane` adds what leaves the line."""

    __slots__ = ()

    # --- settings ---

    def configure(self, modes: Mapping[int, ModeSettings], resume: Resume = at_once) -> None:
        """Add what is known of the endpoint's revisions. The ordering mode of a revision never changes.

        `resume` is asked once of each row that a former owner has tried.
        """
        self._modes |= modes
        self._resume_at = resume
        if self._modes:
            self._in_flight_max = max(1, self._modes[max(self._modes)].max_in_flight)
        self._unknown = 0
        for slot in self._slots.values():
            if slot.mode is None:
                slot.mode = self._mode_of(slot.row)
                self._unknown += slot.mode is None and slot.state < ACKNOWLEDGED
        self._admit()

    def _mode_of(self, row: OutboxRow) -> OrderingMode | None:
        settings = self._modes.get(row.revision)
        return None if settings is None else settings.mode

    # --- rows in ---

    def hint(self, highest_seq: int) -> None:
        """`highest_seq` is committed."""
        self._highest_known = max(self._highest_known, highest_seq)

    def wanted(self) -> int:
        """How many rows above `tail` to read now; 0 when full or caught up. One read at a time, please.

        While rows still wait here, reading is put off until a quarter of the window is free.
        """
        if self.needs_held:
            return 0  # what is parked must be known before it is met in its place
        missing = self._highest_known - self._tail
        free = self._limits.rows_max - len(self._slots)
        if missing <= 0 or (self._waiting and free < self._limits.rows_max // 4):
            return 0
        return max(0, min(free, missing))

    def offer(self, row: OutboxRow) -> bool:
        """Take a row just committed if it is the next one and there is room; else it counts as a hint.

        A payload beyond `bytes_max` is let go and read again when its row comes to the front.
        """
        taken = row.seq == self._tail + 1 and len(self._slots) < self._limits.rows_max
        if taken:
            self._append(row)
        if row.seq > self._highest_known:
            self._highest_known = row.seq
        return taken

    def loaded(self, rows: Sequence[OutboxRow], *, reached_end: bool) -> LoadResult:
        """Take rows read from the database, ascending. `reached_end`: there were no more when they were read.

        Rows at or below the tail are ignored, those for which there is no room left too.
        """
        for row in rows:
            if row.seq <= self._tail:
                continue
            if len(self._slots) >= self._limits.rows_max:
                break
            if row.seq != self._tail + 1:
                return LoadResult.GAP
            self._append(row)
        self.hint(rows[-1].seq if rows else 0)
        return self._check_end(rows, reached_end=reached_end)

    def _check_end(self, rows: Sequence[OutboxRow], *, reached_end: bool) -> LoadResult:
        """A hint may have come while the rows were read; only a second read, begun after it, proves it wrong."""
        full = len(self._slots) >= self._limits.rows_max
        if not reached_end or full or self._tail >= self._highest_known or (rows and rows[-1].seq > self._tail):
            self._missing_highest = 0
            return LoadResult.CONTIGUOUS
        if self._missing_highest != self._highest_known:
            self._missing_highest = self._highest_known
            return LoadResult.CONTIGUOUS
        self._highest_known = self._tail
        self._missing_highest = 0
        return LoadResult.MISSING

    def _append(self, row: OutboxRow) -> None:
        slot = Slot(row, self._mode_of(row))
        self._slots[row.seq] = slot
        self._tail, self._tail_time = row.seq, row.time
        if row.parked and self._held.knows(row):
            slot.state = SETTLED
        if slot.state is SETTLED:
            row.payload = None
            if row.settled and row.seq in self._held.halts:
                self._stand_for(self._held.halts[row.seq])
            self._done(slot)
            return
        if row.seq in self._held.halts:
            slot.state = HALTED
            row.payload = None
            self._enter(slot)
            return
        self._waiting += 1
        self._payloads.add(row)
        self._enter(slot)

    def _enter(self, slot: Slot) -> None:
        if slot.mode is None:
            self._unknown += 1
        elif self._admitted_through == slot.row.seq - 1:
            self._admit()

    # --- payloads ---

    @property
    def needs_payloads(self) -> bool:
        """It is time to call `wants_payloads`: a cheap question, to be asked often."""
        return self._payloads.are_low

    def wants_payloads(self, now: float) -> list[OutboxRow]:
        """The rows whose payloads to read now, those that can start first at the front. One read at a time, please.

        Bounded by `payload_rows_max` and by `bytes_max`, though one row may always hold its payload. Where the bytes
        are short, rows that can't start yet give theirs back.
        """
        held = self._held.slots
        return self._payloads.plan(
            self._order.front(now), [*held.values(), *self._slots.values()] if held else self._slots.values()
        )

    def attach(self, row: OutboxRow, payload: Payload) -> None:
        """Give a row its payload; ignored where the row no longer needs it or there is no room for it any more."""
        slot = self._find(row.seq)
        if slot is not None and slot.row is row and slot.state < HALTED:
            self._payloads.attach(row, payload)

    def close(self) -> None:
        """The lane is dropped: what its payloads took of the process's budget is free again."""
        self.is_closed = True
        self._payloads.close()

    # --- deliveries ---

    def start(self, now: float) -> OutboxRow | None:
        """The row to send at `now`, in flight from here on; None if nothing may start.

        Parked rows carry their ordering mode; still nothing starts before `configure` has told where to.
        """
        if self.paused or self.needs_held or not self._modes or self._in_flight >= self._in_flight_max:
            return None
        if self.gate is not None and not self._passes(self.gate, now):
            return None
        slot = self._order.take(now)
        if slot is None:
            if self._payloads.lacking and self._order.front(now):
                self._payloads.are_starved = True
            return None
        if slot.state is WAITING and not slot.aside:
            self._waiting -= 1
        slot.state = IN_FLIGHT
        self._in_flight += 1
        return slot.row

    def _passes(self, gate: Gate, now: float) -> bool:
        """Whether the gate lets the next row start, if there is one; when not, it is remembered when to ask again."""
        self._gate_due = None
        slot = self._order.peek(now)
        if slot is None:
            return True
        opens_at = gate.opens_at(now, slot.row.time)
        if opens_at > now:
            self._gate_due, self._limited_at = opens_at, now
        return opens_at <= now

    def succeeded(self, seq: int) -> None:
        """The attempt in flight was answered 2xx: what waited for it may start; on record it is only once flushed."""
        self._acknowledge(self._ended(seq))

    def failed(self, seq: int, due: float) -> None:
        """The attempt in flight failed; the next may start at `due` (monotonic seconds)."""
        slot = self._ended(seq)
        if slot.proven:
            self._acknowledge(slot)
            return
        slot.state = BACKING_OFF
        slot.due = due
        if slot.aside:
            self._held.rescheduled[seq] = due
        self._order.failed(slot)

    def deciding(self, seq: int) -> bool:
        """A decision on `seq` is about to be committed; what waits for it goes on waiting until `decided`.

        Ends the attempt in flight, if there is one: call it instead of `failed`, never while the request still runs.
        False where a success is known, so that there is nothing to decide.
        """
        slot = self._slot(seq)
        if slot.state is IN_FLIGHT:
            self._in_flight -= 1
        if slot.state is IN_FLIGHT and slot.proven:
            self._acknowledge(slot)
        if slot.state >= ACKNOWLEDGED:
            return False
        if slot.state is DECIDING:
            raise LaneError(f"{self.key}: a decision on {seq} is already under way")
        if slot.state is not HALTED:
            self._retire(slot)
        slot.state = DECIDING
        return True

    def decided(self, seq: int) -> None:
        """The decision on `seq` is known to be committed."""
        slot = self._slot(seq)
        if slot.state is not DECIDING:
            raise LaneError(f"{self.key}: no decision on {seq} was under way, it is {slot.state.name}")
        slot.state = SETTLED
        if seq in self._held.halts:
            self._held.finish(slot, self._tail)
        self._done(slot)

    def lift_halt(self, seq: int) -> None:
        """The halt at `seq`, whose delivery is settled otherwise, is off the record: it holds nothing any more."""
        self._held.halts.pop(seq, None)
        slot = self._held.slots.get(seq)
        if slot is not None and slot.state is HALTED and slot.row.settled:
            slot.state = SETTLED
            self._done(slot)

    def late_success(self, seq: int) -> None:
        """An attempt at `seq` that this lane did not start (a former epoch's) was answered 2xx."""
        slot = self._find(seq)
        if slot is None or slot.state >= ACKNOWLEDGED:
            return
        if slot.row.settled:
            self.lift_halt(seq)  # it stood for a row settled otherwise; a success leaves no gap
            return
        slot.proven = True
        if slot.state is HALTED:
            slot.state = SETTLED if slot.on_record else ACKNOWLEDGED
            if slot.on_record:
                self._held.finish(slot, self._tail)
            self._done(slot)
        elif slot.state is WAITING or slot.state is BACKING_OFF:
            self._acknowledge(slot)

    def flushed(self, seq: int) -> None:
        """A success of `seq` is on record. Ignored for rows that are not in memory."""
        slot = self._find(seq)
        if slot is None:
            return
        if slot.state is ACKNOWLEDGED:
            slot.state = SETTLED
            if slot.aside or seq in self._held.halts or seq in self._held.doubtful:
                self._held.finish(slot, self._tail)
            if seq == self._settled_through + 1:
                self._settle()
            return
        slot.on_record = True
        self.late_success(seq)

    # --- ends ---

    def _slot(self, seq: int) -> Slot:
        slot = self._find(seq)
        if slot is None:
            raise LaneError(f"{self.key}: {seq} is not in memory ({self._settled_through} to {self._tail})")
        return slot

    def _ended(self, seq: int) -> Slot:
        slot = self._find(seq)
        if slot is None or slot.state is not IN_FLIGHT:
            raise LaneError(f"{self.key}: {seq} is not in flight")
        self._in_flight -= 1
        return slot

    def _acknowledge(self, slot: Slot) -> None:
        self._retire(slot)
        slot.state = SETTLED if slot.on_record else ACKNOWLEDGED
        self._done(slot)

    def _retire(self, slot: Slot) -> None:
        """No attempt will be started any more, so the payload may go."""
        if slot.state is WAITING and not slot.aside:
            self._waiting -= 1
        self._payloads.drop(slot.row)

    def _done(self, slot: Slot) -> None:
        """Let go what waited for `slot`, and move the marks over it."""
        self._order.done(slot)
        seq = slot.row.seq
        if slot.state is SETTLED and (slot.aside or seq in self._held.doubtful):
            self._held.finish(slot, self._tail)
        if slot.aside:
            if self._admitted_through < self._tail:
                self._admit()
        elif seq == self._acknowledged_through + 1:
            slots = self._slots
            following: Slot | None = slot
            while following is not None and following.state >= ACKNOWLEDGED:
                self._acknowledged_through = seq
                seq += 1
                following = slots.get(seq)
            if slot.state is SETTLED:
                self._settle()
            if self._admitted_through < self._tail:
                self._admit()
        elif seq == self._admitted_through + 1:
            self._admit()

    def _settle(self) -> None:
        slots = self._slots
        seq = self._settled_through + 1
        slot = slots.get(seq)
        while slot is not None and slot.state is SETTLED:
            del slots[seq]
            self._settled_through = seq
            self._settled_time = slot.row.time
            seq += 1
            slot = slots.get(seq)

    def _admit(self) -> None:
        """Admit the next rows to the running order, or to a new one once every lower row is done."""
        if self.needs_held:
            return
        self._admitted_through = max(self._admitted_through, self._acknowledged_through)
        for slot in self._unadmitted():
            if slot.state < ACKNOWLEDGED:
                if slot.mode is None:
                    return
                if slot.mode is not self._mode or self._held.of_another_mode:
                    if self._acknowledged_through < self._admitted_through or not self._everything_aside_is_done:
                        return
                    self._mode = slot.mode
                    self._order = order_of(slot.mode)
                    self._held.of_another_mode = []
                self._go_on_waiting(slot)
                self._order.admit(slot)
            self._admitted_through = slot.row.seq

    def _go_on_waiting(self, slot: Slot) -> None:
        """A takeover ends no back-off: each would cost an attempt of those that wait for hours."""
        if slot.state is WAITING and slot.row.last_attempt_time is not None:
            self._waiting -= 1
            slot.state, slot.due = BACKING_OFF, self._resume_at(slot.row)

    def _unadmitted(self) -> Iterator[Slot]:
        while (slot := self._slots.get(self._admitted_through + 1)) is not None:
            yield slot

    # --- aside ---

    @property
    def _everything_aside_is_done(self) -> bool:
        held = self._held
        return not held.cold and all(slot.state >= ACKNOWLEDGED for slot in held.slots.values())

    def _stand_for(self, halt: HeldHalt) -> None:
        """Keep up a halt whose own row is settled: a slot outside the window takes its place in the order."""
        if halt.row.seq in self._held.slots:
            return
        slot = Slot(halt.row, halt.mode)
        halt.row.settled = True
        slot.state, slot.aside = HALTED, True
        self._held.slots[halt.row.seq] = slot
        if self._mode is None:
            self._mode, self._order = halt.mode, order_of(halt.mode)
        if halt.mode is not self._mode:
            self._held.of_another_mode.append(slot)
        self._order.admit(slot)
