"""Hypothesis strategies for what endpoints and tenants may say of failures: all within the bounds of policy.proto."""

from __future__ import annotations

from hypothesis import strategies as st

from dispatcher.model import EndpointSettings, OrderingMode, TracePropagation
from dispatcher.policy import (
    AutoDisableOverrides,
    CircuitOverrides,
    ExhaustionPolicy,
    ExponentialBackoff,
    PublishQuota,
    RateLimit,
    RetryOverrides,
    RetrySchedule,
)


def millis(low_s: float, high_s: float) -> st.SearchStrategy[float]:
    """Seconds to the millisecond, which a Duration holds exactly."""
    return st.integers(round(low_s * 1000), round(high_s * 1000)).map(lambda ms: ms / 1000)


EXPONENTIAL = st.tuples(millis(0.01, 3600), millis(3600, 604_800), st.floats(1, 10)).map(
    lambda said: ExponentialBackoff(*said)
)
SCHEDULE = st.lists(millis(0, 604_800), min_size=1, max_size=100).map(lambda waits: RetrySchedule(tuple(waits)))
RETRY = st.builds(
    RetryOverrides,
    backoff=st.none() | EXPONENTIAL | SCHEDULE,
    attempts_max=st.none() | st.integers(1, 100_000),
    age_max_s=st.none() | millis(1, 30 * 86_400),
    final_status_codes=st.none()
    | st.frozensets(st.integers(400, 599).filter(lambda code: code != 410), min_size=1, max_size=32),
)
RATE_LIMIT = st.builds(RateLimit, per_second=st.floats(0.001, 100_000), burst=st.integers(1, 100_000))
CIRCUIT = st.builds(
    CircuitOverrides,
    failure_ratio=st.none() | st.floats(0, 1, exclude_min=True),
    window_s=st.none() | millis(1, 3600),
    attempts_min=st.none() | st.integers(1, 10_000),
    open_s=st.none() | millis(0.1, 3600),
    off=st.booleans(),
)
AUTO_DISABLE = st.builds(
    AutoDisableOverrides,
    failing_s=st.none() | millis(60, 90 * 86_400),
    exhausted_heads=st.none() | st.integers(1, 1000),
    off=st.booleans(),
)
QUOTA = st.builds(
    PublishQuota,
    events_per_second=st.none() | st.floats(1, 1e6),
    bytes_per_second=st.none() | st.floats(1, 1e12),
)
SETTINGS = st.builds(
    EndpointSettings,
    url=st.just("https://a.example/"),
    timeout_s=millis(0.1, 60),
    headers=st.dictionaries(st.sampled_from(["x-a", "x-b"]), st.text(max_size=5)),
    max_in_flight=st.integers(1, 1000),
    ordering_mode=st.sampled_from(OrderingMode),
    trace_propagation=st.sampled_from(TracePropagation),
    fallback_urls=st.lists(st.sampled_from(["https://b.example/", "https://c.example/"]), max_size=3).map(tuple),
    retry=RETRY,
    exhaustion=st.sampled_from(ExhaustionPolicy),
    rate_limit=st.none() | RATE_LIMIT,
    circuit=CIRCUIT,
    auto_disable=AUTO_DISABLE,
)
