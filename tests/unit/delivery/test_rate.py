"""Rates hold over any stretch of time; a throttle halves at once and recovers slowly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.bucket import TokenBucket
from dispatcher.delivery.rate import Throttle, ThrottlePolicy

POLICY = ThrottlePolicy(floor_per_s=0.5, recovery_s=10)


def send_until(bucket: TokenBucket, end: float) -> list[float]:
    now, sent = 0.0, []
    while (at := max(now, bucket.opens_at(now))) < end:
        now = at
        bucket.take(now)
        sent.append(now)
    return sent


def test_a_burst_then_the_rate() -> None:
    sent = send_until(TokenBucket(2, 3, 0), 5.01)
    assert sent[:3] == [0, 0, 0]
    assert sent[3:] == pytest.approx([0.5 * i for i in range(1, 11)])


@given(st.floats(0.01, 1000), st.integers(1, 50), st.lists(st.floats(0, 20), max_size=60))
def test_no_stretch_of_time_sees_more_than_burst_and_rate(rate: float, burst: int, pauses: list[float]) -> None:
    bucket, now, sent = TokenBucket(rate, burst, 0), 0.0, []
    for pause in pauses:
        now += pause
        if bucket.opens_at(now) <= now:
            bucket.take(now)
            sent.append(now)
    for i, begin in enumerate(sent):
        for j in range(i, len(sent)):
            assert j - i + 1 <= burst + rate * (sent[j] - begin) + 1e-6


def test_a_change_of_rate_gives_no_new_burst() -> None:
    bucket = TokenBucket(1, 5, 0)
    for _ in range(5):
        bucket.take(0)
    bucket.configure(10, 5, 0)
    assert bucket.opens_at(0) == pytest.approx(0.1)


def busy(throttle: Throttle, per_second: int, seconds: int) -> float:
    for i in range(per_second * seconds):
        throttle.begin(i / per_second)
    return float(seconds)


def test_a_slow_down_halves_what_was_observed_down_to_the_floor() -> None:
    throttle = Throttle(POLICY)
    now = busy(throttle, 10, 10)
    throttle.slow_down(now, None)
    first = throttle.per_second
    assert first is not None
    assert 4 <= first <= 10
    throttle.slow_down(now + 0.5, None)
    assert throttle.per_second == first  # answers that come together are one sign
    for i in range(1, 20):
        throttle.slow_down(now + 2 * i, None)
    assert throttle.per_second == POLICY.floor_per_s


def test_a_limit_is_where_it_starts_from_and_where_it_ends() -> None:
    throttle = Throttle(POLICY)
    now = busy(throttle, 100, 5)
    throttle.slow_down(now, 8)
    assert throttle.per_second == 4
    rates = []
    while (rate := throttle.per_second) is not None:
        rates.append(rate)
        now += 0.5
        throttle.succeeded(now)
    assert rates == pytest.approx([4 + 0.4 * i for i in range(10)])  # 8 in 10 s, half a second each


def test_a_throttled_endpoint_waits_for_its_token() -> None:
    throttle = Throttle(POLICY)
    throttle.slow_down(100, 2)
    assert throttle.opens_at(100) == 100
    throttle.begin(100)
    assert throttle.opens_at(100) == pytest.approx(102)
