"""What a lane holds outside its window: parked deliveries, and halts whose own row is settled otherwise. Pure.

    window ──chosen, committed──▶ parked in memory ──done──▶ its record may be deleted (`finished`)
                                    │  ▲
       ORDERED_BY_KEY, behind many  ▼  │ read again when its turn comes
       of its key                  cold: in the database alone, a marker (HELD) keeps the place

A parked slot keeps its place in the lane's order; only the window, and so the watermark, passes over it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dispatcher.delivery.slots import HELD, Slot
from dispatcher.model import OrderingMode, OutboxRow


@dataclass(frozen=True, slots=True)
class HeldRow:
    """A parked delivery as it was read. `due` (monotonic seconds) is when its next attempt may start; `more`: the
    database holds further ones of its ordering key behind it."""

    row: OutboxRow
    mode: OrderingMode
    due: float
    more: bool = False


@dataclass(frozen=True, slots=True)
class HeldHalt:
    """A halt on record; `row` tells place and ordering key of its delivery, and whether it is settled otherwise (it
    expired); nothing else of it need be there."""

    row: OutboxRow
    mode: OrderingMode


@dataclass(slots=True)
class Cold:
    """The cold rows of one key: those above `after_seq`. `is_stale`: more were parked while they were being read."""

    marker: Slot
    after_seq: int
    is_reading: bool = False
    is_stale: bool = False


class Held:
    """The account of one lane; what the slots mean for the order is the lane's affair."""

    __slots__ = (
        "_done_ahead",
        "cold",
        "deleting",
        "doubtful",
        "finished",
        "halts",
        "of_another_mode",
        "parking",
        "rescheduled",
        "slots",
    )

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        """Parked in memory, and halts without a row in the window."""
        self.cold: dict[str | None, Cold] = {}
        self.halts: dict[int, HeldHalt] = {}
        """Halts on record, by sequence."""
        self.of_another_mode: list[Slot] = []
        """Those among `slots` that are not of the mode of the parked ones: nothing above them may start before them."""
        self.parking: set[int] = set()
        """Chosen to be parked, not yet known to be."""
        self.doubtful: set[int] = set()
        """Still in the window, though they may be on record as parked: nobody heard what became of that."""
        self.finished: dict[int, str] = {}
        """Sequences (and events) whose records as parked or halted are of no more use."""
        self.deleting: dict[int, str] = {}
        """Those of them whose records are being deleted just now."""
        self.rescheduled: dict[int, float] = {}
        """Parked deliveries that failed again, and when each is due."""
        self._done_ahead: set[int] = set()

    @property
    def is_empty(self) -> bool:
        """Nothing is held that is not done."""
        return not self.slots and not self.cold

    @property
    def is_quiet(self) -> bool:
        """Nothing is held, and no record is left to be deleted."""
        return not (self.slots or self.cold or self.finished or self.deleting or self.parking)

    def count(self, key: str | None) -> int:
        """Parked slots of one ordering key in memory."""
        return sum(1 for slot in self.slots.values() if slot.row.ordering_key == key)

    def knows(self, row: OutboxRow) -> bool:
        """Whether a row that is read as parked in its place is accounted for here, so that the window may pass it.

        A former owner knows nothing of what its successor has parked: for it, this is a row like any other.
        """
        if row.seq in self._done_ahead:
            self._done_ahead.discard(row.seq)
            return True
        return row.seq in self.slots or self.is_cold(row)

    def is_cold(self, row: OutboxRow) -> bool:
        """Whether the row, once parked, is among those of its key that are read again."""
        cold = self.cold.get(row.ordering_key)
        return cold is not None and row.seq > cold.after_seq

    def finish(self, slot: Slot, tail: int) -> None:
        """A held slot is done, on record. Above the `tail` it will be met in its place, maybe as it was before."""
        seq = slot.row.seq
        self.slots.pop(seq, None)
        self.halts.pop(seq, None)
        self.rescheduled.pop(seq, None)
        self.doubtful.discard(seq)
        self.finished[seq] = slot.row.event_id
        if seq > tail:
            self._done_ahead.add(seq)

    def forget(self, slots: Iterable[Slot]) -> None:
        """These are cold now."""
        for slot in slots:
            self.slots.pop(slot.row.seq, None)

    def cool(self, key: str | None, after_seq: int, template: OutboxRow, mode: OrderingMode) -> Cold:
        """The cold rows of `key`, made where there were none; `template` lends its key to the marker."""
        cold = self.cold.get(key)
        if cold is None:
            marker = Slot(template, mode)
            marker.state = HELD
            cold = self.cold[key] = Cold(marker, after_seq)
        elif cold.is_reading:
            cold.is_stale = True
        return cold
