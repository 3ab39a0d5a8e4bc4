"""Which rows of a lane hold their payload: bounded bytes, those that can start first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from dispatcher.delivery.slots import BACKING_OFF, IN_FLIGHT, WAITING, Slot
from dispatcher.model import OutboxRow, Payload


class PayloadBudget:
    """The bytes that all lanes of a process may hold together. One row of a lane may always hold its payload, so a lane
    is slowed by a used-up budget, never stopped."""

    __slots__ = ("bytes_max", "used")

    def __init__(self, bytes_max: int, used: int = 0) -> None:
        self.bytes_max = bytes_max
        self.used = used

    @property
    def left(self) -> int:
        """Bytes still free; negative where single payloads took the use beyond the bound."""
        return self.bytes_max - self.used


class PayloadStore:
    """The account of one lane's payloads, over its rows that may still be sent.

    `lacking` rows have none. `are_starved` is set by the lane when nothing starts for want of a payload.
    """

    __slots__ = (
        "_budget",
        "_bytes_max",
        "_low_rows",
        "_reserved_bytes",
        "_rows_max",
        "are_starved",
        "bytes_held",
        "holding",
        "lacking",
    )

    def __init__(self, bytes_max: int, rows_max: int, budget: PayloadBudget) -> None:
        self._bytes_max, self._rows_max, self._budget = bytes_max, rows_max, budget
        self._reserved_bytes = 0
        self._low_rows = 0
        self.bytes_held = 0
        self.holding = 0
        self.lacking = 0
        self.are_starved = False

    @property
    def are_low(self) -> bool:
        """Half of what the last plan had is used up, or something waits for its payload."""
        return self.lacking > 0 and (self.are_starved or self.holding <= self._low_rows)

    def add(self, row: OutboxRow) -> None:
        """A new row; it keeps the payload it came with if there is room for it beside what is being read."""
        payload = row.payload
        if payload is not None and (
            self.bytes_held + self._reserved_bytes + row.data_bytes <= self._room or not self._is_in_use
        ):
            self._hold(row.data_bytes)
            self.holding += 1
        else:
            row.payload = None
            self.lacking += 1

    @property
    def _room(self) -> int:
        """Bytes that this lane may hold now: its own bound, or what it has and the process has left.

        Less than it has where the budget is overdrawn; letting a payload go never changes it.
        """
        return min(self._bytes_max, self.bytes_held + self._budget.left)

    def _hold(self, size: int) -> None:
        self.bytes_held += size
        self._budget.used += size

    def close(self) -> None:
        """The lane goes; its rows in flight keep their payloads alive until they end.

        What is told to the lane from now on, such as a payload that was being read, counts for nobody else.
        """
        self._budget.used -= self.bytes_held
        self._budget = PayloadBudget(self._bytes_max, self.bytes_held)

    @property
    def _is_in_use(self) -> bool:
        return self.bytes_held + self._reserved_bytes > 0 or self.lacking > 0

    def attach(self, row: OutboxRow, payload: Payload) -> None:
        """The payload of a row that lacks it has been read; one that no longer fits is left for another time."""
        if row.payload is None and (self.bytes_held == 0 or self.bytes_held + row.data_bytes <= self._room):
            row.payload = payload
            self.lacking -= 1
            self.holding += 1
            self._hold(row.data_bytes)
            self._reserved_bytes = max(0, self._reserved_bytes - row.data_bytes)

    def drop(self, row: OutboxRow) -> None:
        """The row will not be sent any more."""
        if row.payload is None:
            self.lacking -= 1
        else:
            row.payload = None
            self.holding -= 1
            self._hold(-row.data_bytes)

    def plan(self, front: Sequence[Slot], window: Collection[Slot]) -> list[OutboxRow]:
        """The rows to read payloads for: `front` first, then the rest of the window that waits, ascending.

        Makes room for them: payloads of slots that back off go first, then of those farthest behind.
        """
        first = set(front)
        ranked = [*front, *(slot for slot in window if slot.state is WAITING and slot not in first)]
        flying_bytes = sum(slot.row.data_bytes for slot in window if slot.state is IN_FLIGHT)
        kept, wanted = self._choose(ranked, flying_bytes)
        self._reserved_bytes = sum(row.data_bytes for row in wanted)
        if self.bytes_held + self._reserved_bytes > self._room:
            backing_off = (slot for slot in window if slot.state is BACKING_OFF and slot not in first)
            self._evict([*backing_off, *(slot for slot in reversed(ranked) if slot not in kept)])
        self.are_starved = False
        self._low_rows = (self.holding + len(wanted)) // 2
        return wanted

    def _choose(self, ranked: Iterable[Slot], flying_bytes: int) -> tuple[set[Slot], list[OutboxRow]]:
        """The slots, in their order, whose payloads fit together, and the rows among them that lack theirs."""
        kept: set[Slot] = set()
        wanted: list[OutboxRow] = []
        room = self._room - flying_bytes
        for slot in ranked:
            if len(wanted) == self._rows_max or (slot.row.data_bytes > room and (kept or flying_bytes)):
                break
            room -= slot.row.data_bytes
            kept.add(slot)
            if slot.row.payload is None:
                wanted.append(slot.row)
        return kept, wanted

    def _evict(self, victims: Iterable[Slot]) -> None:
        for slot in victims:
            if self.bytes_held + self._reserved_bytes <= self._room:
                return
            if slot.row.payload is not None:
                slot.row.payload = None
                self.holding -= 1
                self.lacking += 1
                self._hold(-slot.row.data_bytes)
