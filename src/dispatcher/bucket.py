"""A token bucket; pure, monotonic seconds are passed in."""

from __future__ import annotations


class TokenBucket:
    """`per_second` tokens on average, `burst` at once; full at the beginning."""

    __slots__ = ("_at", "_tokens", "burst", "per_second")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self.per_second, self.burst = per_second, burst
        self._tokens, self._at = burst, now

    def configure(self, per_second: float, burst: float, now: float) -> None:
        """Another rate from now on; what was saved up stays, within the new burst."""
        self._fill(now)
        self.per_second, self.burst = per_second, burst
        self._tokens = min(self._tokens, burst)

    def opens_at(self, now: float, count: float = 1) -> float:
        """When there are so many tokens; of more than the burst, when it is full."""
        self._fill(now)
        wanted = min(count, self.burst)
        # Nearly one is one: a timer that fires a rounding error too early would only fire again.
        return now if self._tokens >= wanted - 1e-9 else now + (wanted - self._tokens) / self.per_second

    def available(self, now: float) -> int:
        """Whole tokens at `now`."""
        self._fill(now)
        return int(self._tokens + 1e-9)

    def take(self, now: float, count: float = 1) -> None:
        """Use tokens up; those beyond what is there are paid for later."""
        self._fill(now)
        self._tokens -= count

    def is_full(self, now: float) -> bool:
        """Whether a fresh bucket would be no different."""
        self._fill(now)
        return self._tokens >= self.burst

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.per_second)
            self._at = now
