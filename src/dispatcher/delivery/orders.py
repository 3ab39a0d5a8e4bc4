"""Which slot of a lane may start next, one class per ordering mode; each operation is O(1), or O(log n) with timers.

A lane gives its order only slots of one mode, ascending, and tells it of each end. What an order hands out is never a
guess: a slot that must wait for another leaves only once that one is done (ACKNOWLEDGED or SETTLED).
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator
from typing import Protocol, assert_never

from dispatcher.delivery.slots import ACKNOWLEDGED, BACKING_OFF, DECIDING, HELD, WAITING, Slot, SlotState
from dispatcher.model import OrderingMode

DUE_STREAK_MAX = 3
"""So many retries may start in a row while a row that was never tried waits."""


class Order(Protocol):
    """What a lane asks of its ordering mode. How many may be in flight is the lane's affair."""

    def admit(self, slot: Slot) -> None:
        """Take in the next slot that is not done; slots come with ascending seq."""

    def peek(self, now: float) -> Slot | None:
        """The slot that `take` would give."""

    def take(self, now: float) -> Slot | None:
        """The slot to start at `now`, with its payload; the caller makes it IN_FLIGHT."""

    def front(self, now: float) -> list[Slot]:
        """The slots that could start at `now` if they had their payloads, the first to start first."""

    def untried(self) -> Iterator[Slot]:
        """The slots that are WAITING and wait for no other, the first to start first."""

    def failed(self, slot: Slot) -> None:
        """`slot` has become BACKING_OFF with a new `due`."""

    def done(self, slot: Slot) -> None:
        """`slot` has become ACKNOWLEDGED or SETTLED; it need not have been admitted."""

    def waits_for_another(self, slot: Slot) -> bool:
        """Whether a WAITING slot may not start because a lower one is not done."""

    def first_before(self, slot: Slot) -> Slot:
        """The slot whose turn it is where an admitted `slot` stands: itself, or the lower one that it waits for."""

    def again(self, slot: Slot) -> None:
        """`slot`, which was admitted, is BACKING_OFF with a `due` once more after it could not start at all."""

    def next_due(self) -> float | None:
        """When the next slot's back-off ends, None if none is waiting for that."""


def order_of(mode: OrderingMode) -> Order:
    """A fresh, empty order for one segment of rows of that mode."""
    match mode:
        case OrderingMode.ORDERED:
            return SerialOrder()
        case OrderingMode.ORDERED_BY_KEY:
            return KeyedOrder()
        case OrderingMode.UNORDERED:
            return FreeOrder()
        case _:
            assert_never(mode)


