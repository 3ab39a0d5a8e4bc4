"""The state of a lane: marks, slots, counts, and what can be asked of them. Pure; drawn in `window`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime

from dispatcher.delivery.held import Held
from dispatcher.delivery.lane_types import Gate, LaneLimits, ModeSettings, Resume, Wait, at_once
from dispatcher.delivery.orders import Order, SerialOrder
from dispatcher.delivery.payloads import PayloadBudget, PayloadStore
from dispatcher.delivery.slots import (
    ACKNOWLEDGED,
    BACKING_OFF,
    HALTED,
    HELD,
    IN_FLIGHT,
    SETTLED,
    Slot,
    SlotState,
)
from dispatcher.model import Cursor, EndpointKey, OrderingMode, OutboxRow


class LaneState:
    """What a lane knows, and the questions about it; nothing here changes anything.

    `position` is the stored cursor, `highest_known` the highest sequence known to be committed. `paused` may be set at
    any time: nothing starts while it is. `is_closed`: it is dropped, and decides nothing any more. Every method raises
    `LaneError` when told of a state that can't be.
    """

    __slots__ = (
        "_acknowledged_through",
        "_admitted_through",
        "_gate_due",
        "_held",
        "_highest_known",
        "_in_flight",
        "_in_flight_max",
        "_limited_at",
        "_limits",
        "_missing_highest",
        "_mode",
        "_modes",
        "_order",
        "_payloads",
        "_resume_at",
        "_settled_through",
        "_settled_time",
        "_slots",
        "_tail",
        "_tail_time",
        "_unknown",
        "_waiting",
        "epoch",
        "gate",
        "is_closed",
        "key",
        "needs_held",
        "paused",
    )

    def __init__(
        self,
        key: EndpointKey,
        epoch: int,
        position: Cursor,
        limits: LaneLimits,
        highest_known: int,
        budget: PayloadBudget | None = None,
        *,
        needs_held: bool = False,
    ) -> None:
        """`needs_held`: the endpoint has parked deliveries or halts on record; nothing starts until `hold` is told."""
        self.key = key
        self.epoch = epoch
        self.paused = False
        self.is_closed = False
        self.gate: Gate | None = None
        self.needs_held = needs_held
        self._held = Held()
        self._gate_due: float | None = None
        self._limited_at: float | None = None
        self._limits = limits
        self._modes: dict[int, ModeSettings] = {}
        self._in_flight_max = 1
        self._resume_at: Resume = at_once
        self._slots: dict[int, Slot] = {}
        self._settled_through = self._acknowledged_through = self._admitted_through = self._tail = position.seq
        self._settled_time = self._tail_time = position.time
        self._highest_known = max(highest_known, position.seq)
        self._missing_highest = 0
        self._mode: OrderingMode | None = None
        self._order: Order = SerialOrder()
        self._payloads = PayloadStore(
            limits.bytes_max, limits.payload_rows_max, budget or PayloadBudget(limits.bytes_max)
        )
        self._in_flight = 0
        self._waiting = 0
        self._unknown = 0

    # --- what it is like ---

    @property
    def watermark(self) -> Cursor:
        """Up to here every delivery is on record as settled; an acknowledgement that is not flushed does not count."""
        return Cursor(self.key, self._settled_through, self._settled_time)

    @property
    def settled_through(self) -> int:
        """The watermark's sequence."""
        return self._settled_through

    @property
    def acknowledged_through(self) -> int:
        """Up to here every delivery is done: delivered, as this lane saw, or settled."""
        return self._acknowledged_through

    @property
    def tail(self) -> int:
        """Highest sequence in memory; that of the watermark where nothing is."""
        return self._tail

    @property
    def tail_time(self) -> datetime:
        """Partition time of the row at the tail: the next rows are not older."""
        return self._tail_time

    @property
    def highest_known(self) -> int:
        """Highest sequence known to be committed."""
        return self._highest_known

    @property
    def in_flight(self) -> int:
        """Attempts that were started and have not ended."""
        return self._in_flight

    @property
    def bytes_held(self) -> int:
        """Bytes of payload that this lane's rows hold."""
        return self._payloads.bytes_held

    @property
    def is_idle(self) -> bool:
        """Nothing in memory and nothing known to read: the lane may be dropped."""
        return (
            not self._slots
            and self._tail >= self._highest_known
            and self._held.is_quiet
            and not self._held.halts
            and not self.needs_held
        )

    @property
    def unsettled(self) -> int:
        """Deliveries that are not done, as far as they are known here: cold ones are not counted."""
        return self._highest_known - self._acknowledged_through + len(self._held.slots)

    @property
    def is_unread(self) -> bool:
        """All that is in memory is done, and the lane knows of more, or of what is parked, that is still to be read."""
        is_all_read = self._tail >= self._highest_known and not self.needs_held
        return not is_all_read and self._acknowledged_through >= self._tail

    @property
    def has_unflushed(self) -> bool:
        """A delivery was answered 2xx, and the database does not know yet. Looks at every slot."""
        slots = itertools.chain(self._slots.values(), self._held.slots.values())
        return any(slot.state is ACKNOWLEDGED for slot in slots)

    @property
    def has_cold(self) -> bool:
        """Parked rows of some ordering key are in the database alone."""
        return bool(self._held.cold)

    @property
    def doubtful_count(self) -> int:
        """Rows of the window that may be on record as parked."""
        return len(self._held.doubtful)

    @property
    def is_serial(self) -> bool:
        """While one is in flight nothing else can start, so there is no use in asking."""
        return self._mode is OrderingMode.ORDERED

    @property
    def needs_reload(self) -> bool:
        """A row in memory names a revision that `configure` has not told of; nothing at or above it starts."""
        return self._unknown > 0

    @property
    def blocked_by(self) -> OutboxRow | None:
        """The lowest row in memory that is not done."""
        aside = [seq for seq, slot in self._held.slots.items() if slot.state < ACKNOWLEDGED]
        if aside:
            return self._held.slots[min(aside)].row
        slot = self._slots.get(self._acknowledged_through + 1)
        return None if slot is None else slot.row

    def front(self, now: float) -> list[OutboxRow]:
        """The rows that could start at `now` if there was a place for them (and their payload had been read)."""
        if self.paused or self.needs_held or not self._modes:
            return []
        rows = [slot.row for slot in self._order.front(now)]
        is_shut = bool(rows) and self.gate is not None and self.gate.opens_at(now, rows[0].time) > now
        return [] if is_shut else rows

    def was_limited(self, since: float) -> bool:
        """Whether its gate has kept a row from its start since then: a rate, Retry-After, a circuit."""
        return self._limited_at is not None and self._limited_at >= since

    @property
    def is_halted(self) -> bool:
        """Whether anything waits for an operator."""
        return bool(self._held.halts)

    @property
    def halts(self) -> frozenset[int]:
        """The sequences at which it is halted."""
        return frozenset(self._held.halts)

    @property
    def parked_count(self) -> int:
        """Slots parked in memory."""
        return sum(slot.aside for slot in self._held.slots.values())

    def is_parked(self, seq: int) -> bool:
        """Whether the row stands aside, in memory."""
        return seq in self._held.slots

    def state_of(self, seq: int) -> SlotState | None:
        """How far row `seq` is; None where it is not in memory (SETTLED at or below the watermark)."""
        slot = self._held.slots.get(seq)
        if slot is None and seq <= self._settled_through:
            return SETTLED
        slot = slot or self._slots.get(seq)
        return None if slot is None else slot.state

    def holds(self, row: OutboxRow) -> bool:
        """Whether it is this very row, not another copy of it, that is in memory."""
        slot = self._find(row.seq)
        return slot is not None and slot.row is row

    def event_at(self, seq: int) -> str | None:
        """The event of row `seq`; None where it is not in memory."""
        slot = self._find(seq)
        return None if slot is None else slot.row.event_id

    def next_due(self) -> float | None:
        """When the next back-off ends, or the gate opens that has kept a row from its start; None if neither, or while
        paused."""
        if self.paused or self.needs_held or not self._modes:
            return None
        return self._order.next_due() if self._gate_due is None else self._gate_due

    # --- what has waited for long ---

    def older(self, after_seq: int, than: datetime) -> Iterator[Slot]:
        """The slots of the window above `after_seq` that are not younger than `than`, ascending, done or not."""
        seq = max(after_seq, self._acknowledged_through) + 1
        while (slot := self._slots.get(seq)) is not None and slot.row.time <= than:
            yield slot
            seq += 1

    def untried_aside(self, rows_max: int) -> Sequence[Slot]:
        """Of the first `rows_max` that were never tried and wait for no other, those that are parked."""
        if not self._held.slots:
            return ()
        return [slot for slot in itertools.islice(self._order.untried(), rows_max) if slot.aside]

    def wait_of_unread(self, now: float) -> Wait | None:
        """What keeps the rows of a lane that `is_unread`; None of any other."""
        if not self.is_unread:
            return None
        if self.paused:
            return Wait.ENDPOINT
        gate = self.gate
        is_shut = gate is not None and gate.opens_at(now, self._tail_time) > now and not gate.is_ours(now)
        return Wait.ENDPOINT if is_shut else Wait.US

    def wait_of(self, slot: Slot, now: float) -> Wait:
        """What keeps a slot in memory, which was never tried, from its first attempt."""
        is_ours = self.gate is not None and self.gate.is_ours(now)
        if slot.state is IN_FLIGHT:
            return Wait.US if is_ours else Wait.ANSWER
        if self.paused:
            return Wait.ENDPOINT
        first = self._first_before(slot)
        if first.state is BACKING_OFF and not first.row.attempts:
            return Wait.US  # its attempt counted for nothing: it never left the house
        if self.gate is not None and self.gate.opens_at(now, slot.row.time) > now:
            return Wait.US if is_ours else Wait.ENDPOINT
        if first.state in (HALTED, HELD) or (first.row.attempts and first.state in (BACKING_OFF, IN_FLIGHT)):
            return Wait.ENDPOINT  # that one has failed, whether or not it is being tried again just now
        if first.state is IN_FLIGHT or self._in_flight >= self._in_flight_max:
            return Wait.ANSWER
        return Wait.US

    def _first_before(self, slot: Slot) -> Slot:
        """One that is not admitted, by the mode of its revision, waits for whatever is lower; parked ones come last."""
        if slot.aside or slot.row.seq <= self._admitted_through:
            return self._order.first_before(slot)
        lower = self._slots.get(self._acknowledged_through + 1)
        if lower is not None and lower is not slot:
            return lower
        return next((held for held in self._held.slots.values() if held.state < ACKNOWLEDGED), slot)

    def _find(self, seq: int) -> Slot | None:
        held = self._held.slots
        return (held.get(seq) or self._slots.get(seq)) if held else self._slots.get(seq)
