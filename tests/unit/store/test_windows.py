"""Time ranges of lists."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.errors import InvalidRequestError
from dispatcher.store.filters import TIME_RANGE, Filter, parse
from dispatcher.store.windows import TIME_MAX, TIME_MIN, Window, any_window, bounded_window

NOON = datetime(2030, 1, 31, 12, tzinfo=UTC)


def compared(text: str) -> Filter:
    return parse(text, {"t": TIME_RANGE})


def test_a_window_covers_whole_days() -> None:
    window = Window(NOON, NOON + timedelta(hours=1))
    assert window.first_day == datetime(2030, 1, 31, tzinfo=UTC)
    assert window.last_day_end == datetime(2030, 2, 1, tzinfo=UTC)
    assert Window(window.first_day, window.last_day_end).last_day_end == window.last_day_end


def test_one_bound_means_a_day_from_it() -> None:
    assert bounded_window(compared('t >= "2030-01-31T12:00:00Z"'), "t") == Window(NOON, NOON + timedelta(days=1))
    assert bounded_window(compared('t < "2030-01-31T12:00:00Z"'), "t") == Window(NOON - timedelta(days=1), NOON)
    assert bounded_window(compared(""), "t") is None
    assert any_window(compared(""), "t") == Window(TIME_MIN, TIME_MAX)


@pytest.mark.parametrize(
    "text",
    [
        't >= "2030-01-31T12:00:00Z" AND t < "2030-02-01T12:00:00.000001Z"',
        't >= "2030-01-31T12:00:00Z" AND t < "2030-01-31T12:00:00Z"',
        't < "1960-01-31T12:00:00Z"',
        't >= "9999-01-31T12:00:00Z"',
    ],
)
def test_too_long_and_empty_ranges_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        bounded_window(compared(text), "t")
