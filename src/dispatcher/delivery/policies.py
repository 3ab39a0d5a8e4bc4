"""What holds for one endpoint on failure: its own word, its tenant's, the service's, put together."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from dispatcher.clocks import SYSTEM_CLOCKS, Clocks
from dispatcher.delivery.admission import AdmissionPolicy
from dispatcher.delivery.circuit import CircuitPolicy
from dispatcher.delivery.health import DisablePolicy
from dispatcher.delivery.rate import ThrottlePolicy
from dispatcher.delivery.retry import rest_s
from dispatcher.model import CatchUp, EndpointSettings, OrderingMode, OutboxRow
from dispatcher.policy import (
    NO_RETRY_OVERRIDES,
    AutoDisableOverrides,
    CircuitOverrides,
    ExponentialBackoff,
    RetryDefaults,
    RetryOverrides,
    RetryPolicy,
    RetrySchedule,
    resolve,
)

HOUR_S = 3600.0
STANDARD_SCHEDULE_S = (5.0, 300.0, 1800.0, 2 * HOUR_S, 5 * HOUR_S, 10 * HOUR_S, 14 * HOUR_S, 20 * HOUR_S, 24 * HOUR_S)
"""Standard Webhooks, "Deliverability and reliability": after the first attempt, which is immediate."""


@dataclass(frozen=True, slots=True)
class FailureDefaults:
    """What the settings of the service say."""

    retry: RetryDefaults = RetryDefaults(  # noqa: RUF009 -- frozen
        RetrySchedule(STANDARD_SCHEDULE_S), ExponentialBackoff(1.0, 60.0, 2.0), 10_000, 4 * 24 * HOUR_S
    )
    circuit: CircuitPolicy = CircuitPolicy()  # noqa: RUF009 -- frozen
    throttle: ThrottlePolicy = ThrottlePolicy()  # noqa: RUF009 -- frozen
    disable: DisablePolicy = DisablePolicy()  # noqa: RUF009 -- frozen


@dataclass(frozen=True, slots=True)
class FailurePolicies:
    """What holds for one endpoint."""

    retry: RetryPolicy
    admission: AdmissionPolicy
    disable: DisablePolicy


def policies_of(
    defaults: FailureDefaults,
    settings: EndpointSettings,
    tenant_retry: RetryOverrides = NO_RETRY_OVERRIDES,
    catch_ups: tuple[CatchUp, ...] = (),
) -> FailurePolicies:
    """Put together what the endpoint, its tenant and the service say."""
    return FailurePolicies(
        retry=resolve(
            defaults.retry,
            tenant_retry,
            settings.retry,
            others_wait=settings.ordering_mode is not OrderingMode.UNORDERED,
        ),
        admission=AdmissionPolicy(
            urls=(settings.url, *settings.fallback_urls),
            rate_limit=settings.rate_limit,
            circuit=_circuit(defaults.circuit, settings.circuit),
            throttle=defaults.throttle,
            proxy_waits=defaults.retry.exponential,
            catch_ups=catch_ups,
        ),
        disable=_disable(defaults.disable, settings.auto_disable),
    )


def resume_of(
    policy: RetryPolicy, chance: random.Random, clocks: Clocks = SYSTEM_CLOCKS
) -> Callable[[OutboxRow], float]:
    """When (monotonic seconds) a delivery that a former owner tried is due, by what its attempts tell of the past."""

    def resume(row: OutboxRow) -> float:
        last, now = row.last_attempt_time, clocks.now()
        if last is None:
            return 0.0
        rest = rest_s(
            policy,
            attempt_number=max(1, row.attempts),
            since_s=(now - last).total_seconds(),
            age_s=(now - (row.first_attempt_time or last)).total_seconds(),
            draw=chance.random(),
        )
        return clocks.monotonic() + rest

    return resume


def _circuit(default: CircuitPolicy, said: CircuitOverrides) -> CircuitPolicy:
    return CircuitPolicy(
        failure_ratio=said.failure_ratio or default.failure_ratio,
        window_s=said.window_s or default.window_s,
        attempts_min=said.attempts_min or default.attempts_min,
        open_s=said.open_s or default.open_s,
        off=said.off or default.off,
    )


def _disable(default: DisablePolicy, said: AutoDisableOverrides) -> DisablePolicy:
    return DisablePolicy(
        failing_s=said.failing_s or default.failing_s,
        exhausted_heads=said.exhausted_heads or default.exhausted_heads,
        off=said.off or default.off,
    )
