"""The arithmetic of statistics: nothing read, all read, the latest of many read."""

from __future__ import annotations

import random

import pytest

from dispatcher.store.statistics import (
    AttemptRead,
    Sample,
    expected_wait_s,
    percentiles,
    summarize,
    time_to_drain_s,
)

WINDOW_S = 300.0
SHARES = (0.5, 0.9, 0.99)


def sample(attempts: list[AttemptRead], **said: object) -> Sample:
    fields: dict[str, object] = {
        "span_s": WINDOW_S,
        "truncated": False,
        "payload_bytes": [],
        "committed": 0,
        "committed_span_s": WINDOW_S,
    }
    return Sample(attempts=attempts, **(fields | said))  # type: ignore[arg-type]


def attempts(count: int, *, succeeded: bool = True, duration_s: float = 0.1, first_seq: int = 1) -> list[AttemptRead]:
    return [AttemptRead(first_seq + n, duration_s, succeeded) for n in range(count)]


def test_percentiles_are_values_that_were_measured() -> None:
    values = [(float(n), 1.0) for n in range(1, 101)]
    random.Random(7).shuffle(values)
    assert percentiles(values, SHARES) == [50.0, 90.0, 99.0]
    assert percentiles([(3.0, 1.0)], SHARES) == [3.0, 3.0, 3.0]
    assert percentiles([(1.0, 1.0), (2.0, 1.0)], SHARES) == [1.0, 2.0, 2.0]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 1000, 4999])
@pytest.mark.parametrize("weight", [1 / 300, 0.1, 1.0])
def test_percentiles_hold_what_they_say_whatever_the_weights_add_up_to(count: int, weight: float) -> None:
    values = [float(n) for n in range(count)]
    for share, value in zip(SHARES, percentiles([(v, weight) for v in values], SHARES), strict=True):
        assert sum(v <= value for v in values) >= share * count - 1e-6
        assert sum(v < value for v in values) < share * count


def test_a_percentile_weighs_each_value_by_what_it_stands_for() -> None:
    assert percentiles([(1.0, 9.0), (5.0, 1.0)], (0.5, 0.9, 0.91)) == [1.0, 1.0, 5.0]


def test_nothing_in_the_window_has_no_percentiles_and_no_rates() -> None:
    for samples in ([], [sample([])]):
        found = summarize(samples, WINDOW_S)
        assert (found.window_s, found.attempt_count, found.success_ratio, found.attempts_per_s) == (WINDOW_S, 0, 0, 0)
        assert (found.durations, found.payload_bytes_p50, found.payload_bytes_max) == (None, 0, 0)
        assert not found.truncated


def test_one_endpoint_is_counted_as_it_is() -> None:
    failed = attempts(1, succeeded=False, duration_s=2.0, first_seq=3)
    found = summarize([sample(attempts(3) + failed, payload_bytes=[10, 30, 20], committed=6)], WINDOW_S)
    assert (found.attempt_count, found.succeeded_count, found.success_ratio) == (4, 3, 0.75)
    assert found.attempts_per_s == pytest.approx(4 / WINDOW_S)
    assert found.delivered_per_s == pytest.approx(3 / WINDOW_S)
    assert found.committed_per_s == pytest.approx(6 / WINDOW_S)
    assert found.durations is not None
    assert (found.durations.p50_s, found.durations.p99_s) == (0.1, 2.0)
    assert (found.payload_bytes_p50, found.payload_bytes_max) == (20, 30)


def test_a_copy_is_an_attempt_and_no_further_delivery() -> None:
    found = summarize([sample(attempts(2) + attempts(2))], WINDOW_S)
    assert found.succeeded_count == 4
    assert found.delivered_per_s == pytest.approx(2 / WINDOW_S)


def test_of_a_busy_endpoint_the_latest_stand_for_the_rest() -> None:
    """A hundred a second that all fail, of which only the last second was read, beside one a second that succeeds."""
    busy = sample(attempts(100, succeeded=False, duration_s=5.0), span_s=1.0, truncated=True)
    quiet = sample(attempts(300))
    found = summarize([busy, quiet], WINDOW_S)
    assert found.truncated
    assert found.window_s == WINDOW_S
    assert found.attempt_count == 400
    assert found.attempts_per_s == pytest.approx(101)
    assert found.success_ratio == pytest.approx(1 / 101)
    assert found.durations is not None
    assert found.durations.p50_s == 5.0
    assert summarize([busy], WINDOW_S).window_s == 1.0


def test_time_to_drain_is_known_only_where_the_backlog_gets_smaller() -> None:
    assert time_to_drain_s(0, 0.0, 0.0) == 0.0
    assert time_to_drain_s(0, 1.0, 9.0) == 0.0
    assert time_to_drain_s(100, 30.0, 10.0) == 5.0
    assert time_to_drain_s(100, 10.0, 10.0) is None
    assert time_to_drain_s(100, 10.0, 30.0) is None
    assert time_to_drain_s(100, 0.0, 0.0) is None


def test_the_wait_behind_a_backlog_needs_deliveries_alone() -> None:
    assert expected_wait_s(0, 0.0) == 0.0
    assert expected_wait_s(100, 10.0) == 10.0
    assert expected_wait_s(100, 0.0) is None
