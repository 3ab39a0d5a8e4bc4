"""The clocks of a process, to be injected: durations by the monotonic one, dates and ages of what others wrote by the
wall's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Clocks:
    """`monotonic` in seconds from an arbitrary start, `wall` in Unix seconds."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time

    def now(self) -> datetime:
        """The wall clock's time in UTC."""
        return datetime.fromtimestamp(self.wall(), UTC)


SYSTEM_CLOCKS = Clocks()
