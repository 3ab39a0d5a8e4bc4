"""Policies on failure: checks of messages, and messages of records. Pure.

Bounds are those that protos/webhooks/v1/policy.proto states.
"""

from __future__ import annotations

from itertools import islice

from google.protobuf.duration_pb2 import Duration
from webhooks.v1 import policy_pb2

from dispatcher.api.convert.checks import Violations
from dispatcher.api.convert.times import duration, to_seconds
from dispatcher.policy import (
    AutoDisableOverrides,
    Backoff,
    CircuitOverrides,
    ExhaustionPolicy,
    ExponentialBackoff,
    PublishQuota,
    RateLimit,
    RetryOverrides,
    RetrySchedule,
)

DAY_S = 86_400.0
WAIT_MAX_S = 7 * DAY_S
WAITS_MAX = 100
ATTEMPTS_MAX = 100_000
FINAL_STATUS_CODES_MAX = 32
GONE = 410
RATE_MIN_PER_S = 0.001
RATE_MAX_PER_S = 100_000.0
DEFAULT_BACKOFF = ExponentialBackoff(min_s=1.0, max_s=60.0, factor=2.0)

_EXHAUSTION: dict[int, ExhaustionPolicy] = {
    policy_pb2.EXHAUSTION_POLICY_UNSPECIFIED: ExhaustionPolicy.DEAD_LETTER,
    policy_pb2.EXHAUSTION_POLICY_DEAD_LETTER: ExhaustionPolicy.DEAD_LETTER,
    policy_pb2.EXHAUSTION_POLICY_HALT: ExhaustionPolicy.HALT,
}


def read_retry(message: policy_pb2.RetryPolicy, field: str, violations: Violations) -> RetryOverrides:
    """What is said of retries; what is not set is None."""
    age_max_s = _seconds(message, "max_age", f"{field}.max_age", violations, 1, 30 * DAY_S)
    attempts_max = _count(message.max_attempts, f"{field}.max_attempts", violations, ATTEMPTS_MAX)
    return RetryOverrides(
        backoff=_read_backoff(message, field, violations),
        attempts_max=attempts_max,
        age_max_s=age_max_s,
        final_status_codes=_read_final(message, f"{field}.final_status_codes", violations),
    )


def _read_backoff(message: policy_pb2.RetryPolicy, field: str, violations: Violations) -> Backoff | None:
    match message.WhichOneof("backoff"):
        case "exponential":
            return _read_exponential(message.exponential, f"{field}.exponential", violations)
        case "schedule":
            return _read_schedule(message.schedule, f"{field}.schedule.waits", violations)
        case _:
            return None


def _read_exponential(message: policy_pb2.ExponentialBackoff, field: str, violations: Violations) -> ExponentialBackoff:
    default = DEFAULT_BACKOFF
    min_s = _seconds(message, "min_backoff", f"{field}.min_backoff", violations, 0.01, 3600)
    max_s = _seconds(message, "max_backoff", f"{field}.max_backoff", violations, 0.01, WAIT_MAX_S)
    if message.factor and not 1 <= message.factor <= 10:
        violations.add(f"{field}.factor", "must be 1 to 10")
    found = ExponentialBackoff(
        min_s=default.min_s if min_s is None else min_s,
        max_s=max(default.max_s, min_s or 0.0) if max_s is None else max_s,
        factor=message.factor or default.factor,
    )
    if found.min_s > found.max_s:
        violations.add(f"{field}.max_backoff", "must not be below min_backoff")
    return found


def _read_schedule(message: policy_pb2.RetrySchedule, field: str, violations: Violations) -> RetrySchedule:
    if not 1 <= len(message.waits) <= WAITS_MAX:
        violations.add(field, f"must hold 1 to {WAITS_MAX} waits, holds {len(message.waits)}")
    waits = []
    for i, wait in enumerate(islice(message.waits, WAITS_MAX)):
        waits.append(_in_bounds(wait, f"{field}[{i}]", violations, 0, WAIT_MAX_S) or 0.0)
    return RetrySchedule(tuple(waits))


def _read_final(message: policy_pb2.RetryPolicy, field: str, violations: Violations) -> frozenset[int] | None:
    codes = message.final_status_codes
    if len(codes) > FINAL_STATUS_CODES_MAX:
        violations.add(field, f"must hold at most {FINAL_STATUS_CODES_MAX} codes, holds {len(codes)}")
    for i, code in enumerate(islice(codes, FINAL_STATUS_CODES_MAX)):
        if code == GONE:
            violations.add(f"{field}[{i}]", "410 disables the endpoint; it can't be final for one delivery")
        elif not 400 <= code <= 599:
            violations.add(f"{field}[{i}]", "must be 400 to 599")
    return frozenset(codes) or None


def read_exhaustion(value: int, field: str, violations: Violations) -> ExhaustionPolicy:
    """What follows the last attempt."""
    found = _EXHAUSTION.get(value)
    if found is None:
        violations.add(field, "must be DEAD_LETTER or HALT")
    return found or ExhaustionPolicy.DEAD_LETTER


def read_rate_limit(message: policy_pb2.RateLimit, field: str, violations: Violations) -> RateLimit:
    """A token bucket; the burst defaults to one second's worth, at least one."""
    per_second = read_rate(message.per_second, f"{field}.per_second", violations)
    if not per_second:
        violations.add(f"{field}.per_second", "must be set")
    burst = _count(message.burst, f"{field}.burst", violations, int(RATE_MAX_PER_S))
    return RateLimit(per_second or 1.0, burst or max(1, int(per_second or 1)))


