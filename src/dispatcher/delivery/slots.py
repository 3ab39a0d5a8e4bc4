"""One delivery in a lane's memory.

    offer, loaded ──▶ WAITING ──start──▶ IN_FLIGHT ──succeeded──▶ ACKNOWLEDGED ──flushed──▶ SETTLED
       │                │  ▲               │  │  ▲                    ▲                        ▲
       │                │  └─ never back   │  │  └──start, when due── │ ─┐                     │
       │                │                  │  └──failed──▶ BACKING_OFF ──┘                     │
       │                │ deciding         │ deciding      │ deciding                          │
       │                └───────────▶ DECIDING ◀───────────┘                                   │
       │                                 └───────────────── decided ───────────────────────────┤
       └──────────────── read as settled: a success or a decision is on record ────────────────┘

    WAITING, tried by a former owner ──admitted──▶ BACKING_OFF

    DECIDING ──halted──▶ HALTED               DECIDING ──retry_now, undecided──▶ BACKING_OFF
                           └──deciding──▶ DECIDING

A success of an attempt that this lane did not start (`late_success`) acknowledges a slot that is WAITING, BACKING_OFF
or HALTED at once; one that is IN_FLIGHT or DECIDING first comes to its own end.

A slot may be parked (`aside`): it has left the lane's window, and its way through the states is the same. HELD stands
for parked rows of one ordering key that are in the database alone; it never starts.
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
    HALTED = 3
    HELD = 4
    DECIDING = 5
    ACKNOWLEDGED = 6
    SETTLED = 7


# An enum's members looked up through their class cost more than the rest of a comparison.
WAITING: Final = SlotState.WAITING
IN_FLIGHT: Final = SlotState.IN_FLIGHT
BACKING_OFF: Final = SlotState.BACKING_OFF
HALTED: Final = SlotState.HALTED
HELD: Final = SlotState.HELD
DECIDING: Final = SlotState.DECIDING
ACKNOWLEDGED: Final = SlotState.ACKNOWLEDGED
SETTLED: Final = SlotState.SETTLED


class Slot:
    """A row and how far its delivery has come; compared by identity.

    `mode` is the ordering mode of the row's revision, None while that revision is unknown. `due` (monotonic seconds)
    has a meaning only in BACKING_OFF. `proven` marks a success seen while the slot could not yet take it, `on_record`
    one that the database holds. `aside`: it is parked, outside of the window.
    """

    __slots__ = ("aside", "due", "mode", "on_record", "proven", "row", "state")

    def __init__(self, row: OutboxRow, mode: OrderingMode | None) -> None:
        self.row = row
        self.mode = mode
        self.state = SETTLED if row.settled else WAITING
        self.aside = False
        self.due = 0.0
        self.proven = False
        self.on_record = False
