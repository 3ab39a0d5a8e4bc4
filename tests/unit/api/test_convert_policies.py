"""Policies: what is within the bounds of policy.proto comes back as it went; what is not is named by its field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from webhooks.v1 import policy_pb2

from dispatcher.api.convert import policies
from dispatcher.api.convert.checks import Violations
from dispatcher.errors import InvalidRequestError
from dispatcher.policy import (
    AutoDisableOverrides,
    CircuitOverrides,
    ExhaustionPolicy,
    ExponentialBackoff,
    PublishQuota,
    RateLimit,
    RetryOverrides,
)
from tests.support.policies import AUTO_DISABLE, CIRCUIT, QUOTA, RATE_LIMIT, RETRY

NAN, INFINITE = float("nan"), float("inf")


def read(reader: Callable[[Any, str, Violations], Any], message: Any) -> Any:
    violations = Violations()
    found = reader(message, "f", violations)
    violations.raise_if_any()
    return found


@given(RETRY)
def test_retries_come_back_as_they_went(said: RetryOverrides) -> None:
    assert read(policies.read_retry, policies.retry_message(said) or policy_pb2.RetryPolicy()) == said


@given(RATE_LIMIT)
def test_a_rate_limit_comes_back_as_it_went(said: RateLimit) -> None:
    assert read(policies.read_rate_limit, policies.rate_limit_message(said)) == said


@given(CIRCUIT)
def test_a_circuit_comes_back_as_it_went(said: CircuitOverrides) -> None:
    assert read(policies.read_circuit, policies.circuit_message(said) or policy_pb2.CircuitBreaker()) == said


@given(AUTO_DISABLE)
def test_disabling_comes_back_as_it_went(said: AutoDisableOverrides) -> None:
    assert read(policies.read_auto_disable, policies.auto_disable_message(said) or policy_pb2.AutoDisable()) == said


@given(QUOTA)
def test_a_quota_comes_back_as_it_went(said: PublishQuota) -> None:
    assert read(policies.read_quota, policies.quota_message(said) or policy_pb2.PublishQuota()) == said


@pytest.mark.parametrize("policy", ExhaustionPolicy)
def test_an_exhaustion_policy_comes_back_as_it_went(policy: ExhaustionPolicy) -> None:
    assert read(policies.read_exhaustion, policies.exhaustion_word(policy)) is policy


def exponential(**said: Any) -> policy_pb2.RetryPolicy:
    return policy_pb2.RetryPolicy(exponential=policy_pb2.ExponentialBackoff(**said))


def schedule(*seconds: int) -> policy_pb2.RetryPolicy:
    return policy_pb2.RetryPolicy(schedule=policy_pb2.RetrySchedule(waits=[Duration(seconds=s) for s in seconds]))


WRONG: list[tuple[Callable[..., Any], Any, str]] = [
    (policies.read_retry, policy_pb2.RetryPolicy(max_attempts=-1), "f.max_attempts"),
    (policies.read_retry, policy_pb2.RetryPolicy(max_attempts=100_001), "f.max_attempts"),
    (policies.read_retry, policy_pb2.RetryPolicy(max_age=Duration(nanos=1)), "f.max_age"),
    (policies.read_retry, policy_pb2.RetryPolicy(max_age=Duration(seconds=30 * 86_400 + 1)), "f.max_age"),
    (policies.read_retry, policy_pb2.RetryPolicy(final_status_codes=[400, 410]), "f.final_status_codes[1]"),
    (policies.read_retry, policy_pb2.RetryPolicy(final_status_codes=[200]), "f.final_status_codes[0]"),
    (policies.read_retry, policy_pb2.RetryPolicy(final_status_codes=range(400, 433)), "f.final_status_codes"),
    (policies.read_retry, exponential(min_backoff=Duration(nanos=1)), "f.exponential.min_backoff"),
    (policies.read_retry, exponential(max_backoff=Duration(seconds=604_801)), "f.exponential.max_backoff"),
    (
        policies.read_retry,
        exponential(min_backoff=Duration(seconds=9), max_backoff=Duration(seconds=8)),
        "f.exponential.max_backoff",
    ),
    (policies.read_retry, exponential(factor=0.5), "f.exponential.factor"),
    (policies.read_retry, exponential(factor=NAN), "f.exponential.factor"),
    (policies.read_retry, schedule(), "f.schedule.waits"),
    (policies.read_retry, schedule(*[1] * 101), "f.schedule.waits"),
    (policies.read_retry, schedule(1, 604_801), "f.schedule.waits[1]"),
    (policies.read_retry, schedule(-1), "f.schedule.waits[0]"),
    (policies.read_rate_limit, policy_pb2.RateLimit(), "f.per_second"),
    (policies.read_rate_limit, policy_pb2.RateLimit(per_second=INFINITE), "f.per_second"),
    (policies.read_rate_limit, policy_pb2.RateLimit(per_second=1, burst=-1), "f.burst"),
    (policies.read_circuit, policy_pb2.CircuitBreaker(failure_ratio=1.1), "f.failure_ratio"),
    (policies.read_circuit, policy_pb2.CircuitBreaker(failure_ratio=NAN), "f.failure_ratio"),
    (policies.read_circuit, policy_pb2.CircuitBreaker(window=Duration()), "f.window"),
    (policies.read_circuit, policy_pb2.CircuitBreaker(min_attempts=10_001), "f.min_attempts"),
    (policies.read_circuit, policy_pb2.CircuitBreaker(open_duration=Duration(seconds=3601)), "f.open_duration"),
    (policies.read_auto_disable, policy_pb2.AutoDisable(failing_duration=Duration(seconds=59)), "f.failing_duration"),
    (policies.read_auto_disable, policy_pb2.AutoDisable(exhausted_heads=1001), "f.exhausted_heads"),
    (policies.read_quota, policy_pb2.PublishQuota(events_per_second=0.5), "f.events_per_second"),
    (policies.read_quota, policy_pb2.PublishQuota(bytes_per_second=-1), "f.bytes_per_second"),
    (policies.read_exhaustion, 7, "f"),
]


@pytest.mark.parametrize(("reader", "message", "field"), WRONG, ids=[field for _, _, field in WRONG])
def test_what_is_out_of_bounds_is_named(reader: Callable[..., Any], message: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read(reader, message)
    assert field in [violation.field for violation in refused.value.violations]


def test_what_is_not_set_within_a_backoff_has_the_defaults_that_the_proto_names() -> None:
    assert read(policies.read_retry, exponential()).backoff == ExponentialBackoff(1, 60, 2)
    found = read(policies.read_retry, exponential(min_backoff=Duration(seconds=90)))
    assert found.backoff == ExponentialBackoff(90, 90, 2)


def test_a_burst_is_a_seconds_worth_unless_said_otherwise() -> None:
    assert read(policies.read_rate_limit, policy_pb2.RateLimit(per_second=50)) == RateLimit(50, 50)
    assert read(policies.read_rate_limit, policy_pb2.RateLimit(per_second=0.5)) == RateLimit(0.5, 1)
