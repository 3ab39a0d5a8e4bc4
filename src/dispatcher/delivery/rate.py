"""The throttle that a receiver's 429 and 503 set: additive increase, multiplicative decrease. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.bucket import TokenBucket

OBSERVED_S = 5.0
"""The rate of an endpoint is what began in about so long a time."""
CUT_INTERVAL_S = 1.0
"""Answers that come together are one sign, not many."""
CUT_FACTOR = 0.5


@dataclass(frozen=True, slots=True)
class ThrottlePolicy:
    """`floor_per_s`: no cut goes below. `recovery_s`: additive increase from nothing to the former rate takes that."""

    floor_per_s: float = 1.0
    recovery_s: float = 60.0


class Throttle:
    """The rate that a receiver seems to bear, while it is lower than what we would send."""

    __slots__ = ("_bucket", "_ceiling", "_counts", "_cut_at", "_grown_at", "_policy", "_slot")

    def __init__(self, policy: ThrottlePolicy) -> None:
        self._policy = policy
        self._bucket: TokenBucket | None = None
        self._ceiling = 0.0
        self._cut_at = self._grown_at = float("-inf")
        self._slot = 0
        self._counts = [0, 0]

    @property
    def per_second(self) -> float | None:
        """The present rate, None where nothing is held back."""
        return None if self._bucket is None else self._bucket.per_second

    @property
    def is_on(self) -> bool:
        """Whether anything is held back."""
        return self._bucket is not None

    def opens_at(self, now: float) -> float:
        """When an attempt may begin."""
        return now if self._bucket is None else self._bucket.opens_at(now)

    def begin(self, now: float) -> None:
        """An attempt begins."""
        self._turn(now)
        self._counts[1] += 1
        if self._bucket is not None:
            self._bucket.take(now)

    def slow_down(self, now: float, limit: float | None) -> None:
        """The receiver asks for less (429, 503): halve the rate; `limit` is the endpoint's own, if any."""
        if now - self._cut_at < CUT_INTERVAL_S:
            return
        self._cut_at = self._grown_at = now
        self._turn(now)
        if self._bucket is None:
            observed = max(sum(self._counts) / OBSERVED_S, self._policy.floor_per_s)
            base = observed if limit is None else min(limit, observed)
            self._ceiling = limit if limit is not None else 2 * base
        else:
            base = self._bucket.per_second
        rate = max(self._policy.floor_per_s, CUT_FACTOR * base)
        if self._bucket is None:
            self._bucket = TokenBucket(rate, 1, now)
        else:
            self._bucket.configure(rate, 1, now)

    def succeeded(self, now: float) -> None:
        """An answer 2xx: a little more, until the throttle is no longer needed."""
        if self._bucket is None:
            return
        step = self._ceiling / self._policy.recovery_s * (now - self._grown_at)
        self._grown_at = now
        rate = self._bucket.per_second + step
        if rate >= self._ceiling:
            self._bucket = None
        else:
            self._bucket.configure(rate, 1, now)

    def _turn(self, now: float) -> None:
        """Two slots of time, the present one and the one before."""
        slot = int(now / OBSERVED_S)
        if slot != self._slot:
            self._counts = [self._counts[1] if slot == self._slot + 1 else 0, 0]
            self._slot = slot
