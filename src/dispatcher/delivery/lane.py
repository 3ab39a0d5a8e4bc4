"""One endpoint's deliveries in memory: the straight line of `window`, and what leaves it. Pure.

What can't start and may be passed by others is parked: chosen here, committed by the caller, then told back. Parked
deliveries and halts on record are told at the beginning (`hold`), before anything starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from dispatcher.delivery.held import HeldHalt, HeldRow
from dispatcher.delivery.lane_types import Gate, LaneError, LaneLimits, LoadResult, ModeSettings
from dispatcher.delivery.orders import KeyedOrder, order_of
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
from dispatcher.delivery.window import WindowLane
from dispatcher.model import OrderingMode, OutboxRow

__all__ = ["Gate", "Lane", "LaneError", "LaneLimits", "LoadResult", "ModeSettings"]


class Lane(WindowLane):
    """The deliveries of one endpoint under one lease epoch; it dies with that epoch."""

    __slots__ = ()

    # --- what was held when the lane began ---

    def hold(self, parked: Sequence[HeldRow], halts: Sequence[HeldHalt]) -> None:
        """Take in what is on record aside of the line: parked deliveries (of a key the first, with `more`), all halts.

        Before that nothing was admitted, so that they stand before all rows of the window. All parked ones are of one
        mode: the rows of another are only admitted once everything before them is done.
        """
        self._held.halts = {halt.row.seq: halt for halt in halts}
        self._begin_order([*(held.mode for held in parked), *(halt.mode for halt in halts if halt.row.settled)])
        # A halt was the first of what waits: whatever lies below it is done, though its record may still be there.
        for halt in sorted(halts, key=lambda halt: halt.row.seq):
            if halt.row.settled:
                self._stand_for(halt)
        for held in sorted(parked, key=lambda held: held.row.seq):
            self._take_back(held)
        for halt in halts:
            if (slot := self._slots.get(halt.row.seq)) is not None and slot.state is WAITING:
                self._retire(slot)  # it was handed over before the halt was known; nothing has started since
                slot.state = HALTED
        self.needs_held = False
        self._admit()

    def _begin_order(self, modes: Iterable[OrderingMode]) -> None:
        mode = next(iter(modes), None)
        if mode is not None:
            self._mode, self._order = mode, order_of(mode)

    def _take_back(self, held: HeldRow) -> None:
        """A parked row and the marker of those behind it."""
        if not self._stands_for(held.row):
            slot = self._aside_slot(held)
            if slot.state is not SETTLED:
                self._order.admit(slot)
        if held.more:
            cold = self._held.cool(held.row.ordering_key, held.row.seq, held.row, held.mode)
            self._order.admit(cold.marker)

    def _aside_slot(self, held: HeldRow) -> Slot:
        row = held.row
        slot = Slot(row, held.mode)
        slot.aside = True
        is_halted = row.seq in self._held.halts
        if row.settled and not is_halted:
            slot.state = SETTLED
            self._held.finish(slot, self._tail)
            return slot
        self._held.slots[row.seq] = slot
        if is_halted:
            slot.state = HALTED
            return slot
        slot.state, slot.due = (BACKING_OFF, held.due) if row.attempts else (WAITING, 0.0)
        self._payloads.add(row)
        return slot

    # --- parking ---

    @property
    def is_tight(self) -> bool:
        """Three quarters of the window are in use: what can't start should make room."""
        return 4 * len(self._slots) >= 3 * self._limits.rows_max and not self.needs_held

    def to_park(self) -> list[HeldRow]:
        """The rows at the bottom of a tight window that can't start while others may: to be recorded as parked.

        Whoever asks must tell the outcome by `parked` or `not_parked`; until then there is no second answer.
        """
        if not self.is_tight or self._mode in (None, OrderingMode.ORDERED) or self._held.parking:
            return []
        # The records of one mode are deleted as left over once another has any: all must be on record as done by then,
        # those too that are only acknowledged (`_parkable`), which a crash would make pending again.
        if any(slot.mode is not self._mode for slot in self._held.slots.values()):
            return []
        room = self._limits.parked_rows_max - len(self._held.slots)
        mode = self._mode or OrderingMode.UNORDERED
        chosen = [HeldRow(slot.row, mode, slot.due) for slot in self._parkable(room)]
        self._held.parking = {held.row.seq for held in chosen}
        return chosen

    def _parkable(self, room: int) -> Iterator[Slot]:
        """Ascending, up to the first row that holds the watermark where it is anyhow."""
        for seq in range(self._settled_through + 1, self._admitted_through + 1):
            slot = self._slots[seq]
            if slot.state is ACKNOWLEDGED and slot.mode is not self._mode:
                return
            if slot.state >= ACKNOWLEDGED:
                continue
            is_cold = self._mode is OrderingMode.ORDERED_BY_KEY and self._held.is_cold(slot.row)
            if (room <= 0 and not is_cold) or not self._is_stuck(slot):
                return
            room -= not is_cold
            yield slot

    def _is_stuck(self, slot: Slot) -> bool:
        if slot.state is WAITING:
            return self._order.waits_for_another(slot)
        return slot.state is BACKING_OFF or slot.state is HALTED

    def not_parked(self) -> None:
        """What was chosen was not recorded."""
        self._held.parking = set()

    def maybe_parked(self) -> None:
        """Nobody knows whether what was chosen was recorded: it stays in the window, and a record goes with its end."""
        for seq in self._held.parking:
            if not self._finish_if_done(seq):
                self._held.doubtful.add(seq)
        self._held.parking = set()

    def _finish_if_done(self, seq: int) -> bool:
        """Whether what was to be parked is on record as done already: its record is of no use then."""
        slot = self._slots.get(seq)
        if slot is not None and slot.state is not SETTLED:
            return False
        self._held.finished[seq] = "" if slot is None else slot.row.event_id
        return True

    def parked(self, seqs: Sequence[int]) -> None:
        """These are on record as parked: the window may pass over them, also over one answered 2xx meanwhile."""
        self._held.parking = set()
        self._held.doubtful.difference_update(seqs)
        keys: dict[str | None, Slot] = {}
        for seq in seqs:
            if self._finish_if_done(seq):
                continue
            slot = self._slots[seq]
            self._set_aside(slot)
            keys[slot.row.ordering_key] = slot
        if isinstance(self._order, KeyedOrder):
            for key, slot in keys.items():
                self._cool(self._order, key, slot)
        self._advance()

    def _set_aside(self, slot: Slot) -> None:
        stand_in = Slot(slot.row, slot.mode)
        stand_in.state = SETTLED
        if slot.state is WAITING:
            self._waiting -= 1
        slot.aside = True
        self._slots[slot.row.seq] = stand_in
        self._held.slots[slot.row.seq] = slot

    def _advance(self) -> None:
        """Move the marks over what has just been set aside."""
        while (slot := self._slots.get(self._acknowledged_through + 1)) is not None and slot.state >= ACKNOWLEDGED:
            self._acknowledged_through += 1
        self._settle()
        self._admit()

    # --- cold rows ---

    def _cool(self, order: KeyedOrder, key: str | None, template: Slot) -> None:
        """Keep no more of a key in memory than its bound; the rest is read again when its turn comes."""
        kept_max = self._limits.parked_key_rows_max
        if key not in self._held.cold and self._held.count(key) <= kept_max:
            return
        is_new = key not in self._held.cold
        cold = self._held.cool(key, template.row.seq, template.row, template.mode or OrderingMode.ORDERED_BY_KEY)
        gone = order.chill(key, kept_max, cold.marker, 0 if is_new else cold.after_seq)
        if is_new and gone:
            cold.after_seq = min(slot.row.seq for slot in gone) - 1
        elif is_new:
            del self._held.cold[key]
        self._held.forget(gone)
        for slot in gone:
            if slot.state is not HALTED:
                self._payloads.drop(slot.row)

    def cold_wanted(self) -> list[tuple[str | None, int]]:
        """Keys of which more parked rows are to be read, and the sequence above which. One read at a time, please."""
        order = self._order
        if not self._held.cold or not isinstance(order, KeyedOrder):
            return []
        wanted = []
        for key, cold in self._held.cold.items():
            if not cold.is_reading and order.ahead_of(key, cold.marker) <= self._limits.parked_key_rows_max // 8:
                cold.is_reading, cold.is_stale = True, False
                wanted.append((key, cold.after_seq))
        return wanted

    def cold_unread(self, key: str | None) -> None:
        """The read of a key's cold rows failed."""
        if (cold := self._held.cold.get(key)) is not None:
            cold.is_reading = False

    def cold_read(self, key: str | None, parked: Sequence[HeldRow], *, more: bool) -> None:
        """The next cold rows of a key, ascending; `more`: there are others behind them."""
        cold, order = self._held.cold.get(key), self._order
        if cold is None or not isinstance(order, KeyedOrder):
            return
        cold.is_reading = False
        # What may have been parked is still in the window, in its place: it must not come twice.
        parked = [h for h in parked if not self._stands_for(h.row) and h.row.seq not in self._held.doubtful]
        known = self._held.parking | self._held.slots.keys()
        new = list(itertools.takewhile(lambda held: held.row.seq not in known, parked))
        slots = [self._aside_slot(held) for held in new]
        order.insert(key, cold.marker, [slot for slot in slots if slot.state is not SETTLED])
        if new:
            cold.after_seq = new[-1].row.seq
        # What is being parked just now is still in the window; it is read again once it is aside.
        if not more and not cold.is_stale and len(new) == len(parked):
            del self._held.cold[key]
            cold.marker.state = SETTLED
        order.settle(key)
        if self._admitted_through < self._tail:
            self._admit()

    def _stands_for(self, row: OutboxRow) -> bool:
        """Whether a halt that stands for this settled row is in the order already."""
        return row.settled and row.seq in self._held.halts and row.seq in self._held.slots

    # --- records to be deleted ---

    def take_finished(self) -> dict[int, str]:
        """Sequences (and events) whose records as parked or halted are of no more use; each is given once.

        Whoever takes them must tell the outcome by `deleted` or `not_deleted`; until then the lane is not idle.
        """
        finished, self._held.finished = self._held.finished, {}
        self._held.deleting |= finished
        return finished

    def deleted(self) -> None:
        """What was given is off the record."""
        self._held.deleting = {}

    def not_deleted(self) -> None:
        """What was given could not be deleted: it is given again."""
        self._held.finished = self._held.deleting | self._held.finished
        self._held.deleting = {}

    def take_rescheduled(self) -> dict[int, float]:
        """Parked deliveries that failed again, and when each is due; each is given once."""
        rescheduled, self._held.rescheduled = self._held.rescheduled, {}
        return rescheduled

    @property
    def has_records_to_tidy(self) -> bool:
        """Whether `take_finished` or `take_rescheduled` would give anything."""
        return bool(self._held.finished or self._held.rescheduled)

    # --- halts ---

    def claim(self, seq: int) -> bool:
        """Begin a decision on a row that is in memory and not done, as `deciding`; False for any other."""
        slot = self._find(seq)
        if slot is None or slot.row.settled or slot.state >= DECIDING or slot.state is IN_FLIGHT:
            return False
        return self.deciding(seq)

    def halted(self, seq: int) -> None:
        """The halt at `seq` is known to be committed: what waits for it waits for an operator."""
        slot = self._slot(seq)
        if slot.state is not DECIDING:
            raise LaneError(f"{self.key}: no decision on {seq} was under way, it is {slot.state.name}")
        self._held.halts[seq] = HeldHalt(slot.row, slot.mode or OrderingMode.ORDERED)
        slot.state = HALTED
        if slot.proven:
            self.late_success(seq)

    def retry_now(self, seq: int, now: float) -> None:
        """What was claimed is due now, and its halt, if it had one, is off the record."""
        self._held.halts.pop(seq, None)
        self.undecided(seq, now)

    def undecided(self, seq: int, due: float) -> None:
        """The decision under way on `seq` will not come: the delivery is tried again at `due`."""
        slot = self._slot(seq)
        if slot.state is not DECIDING:
            raise LaneError(f"{self.key}: no decision on {seq} was under way, it is {slot.state.name}")
        self._resume(slot, due)
        if slot.proven:
            self._acknowledge(slot)

    def _resume(self, slot: Slot, due: float) -> None:
        slot.state, slot.due = BACKING_OFF, due
        self._payloads.add(slot.row)
        self._back_in_order(slot)

    def _back_in_order(self, slot: Slot) -> None:
        """One that was not admitted yet will be as it is now."""
        if slot.aside or slot.row.seq <= self._admitted_through:
            self._order.again(slot)
