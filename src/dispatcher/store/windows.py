"""Time ranges of lists: what a filter asks for, and the whole days (time partitions) to read for it; pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dispatcher.store.filters import Filter, Operator, bad_filter

RANGE_MAX = timedelta(hours=24)
"""The longest range of a list that no endpoint narrows."""
TIME_MIN = datetime(1970, 1, 1, tzinfo=UTC)
TIME_MAX = datetime(9000, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Window:
    """From `start`, before `end`."""

    start: datetime
    end: datetime

    @property
    def first_day(self) -> datetime:
        """Midnight UTC at or before the start. Lists scan whole partitions, so their bound counts what they read."""
        return self.start.replace(hour=0, minute=0, second=0, microsecond=0)

    @property
    def last_day_end(self) -> datetime:
        """Midnight UTC at or after the end."""
        floor = self.end.replace(hour=0, minute=0, second=0, microsecond=0)
        return floor if floor == self.end else floor + _DAY


def any_window(wanted: Filter, name: str) -> Window:
    """The range asked for, open where it is not bounded."""
    start = wanted.time(name, Operator.FROM) or TIME_MIN
    end = wanted.time(name, Operator.BEFORE) or TIME_MAX
    return _checked(Window(min(max(start, TIME_MIN), TIME_MAX), max(min(end, TIME_MAX), TIME_MIN)), name)


def bounded_window(wanted: Filter, name: str) -> Window | None:
    """The range asked for; one bound alone means 24 h from it, none at all is None.

    Errors: InvalidRequestError where it is longer than `RANGE_MAX`.
    """
    start, end = wanted.time(name, Operator.FROM), wanted.time(name, Operator.BEFORE)
    if start is None and end is None:
        return None
    window = any_window(wanted, name)
    if start is None:
        window = Window(max(window.end - RANGE_MAX, TIME_MIN), window.end)
    if end is None:
        window = Window(window.start, window.start + RANGE_MAX)
    if window.end - window.start > RANGE_MAX:
        raise bad_filter(f"must compare {name!r} with a range of at most 24 h")
    return window


def _checked(window: Window, name: str) -> Window:
    if window.start >= window.end:
        raise bad_filter(f"compares {name!r} with an empty range")
    return window
