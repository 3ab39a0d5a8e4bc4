"""One delivery in a lane's memory.

    offer, loaded ──▶ WAITING ──start──▶ IN_FLIGHT ──succeeded──▶ ACKNOWLEDGED ──flushed──▶ SETTLED
       │                │  ▲               │  │  ▲                    ▲                        ▲
       │                │  └─ never back   │  │  └──start, when due── │ ─┐                     │
       │                │                  │  └──failed──▶ BACKING_OFF ──┘                     │
       │                │ deciding         │ deciding      │ deciding                          │
       │                └───────────▶ DECIDING ◀───────────┘                                   │
       │                                 └───────────────── decided ───────────────────────────┤
       └──────────────── read as settled: a success or a decision is on record ────────────────┘

A success of an attempt that this lane did not start (`late_success`) acknowledges a slot that is WAITING or BACKING_OFF
at once; one that is IN_FLIGHT or DECIDING first comes to its own end.
"""

from __future__ import annotations

import enum
from typing import Final

from dispatcher.model import OrderingMode, OutboxRow


class SlotState(enum.IntEnum):
    """Ordered: a slot from ACKNOWLEDGED on is done, so what waits for it may start."""

    WAITING = 0
    IN_FLIGHT = 1
    BACKING_OFF = 2
    DECIDING = 3
    ACKNOWLEDGED = 4
    SETTLED = 5


# An enum's members looked up through their class cost more than the rest of a comparison.
WAITING: Final = SlotState.WAITING
IN_FLIGHT: Final = SlotState.IN_FLIGHT
BACKING_OFF: Final = SlotState.BACKING_OFF
DECIDING: Final = SlotState.DECIDING
ACKNOWLEDGED: Final = SlotState.ACKNOWLEDGED
SETTLED: Final = SlotState.SETTLED


class Slot:
    """A row and how far its delivery has come; compared by identity.

    `mode` is the ordering mode of the row's revision, None while that revision is unknown. `due` (monotonic seconds)
    has a meaning only in BACKING_OFF. `proven` marks a success seen while the slot could not yet take it, `on_record`
    one that the database holds.
    """

    __slots__ = ("due", "mode", "on_record", "proven", "row", "state")

    def __init__(self, row: OutboxRow, mode: OrderingMode | None) -> None:
        self.row = row
        self.mode = mode
        self.state = SETTLED if row.settled else WAITING
        self.due = 0.0
        self.proven = False
        self.on_record = False
