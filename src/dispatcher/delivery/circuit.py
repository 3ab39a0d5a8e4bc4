"""One URL's circuit; pure, times are monotonic seconds that are passed in.

           failure ratio over the window ≥ failure_ratio, of at least attempts_min
CLOSED ──────────────────────────────────────────────────────────────────────────────▶ OPEN ◀─────────────┐
  ▲                                                                                     │ open_s passed,   │
  │                                                                                     │ an attempt begins│
  │                              a success                                              ▼                  │
  └─────────────────────────────────────────────────────────────────────────────── HALF_OPEN ── a failure ─┘
                                                                      (a probe without an answer: another one
                                                                       after open_s)
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

BUCKETS = 10
"""The window is counted in so many parts."""


class CircuitState(enum.StrEnum):
    """CLOSED lets all attempts begin, OPEN none, HALF_OPEN has let one."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


class Transition(enum.StrEnum):
    """What is worth telling: an outage begins, and it is over. A probe that fails changes nothing of that."""

    OPENED = "OPENED"
    CLOSED = "CLOSED"


@dataclass(frozen=True, slots=True)
class CircuitPolicy:
    """When it opens and for how long; `failure_ratio` in (0, 1]. `off`: it never opens."""

    failure_ratio: float = 0.5
    window_s: float = 60.0
    attempts_min: int = 5
    open_s: float = 30.0
    off: bool = False


class Circuit:
    """`begin` and `ended` bracket an attempt; results of attempts that began before it opened may come at any time."""

    __slots__ = ("_attempts", "_bucket", "_failures", "_policy", "_probe_at", "opened_at", "state")

    def __init__(self, policy: CircuitPolicy) -> None:
        self._policy = policy
        self.state = CircuitState.CLOSED
        self.opened_at = 0.0
        self._probe_at = 0.0
        self._bucket = 0
        self._attempts = [0] * BUCKETS
        self._failures = [0] * BUCKETS

    @property
    def probe_at(self) -> float:
        """When the next attempt may begin; meaningless while CLOSED."""
        return self._probe_at

    def configure(self, policy: CircuitPolicy) -> None:
        """Use another policy from now on; what was counted stays. Switched off, it closes."""
        self._policy = policy
        if policy.off:
            self._close()

    def opens_at(self, now: float) -> float:
        """When an attempt may begin: `now` or before it means at once."""
        return now if self.state is CircuitState.CLOSED else self._probe_at

    def begin(self, now: float) -> None:
        """An attempt begins; one that `opens_at` allowed while not CLOSED is the probe."""
        if self.state is not CircuitState.CLOSED:
            self.state = CircuitState.HALF_OPEN
            self._probe_at = now + self._policy.open_s

    def probe_now(self, now: float) -> None:
        """Somebody asks for an attempt: an OPEN circuit lets its probe begin at once."""
        if self.state is CircuitState.OPEN:
            self._probe_at = min(self._probe_at, now)

    def ended(self, now: float, *, failed: bool) -> Transition | None:
        """An attempt has ended."""
        match self.state:
            case CircuitState.CLOSED:
                return self._count(now, failed=failed)
            case CircuitState.OPEN:
                return None  # it began before; the probe will tell
            case CircuitState.HALF_OPEN:
                if failed:
                    self.state, self._probe_at = CircuitState.OPEN, now + self._policy.open_s
                    return None
                self._close()
                return Transition.CLOSED

    def _count(self, now: float, *, failed: bool) -> Transition | None:
        if self._policy.off:
            return None
        self._turn(now)
        place = self._bucket % BUCKETS
        self._attempts[place] += 1
        if not failed:
            return None
        self._failures[place] += 1
        attempts, failures = sum(self._attempts), sum(self._failures)
        if attempts < self._policy.attempts_min or failures < self._policy.failure_ratio * attempts:
            return None
        self.state, self.opened_at, self._probe_at = CircuitState.OPEN, now, now + self._policy.open_s
        return Transition.OPENED

    def _turn(self, now: float) -> None:
        """Empty the parts of the window that are over."""
        bucket = int(now * BUCKETS / self._policy.window_s)
        if bucket == self._bucket:
            return
        for passed in range(max(self._bucket + 1, bucket - BUCKETS + 1), bucket + 1):
            self._attempts[passed % BUCKETS] = self._failures[passed % BUCKETS] = 0
        self._bucket = bucket

    def _close(self) -> None:
        self.state = CircuitState.CLOSED
        self._attempts, self._failures = [0] * BUCKETS, [0] * BUCKETS
