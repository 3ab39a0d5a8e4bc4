"""Bounds and words of a lane."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from dispatcher.model import OrderingMode, OutboxRow


class LaneError(RuntimeError):
    """The caller told of something that can't have happened; going on would be a guess."""


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Bounds of one lane: slots in its window, bytes of payload held, payloads asked for at once, slots parked aside in
    memory, those of them that are of one ordering key."""

    rows_max: int
    bytes_max: int
    payload_rows_max: int = 64
    parked_rows_max: int = 1000
    parked_key_rows_max: int = 64


@dataclass(frozen=True, slots=True)
class ModeSettings:
    """What one revision of an endpoint says of ordering. ORDERED has one in flight whatever `max_in_flight` says."""

    mode: OrderingMode
    max_in_flight: int


class Wait(enum.Enum):
    """What keeps a delivery that was never tried from its first attempt.

    ENDPOINT: it is paused, disabled, halted or bounded by a rate or a circuit, or what it waits for has failed.
    ANSWER: its receiver has yet to answer to as many attempts as may be in flight. US: nothing of these.
    """

    ENDPOINT = "ENDPOINT"
    ANSWER = "ANSWER"
    US = "US"


Resume = Callable[[OutboxRow], float]
"""When (monotonic seconds) the next attempt is due of a delivery whose last one was a former owner's."""


def at_once(_row: OutboxRow) -> float:
    """A `Resume` that waits for nothing."""
    return 0.0


class LoadResult(enum.Enum):
    """What `loaded` made of rows read.

    CONTIGUOUS: all is well. GAP: a row is missing in the middle; what lies above it was not taken. MISSING: twice
    nothing was found where a hint had promised rows; the lane no longer expects them. The last two are for the log.
    """

    CONTIGUOUS = "CONTIGUOUS"
    GAP = "GAP"
    MISSING = "MISSING"


class Gate(Protocol):
    """What may keep an endpoint from starting an attempt although a row could: rates, circuits. Pure."""

    def opens_at(self, now: float, row_time: datetime) -> float:
        """When an attempt for a row of that partition time may start: `now` or before it means at once."""

    def is_ours(self, now: float) -> bool:
        """Whether it keeps attempts back for a fault of our own: the egress proxy's."""
