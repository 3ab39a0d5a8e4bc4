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
    next_step,
    parse_retry_after,
    rest_s,
    wait_s,
)
from dispatcher.model import Outcome
from dispatcher.policy import (
    ExponentialBackoff,
    RetryDefaults,
    RetryOverrides,
    RetryPolicy,
    RetrySchedule,
    resolve,
    wait_bound_s,
)

BACKOFF = ExponentialBackoff(1, 100, 2)
POLICY = RetryPolicy(BACKOFF, attempts_max=10, age_max_s=1000)
SCHEDULE = RetrySchedule((5, 300, 60))
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
ALMOST_ONE = 0.999999
FAILURES = [outcome for outcome in Outcome if outcome is not Outcome.SUCCEEDED]


def step(
    policy: RetryPolicy = POLICY,
    *,
    attempt_number: int = 1,
    age_s: float = 0,
    outcome: Outcome = Outcome.HTTP_ERROR,
    status_code: int | None = 500,
    retry_after_s: float | None = None,
    draw: float = 0.5,
) -> Retry | Exhausted:
    return next_step(
        policy,
        attempt_number=attempt_number,
        age_s=age_s,
        outcome=outcome,
        status_code=status_code,
        retry_after_s=retry_after_s,
        draw=draw,
    )


def test_waits_grow_by_the_factor_up_to_their_bound_and_chance_shortens_them() -> None:
    assert [wait_bound_s(BACKOFF, number) for number in (1, 2, 3, 7, 8, 9)] == [1, 2, 4, 64, 100, 100]
    assert step(attempt_number=3, draw=0.5) == Retry(2)
    assert step(attempt_number=3, draw=0) == Retry(0)


def test_a_power_beyond_all_numbers_is_the_longest_wait() -> None:
    assert wait_bound_s(ExponentialBackoff(1, 100, 10), 999) == 100


def test_the_last_attempt_is_followed_by_the_end() -> None:
    assert isinstance(step(attempt_number=9), Retry)
    assert step(attempt_number=10) == Exhausted(ExhaustedReason.ATTEMPTS_EXHAUSTED)
    assert step(attempt_number=11) == Exhausted(ExhaustedReason.ATTEMPTS_EXHAUSTED)


def test_a_wait_beyond_the_age_ends_with_it_and_then_there_is_no_more() -> None:
    assert step(attempt_number=9, age_s=990, draw=ALMOST_ONE) == Retry(10)
    assert step(attempt_number=9, age_s=1000) == Exhausted(ExhaustedReason.AGE_EXCEEDED)


def test_without_a_bound_of_age_only_attempts_count() -> None:
    policy = RetryPolicy(BACKOFF, attempts_max=10)
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


def test_a_schedule_names_each_wait_and_chance_lengthens_it_by_a_tenth_at_most() -> None:
    policy = RetryPolicy(SCHEDULE, attempts_max=4)
    assert [step(policy, attempt_number=number, draw=0) for number in (1, 2, 3)] == [Retry(5), Retry(300), Retry(60)]
    assert step(policy, attempt_number=1, draw=0.5) == Retry(5 * 1.05)
    assert step(policy, retry_after_s=1e9) == Retry(300)


def test_a_final_status_ends_it_at_once_and_only_where_there_was_an_answer() -> None:
    policy = RetryPolicy(BACKOFF, attempts_max=10, final_status_codes=frozenset({400}))
    assert step(policy, status_code=400) == Exhausted(ExhaustedReason.FINAL_STATUS)
    assert isinstance(step(policy, status_code=401), Retry)
    assert isinstance(step(policy, status_code=400, outcome=Outcome.TIMEOUT), Retry)


DEFAULTS = RetryDefaults(SCHEDULE, BACKOFF, attempts_max=50, age_max_s=500)


def test_the_endpoint_speaks_before_the_tenant_and_the_tenant_before_the_service() -> None:
    tenant = RetryOverrides(backoff=RetrySchedule((1,)), attempts_max=7, final_status_codes=frozenset({400}))
    endpoint = RetryOverrides(age_max_s=9)
    policy = RetryPolicy(RetrySchedule((1,)), 7, 9, frozenset({400}))
    assert resolve(DEFAULTS, tenant, endpoint, others_wait=True) == policy
    own = RetryOverrides(ExponentialBackoff(2, 3, 1), attempts_max=1, final_status_codes=frozenset())
    assert resolve(DEFAULTS, tenant, own, others_wait=True) == RetryPolicy(ExponentialBackoff(2, 3, 1), 1, 500)


def test_unordered_endpoints_follow_the_schedule_and_the_others_wait_shortly() -> None:
    nothing = RetryOverrides()
    assert resolve(DEFAULTS, nothing, nothing, others_wait=False) == RetryPolicy(SCHEDULE, 4, 500)
    assert resolve(DEFAULTS, nothing, nothing, others_wait=True) == RetryPolicy(BACKOFF, 50, 500)


def test_after_a_restart_what_is_left_of_the_wait_is_waited_for() -> None:
    policy = RetryPolicy(SCHEDULE, attempts_max=4, age_max_s=1000)
    assert rest_s(policy, attempt_number=2, since_s=100, age_s=200, draw=0) == 200
    assert rest_s(policy, attempt_number=2, since_s=400, age_s=500, draw=0) == 0
    assert rest_s(policy, attempt_number=2, since_s=-50, age_s=200, draw=0) == 300  # the former owner's clock is ahead
    assert rest_s(policy, attempt_number=2, since_s=0, age_s=900, draw=0) == 100  # no longer than its age allows
    assert rest_s(policy, attempt_number=2, since_s=0, age_s=2000, draw=0) == 0


@given(st.integers(1, 2000), st.floats(0, 1, exclude_max=True))
def test_a_wait_keeps_to_its_bound(attempt_number: int, draw: float) -> None:
    for backoff in (BACKOFF, SCHEDULE):
        assert wait_s(backoff, attempt_number, draw) <= wait_bound_s(backoff, attempt_number) * 1.1


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
    policy = RetryPolicy(ExponentialBackoff(1, 100, factor), attempts_max=1000, age_max_s=1000)
    after = step(
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