def read_rate(value: float, field: str, violations: Violations) -> float | None:
    """A rate in attempts per second; None for 0, which says nothing."""
    if value and not RATE_MIN_PER_S <= value <= RATE_MAX_PER_S:
        violations.add(field, f"must be {RATE_MIN_PER_S:g} to {RATE_MAX_PER_S:g}, or 0 for no limit")
        return None
    return value or None


def read_circuit(message: policy_pb2.CircuitBreaker, field: str, violations: Violations) -> CircuitOverrides:
    """When attempts stop for a while."""
    if message.failure_ratio and not 0 < message.failure_ratio <= 1:
        violations.add(f"{field}.failure_ratio", "must be more than 0 and at most 1")
    return CircuitOverrides(
        failure_ratio=message.failure_ratio or None,
        window_s=_seconds(message, "window", f"{field}.window", violations, 1, 3600),
        attempts_min=_count(message.min_attempts, f"{field}.min_attempts", violations, 10_000),
        open_s=_seconds(message, "open_duration", f"{field}.open_duration", violations, 0.1, 3600),
        off=message.off,
    )


def read_auto_disable(message: policy_pb2.AutoDisable, field: str, violations: Violations) -> AutoDisableOverrides:
    """When an endpoint is disabled by itself."""
    return AutoDisableOverrides(
        failing_s=_seconds(message, "failing_duration", f"{field}.failing_duration", violations, 60, 90 * DAY_S),
        exhausted_heads=_count(message.exhausted_heads, f"{field}.exhausted_heads", violations, 1000),
        off=message.off,
    )


def read_quota(message: policy_pb2.PublishQuota, field: str, violations: Violations) -> PublishQuota:
    """What a tenant may publish."""
    for name, value, most in (
        ("events_per_second", message.events_per_second, 1e6),
        ("bytes_per_second", message.bytes_per_second, 1e12),
    ):
        if value and not 1 <= value <= most:
            violations.add(f"{field}.{name}", f"must be 1 to {most:.0f}, or 0 for no bound")
    return PublishQuota(message.events_per_second or None, message.bytes_per_second or None)


def _seconds(
    message: policy_pb2.RetryPolicy
    | policy_pb2.ExponentialBackoff
    | policy_pb2.CircuitBreaker
    | policy_pb2.AutoDisable,
    name: str,
    field: str,
    violations: Violations,
    low_s: float,
    high_s: float,
) -> float | None:
    """A duration within bounds; None where it is not set."""
    if not message.HasField(name):  # type: ignore[arg-type] # the name is one of this very message
        return None
    return _in_bounds(getattr(message, name), field, violations, low_s, high_s)


def _in_bounds(value: Duration, field: str, violations: Violations, low_s: float, high_s: float) -> float | None:
    seconds = to_seconds(value)
    if seconds is None or not low_s <= seconds <= high_s:
        violations.add(field, f"must be {low_s:g} s to {high_s:.0f} s")
        return None
    return seconds


def _count(value: int, field: str, violations: Violations, most: int) -> int | None:
    if not 0 <= value <= most:
        violations.add(field, f"must be 1 to {most}")
    return value or None


def retry_message(retry: RetryOverrides) -> policy_pb2.RetryPolicy | None:
    """What is said of retries; None where nothing is."""
    if retry == RetryOverrides():
        return None
    message = policy_pb2.RetryPolicy(
        max_attempts=retry.attempts_max or 0, final_status_codes=sorted(retry.final_status_codes or ())
    )
    if retry.age_max_s is not None:
        message.max_age.CopyFrom(duration(retry.age_max_s))
    match retry.backoff:
        case ExponentialBackoff(min_s, max_s, factor):
            message.exponential.CopyFrom(
                policy_pb2.ExponentialBackoff(min_backoff=duration(min_s), max_backoff=duration(max_s), factor=factor)
            )
        case RetrySchedule(waits_s):
            message.schedule.CopyFrom(policy_pb2.RetrySchedule(waits=[duration(wait) for wait in waits_s]))
        case None:
            pass
    return message


def exhaustion_word(policy: ExhaustionPolicy) -> policy_pb2.ExhaustionPolicy.ValueType:
    """The enum of what follows the last attempt."""
    return policy_pb2.ExhaustionPolicy.Value(f"EXHAUSTION_POLICY_{policy.value}")


def rate_limit_message(limit: RateLimit | None) -> policy_pb2.RateLimit | None:
    """A token bucket; None where there is none."""
    return None if limit is None else policy_pb2.RateLimit(per_second=limit.per_second, burst=limit.burst)


def circuit_message(circuit: CircuitOverrides) -> policy_pb2.CircuitBreaker | None:
    """What is said of circuits; None where nothing is."""
    if circuit == CircuitOverrides():
        return None
    return policy_pb2.CircuitBreaker(
        failure_ratio=circuit.failure_ratio or 0.0,
        window=None if circuit.window_s is None else duration(circuit.window_s),
        min_attempts=circuit.attempts_min or 0,
        open_duration=None if circuit.open_s is None else duration(circuit.open_s),
        off=circuit.off,
    )


def auto_disable_message(auto: AutoDisableOverrides) -> policy_pb2.AutoDisable | None:
    """What is said of disabling by itself; None where nothing is."""
    if auto == AutoDisableOverrides():
        return None
    return policy_pb2.AutoDisable(
        failing_duration=None if auto.failing_s is None else duration(auto.failing_s),
        exhausted_heads=auto.exhausted_heads or 0,
        off=auto.off,
    )


def quota_message(quota: PublishQuota) -> policy_pb2.PublishQuota | None:
    """What may be published; None where there is no bound."""
    if quota == PublishQuota():
        return None
    return policy_pb2.PublishQuota(
        events_per_second=quota.events_per_second or 0.0, bytes_per_second=quota.bytes_per_second or 0.0
    )
