"""How failures are met, as frozen records: what a tenant or an endpoint says of it; pure.

None means "not said": the endpoint's word comes first, then the tenant's, then the settings of the service. Times are
seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ExhaustionPolicy(enum.StrEnum):
    """What follows the last attempt of a delivery: it is dead-lettered, or what waits for it waits for an operator."""

    DEAD_LETTER = "DEAD_LETTER"
    HALT = "HALT"


@dataclass(frozen=True, slots=True)
class ExponentialBackoff:
    """The wait before attempt n+1 is random in [0, min(max_s, min_s x factor^(n-1))] (full jitter)."""

    min_s: float
    max_s: float
    factor: float


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """The wait before attempt n+1 is waits_s[n-1]; one attempt more than there are waits."""

    waits_s: tuple[float, ...]


Backoff = ExponentialBackoff | RetrySchedule


@dataclass(frozen=True, slots=True)
class RetryOverrides:
    """What a tenant or an endpoint says of retries. `age_max_s` counts from the delivery's own first attempt.

    A status of `final_status_codes` is not tried again.
    """

    backoff: Backoff | None = None
    attempts_max: int | None = None
    age_max_s: float | None = None
    final_status_codes: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A token bucket: `per_second` on average, `burst` at once."""

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class CircuitOverrides:
    """What an endpoint says of its circuits (one per URL). `off`: none ever opens."""

    failure_ratio: float | None = None
    window_s: float | None = None
    attempts_min: int | None = None
    open_s: float | None = None
    off: bool = False


@dataclass(frozen=True, slots=True)
class AutoDisableOverrides:
    """When an endpoint is disabled by itself: nothing but failures for so long, or so many exhausted heads in a row."""

    failing_s: float | None = None
    exhausted_heads: int | None = None
    off: bool = False


@dataclass(frozen=True, slots=True)
class PublishQuota:
    """What a tenant may publish, each second on average; None for no bound."""

    events_per_second: float | None = None
    bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What holds for one endpoint; `age_max_s` None means any age will do."""

    backoff: Backoff
    attempts_max: int
    age_max_s: float | None = None
    final_status_codes: frozenset[int] = frozenset()

    @property
    def longest_wait_s(self) -> float:
        """The bound of every wait, and so of what a Retry-After may ask for."""
        match self.backoff:
            case ExponentialBackoff():
                return self.backoff.max_s
            case RetrySchedule():
                return max(self.backoff.waits_s)


@dataclass(frozen=True, slots=True)
class RetryDefaults:
    """What the settings of the service say: a schedule for UNORDERED, growing waits for the modes where others wait."""

    schedule: RetrySchedule
    exponential: ExponentialBackoff
    attempts_max: int
    age_max_s: float


def resolve(
    defaults: RetryDefaults, tenant: RetryOverrides, endpoint: RetryOverrides, *, others_wait: bool
) -> RetryPolicy:
    """The policy of an endpoint: its own word first, then the tenant's, then the service's.

    `others_wait`: it is not UNORDERED. A backoff is taken as a whole. With a schedule there is one attempt more than it
    has waits, unless said otherwise.
    """
    own: Backoff = defaults.exponential if others_wait else defaults.schedule
    backoff = endpoint.backoff or tenant.backoff or own
    attempts_max = endpoint.attempts_max or tenant.attempts_max
    if attempts_max is None:
        attempts_max = len(backoff.waits_s) + 1 if isinstance(backoff, RetrySchedule) else defaults.attempts_max
    codes = endpoint.final_status_codes if endpoint.final_status_codes is not None else tenant.final_status_codes
    return RetryPolicy(
        backoff=backoff,
        attempts_max=attempts_max,
        age_max_s=endpoint.age_max_s or tenant.age_max_s or defaults.age_max_s,
        final_status_codes=codes or frozenset(),
    )


def wait_bound_s(backoff: Backoff, attempt_number: int) -> float:
    """The bound of the wait after attempt `attempt_number`, in seconds; a schedule's may be a tenth longer."""
    match backoff:
        case ExponentialBackoff():
            try:
                return min(backoff.max_s, backoff.min_s * backoff.factor ** (attempt_number - 1))
            except OverflowError:
                return backoff.max_s
        case RetrySchedule():
            return backoff.waits_s[min(attempt_number, len(backoff.waits_s)) - 1]


NO_RETRY_OVERRIDES = RetryOverrides()
NO_CIRCUIT_OVERRIDES = CircuitOverrides()
NO_AUTO_DISABLE_OVERRIDES = AutoDisableOverrides()
NO_PUBLISH_QUOTA = PublishQuota()