class SerialOrder:
    """ORDERED: only the lowest slot that is not done."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots: deque[Slot] = deque()

    def admit(self, slot: Slot) -> None:
        self._slots.append(slot)

    def peek(self, now: float) -> Slot | None:
        if not self._slots:
            return None
        head = self._slots[0]
        return head if head.row.payload is not None and _may_start(head, now) else None

    def take(self, now: float) -> Slot | None:
        return self.peek(now)

    def waits_for_another(self, slot: Slot) -> bool:
        return bool(self._slots) and self._slots[0] is not slot

    def first_before(self, slot: Slot) -> Slot:
        return self._slots[0] if self._slots else slot

    def again(self, slot: Slot) -> None:
        """It has kept its place."""

    def front(self, now: float) -> list[Slot]:
        return [self._slots[0]] if self._slots and _may_start(self._slots[0], now) else []

    def untried(self) -> Iterator[Slot]:
        return (slot for slot in itertools.islice(self._slots, 1) if slot.state is WAITING)

    def failed(self, slot: Slot) -> None:
        """The slot stays at the head, and so does everything behind it."""

    def done(self, slot: Slot) -> None:  # noqa: ARG002 -- the protocol's signature; the head alone tells
        slots = self._slots
        while slots and slots[0].state >= ACKNOWLEDGED:
            slots.popleft()

    def next_due(self) -> float | None:
        head = self._slots[0] if self._slots else None
        return head.due if head is not None and head.state is BACKING_OFF else None


class FreeOrder:
    """UNORDERED: any slot. Retries that are due go first, but not for ever while others wait."""

    __slots__ = ("_due", "_streak", "_timers", "_untried")

    def __init__(self) -> None:
        self._untried: deque[Slot] = deque()
        self._due: deque[Slot] = deque()
        self._timers: list[tuple[float, int, Slot]] = []
        self._streak = 0

    def admit(self, slot: Slot) -> None:
        if slot.state is WAITING:
            self._untried.append(slot)
        elif slot.state is BACKING_OFF:
            self.failed(slot)

    def peek(self, now: float) -> Slot | None:
        queue = self._next_queue(now)
        return queue[0] if queue else None

    def take(self, now: float) -> Slot | None:
        queue = self._next_queue(now)
        if queue is None:
            return None
        self._streak = self._streak + 1 if queue is self._due and self._untried else 0
        return queue.popleft()

    def _next_queue(self, now: float) -> deque[Slot] | None:
        """The queue whose first slot is to start now."""
        self._promote(now)
        due, untried = _pruned(self._due, BACKING_OFF), _pruned(self._untried, WAITING)
        retries_had_theirs = self._streak >= DUE_STREAK_MAX
        for queue in (untried, due) if retries_had_theirs else (due, untried):
            if queue and queue[0].row.payload is not None:
                return queue
        return None

    def waits_for_another(self, slot: Slot) -> bool:  # noqa: ARG002 -- the protocol's signature; nothing waits here
        return False

    def first_before(self, slot: Slot) -> Slot:
        return slot

    def again(self, slot: Slot) -> None:
        self.failed(slot)

    def front(self, now: float) -> list[Slot]:
        self._promote(now)
        due = [slot for slot in self._due if slot.state is BACKING_OFF]
        untried = [slot for slot in self._untried if slot.state is WAITING]
        # Whichever queue goes next, its first slot must come first: it is what `take` waits for.
        return due[:1] + untried[:1] + due[1:] + untried[1:]

    def untried(self) -> Iterator[Slot]:
        return (slot for slot in self._untried if slot.state is WAITING)

    def failed(self, slot: Slot) -> None:
        heapq.heappush(self._timers, (slot.due, slot.row.seq, slot))

    def done(self, slot: Slot) -> None:
        """What is done is passed over where it is met: no queue is searched."""

    def next_due(self) -> float | None:
        while self._timers and (
            self._timers[0][2].state is not BACKING_OFF or self._timers[0][2].due != self._timers[0][0]
        ):
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def _promote(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            due, _, slot = heapq.heappop(self._timers)
            # A slot that was made due earlier has left this timer behind.
            if slot.state is BACKING_OFF and slot.due == due:
                self._due.append(slot)


class KeyedOrder:
    """ORDERED_BY_KEY: the lowest slot of each key that is not done. Slots without a key share one."""

    __slots__ = ("_heads", "_keys")

    def __init__(self) -> None:
        self._keys: dict[str | None, deque[Slot]] = {}
        self._heads = FreeOrder()

    def admit(self, slot: Slot) -> None:
        queue = self._keys.get(slot.row.ordering_key)
        if queue is None:
            self._keys[slot.row.ordering_key] = deque((slot,))
            self._heads.admit(slot)
        else:
            queue.append(slot)

    def peek(self, now: float) -> Slot | None:
        return self._heads.peek(now)

    def take(self, now: float) -> Slot | None:
        return self._heads.take(now)

    def waits_for_another(self, slot: Slot) -> bool:
        return self._keys[slot.row.ordering_key][0] is not slot

    def first_before(self, slot: Slot) -> Slot:
        queue = self._keys.get(slot.row.ordering_key)
        return queue[0] if queue else slot

    def again(self, slot: Slot) -> None:
        if not self.waits_for_another(slot):
            self._heads.again(slot)

    def chill(self, key: str | None, kept_max: int, marker: Slot, above: int) -> list[Slot]:
        """Let the parked slots of a key behind the first `kept_max` go: `marker` (HELD) stands for those that went.

        A marker that is there already takes in those behind it. The first slot of a key always stays. What went is read
        again by sequence: from above all that stay in front of a new marker, from `above` on for one that is there. A
        slot that is not above that stays: a row of the window that came behind parked ones of its key, since its
        receipt was lost with a former owner.
        """
        queue = self._keys.get(key)
        if queue is None:
            return []
        slots = list(queue)
        place = next((i for i, slot in enumerate(slots) if slot.state is HELD), None)
        first = kept_max if place is None else place + 1
        if place is None:
            above = max([above, *(slot.row.seq for slot in slots[:first])])
        gone = [slot for slot in slots[first:] if slot.aside and slot.state < DECIDING and slot.row.seq > above]
        if gone:
            marks = [marker] if place is None else []
            self._keys[key] = deque([*slots[:first], *marks, *(slot for slot in slots[first:] if slot not in gone)])
        return gone

    def insert(self, key: str | None, marker: Slot, slots: list[Slot]) -> None:
        """Rows that `marker` stood for have been read: they take their places before it."""
        queue = self._keys[key]
        at = queue.index(marker)
        had = list(queue)
        self._keys[key] = deque([*had[:at], *slots, *had[at:]])
        if at == 0 and slots:
            self._heads.admit(slots[0])

    def ahead_of(self, key: str | None, marker: Slot) -> int:
        """How many slots of the key stand before its marker."""
        return self._keys[key].index(marker)

    def front(self, now: float) -> list[Slot]:
        return self._heads.front(now)

    def untried(self) -> Iterator[Slot]:
        return self._heads.untried()

    def failed(self, slot: Slot) -> None:
        self._heads.failed(slot)

    def done(self, slot: Slot) -> None:
        self.settle(slot.row.ordering_key)

    def settle(self, key: str | None) -> None:
        """Let go what is done at the front of a key; the next one may start."""
        queue = self._keys.get(key)
        if queue is None or queue[0].state < ACKNOWLEDGED:
            return
        while queue and queue[0].state >= ACKNOWLEDGED:
            queue.popleft()
        if queue:
            self._heads.admit(queue[0])
        else:
            del self._keys[key]

    def next_due(self) -> float | None:
        return self._heads.next_due()


def _may_start(slot: Slot, now: float) -> bool:
    return slot.state is WAITING or (slot.state is BACKING_OFF and slot.due <= now)


def _pruned(queue: deque[Slot], expected: SlotState) -> deque[Slot]:
    """`queue` without the slots at its front that were decided or delivered while they stood in it."""
    while queue and queue[0].state is not expected:
        queue.popleft()
    return queue
