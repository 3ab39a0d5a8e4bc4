"""Retries: bounded waits, bounded attempts, bounded age, and a receiver's own word on it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.delivery.retry import (
    Exhausted,
    ExhaustedReason,
    Retry,
    RetryPolicy,
    backoff_bound_s,
    next_step,
    parse_retry_after,
)
from dispatcher.model import Outcome

POLICY = RetryPolicy(min_s=1, max_s=100, factor=2, attempts_max=10, age_max_s=1000)
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
ALMOST_ONE = 0.999999
FAILURES = [outcome for outcome in Outcome if outcome is not Outcome.SUCCEEDED]


def step(
    policy: RetryPolicy = POLICY,
    *,
    attempt_number: int = 1,
    age_s: float = 0,
    outcome: Outcome = Outcome.HTTP_ERROR,
    retry_after_s: float | None = None,
    draw: float = 0.5,
) -> Retry | Exhausted:
    return next_step(
        policy, attempt_number=attempt_number, age_s=age_s, outcome=outcome, retry_after_s=retry_after_s, draw=draw
    )


def test_waits_grow_by_the_factor_up_to_their_bound_and_chance_shortens_them() -> None:
    assert [backoff_bound_s(POLICY, number) for number in (1, 2, 3, 7, 8, 9)] == [1, 2, 4, 64, 100, 100]
    assert step(attempt_number=3, draw=0.5) == Retry(2)
    assert step(attempt_number=3, draw=0) == Retry(0)


def test_a_power_beyond_all_numbers_is_the_longest_wait() -> None:
    policy = RetryPolicy(min_s=1, max_s=100, factor=10, attempts_max=1000)
    assert backoff_bound_s(policy, 999) == 100


def test_the_last_attempt_is_followed_by_the_end() -> None:
    assert isinstance(step(attempt_number=9), Retry)
    assert step(attempt_number=10) == Exhausted(ExhaustedReason.ATTEMPTS_EXHAUSTED)
    assert step(attempt_number=11) == Exhausted(ExhaustedReason.ATTEMPTS_EXHAUSTED)


def test_a_wait_beyond_the_age_ends_with_it_and_then_there_is_no_more() -> None:
    assert step(attempt_number=9, age_s=990, draw=ALMOST_ONE) == Retry(10)
    assert step(attempt_number=9, age_s=1000) == Exhausted(ExhaustedReason.AGE_EXCEEDED)


def test_without_a_bound_of_age_only_attempts_count() -> None:
    policy = RetryPolicy(min_s=1, max_s=100, factor=2, attempts_max=10)
    assert isinstance(step(policy, attempt_number=9, age_s=1e9), Retry)


def test_retry_after_lengthens_a_wait_never_shortens_it_and_is_bounded() -> None:
    assert step(retry_after_s=30) == Retry(30)
    assert step(attempt_number=8, retry_after_s=1, draw=0.5) == Retry(50)
    assert step(retry_after_s=1e12) == Retry(100)


def test_retry_after_counts_only_with_an_answer() -> None:
    assert step(outcome=Outcome.TIMEOUT, retry_after_s=30) == Retry(0.5)


def test_a_success_is_not_asked_about() -> None:
    with pytest.raises(ValueError, match="success"):
        step(outcome=Outcome.SUCCEEDED)


@given(
    attempt_number=st.integers(1, 2000),
    age_s=st.floats(0, 1e7),
    outcome=st.sampled_from(FAILURES),
    retry_after_s=st.none() | st.floats(0, 1e300),
    draw=st.floats(0, 1, exclude_max=True),
    factor=st.floats(1, 10),
)
def test_every_wait_is_finite_and_within_the_policy(
    attempt_number: int, age_s: float, outcome: Outcome, retry_after_s: float | None, draw: float, factor: float
) -> None:
    policy = RetryPolicy(min_s=1, max_s=100, factor=factor, attempts_max=1000, age_max_s=1000)
    after = next_step(
        policy, attempt_number=attempt_number, age_s=age_s, outcome=outcome, retry_after_s=retry_after_s, draw=draw
    )
    is_over = attempt_number >= policy.attempts_max or age_s >= 1000
    assert isinstance(after, Exhausted) is is_over
    if isinstance(after, Retry):
        assert 0 <= after.delay_s <= 100
        assert after.delay_s + age_s <= 1000 + 1e-6


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 120\t", 120),
        ("9999999999", 9999999999),
        ("Mon, 23 Nov 2026 12:00:30 GMT", 30),
        ("Monday, 23-Nov-26 12:00:30 GMT", 30),
        ("Mon Nov 23 12:00:30 2026", 30),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0),
    ],
)
def test_retry_after_is_read_in_both_of_its_forms(value: str, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    "value", ["", "soon", "-1", "1.5", "1e3", "٣", "12345678901", "9" * 5000, "Mon, 99 Nov 2026 12:00:30 GMT", "nan"]
)
def test_a_retry_after_that_makes_no_sense_is_passed_over(value: str) -> None:
    assert parse_retry_after(value, NOW) is None


@given(st.text())
def test_whatever_a_receiver_sends_as_retry_after_is_harmless(value: str) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or seconds >= 0
