"""How an endpoint fares: since when nothing succeeds, how many heads were exhausted, what subscribers were told. Pure.

well ──failure──▶ failing since … ──success──▶ well
                    │ too long, or too many exhausted heads in a row
                    ▼
                  to be disabled (by the owner, on record) ──EnableEndpoint──▶ well, trouble still told
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


class Trouble(enum.StrEnum):
    """What subscribers were told and what a success takes back."""

    DISABLED = "DISABLED"
    HALTED = "HALTED"


class DisableReason(enum.StrEnum):
    """Why an endpoint is disabled by itself; the beginning of its `state_reason`."""

    GONE = "GONE"
    FAILING = "FAILING"
    EXHAUSTED = "EXHAUSTED"


@dataclass(frozen=True, slots=True)
class DisablePolicy:
    """`failing_s` of nothing but failures, or `exhausted_heads` in a row. `off`: neither disables."""

    failing_s: float = 5 * 86_400.0
    exhausted_heads: int = 3
    off: bool = False


@dataclass(frozen=True, slots=True)
class StoredHealth:
    """What is on record of an endpoint that fares ill."""

    failing_since: datetime | None = None
    exhausted_heads: int = 0
    trouble: Trouble | None = None


@dataclass(slots=True)
class EndpointHealth:
    """Times are aware and of the wall clock, since they outlive a process. `has_recovered`: to be told of."""

    failing_since: datetime | None = None
    exhausted_heads: int = 0
    trouble: Trouble | None = None
    has_recovered: bool = False

    @classmethod
    def of(cls, stored: StoredHealth | None) -> EndpointHealth:
        """Go on from the record."""
        if stored is None:
            return cls()
        return cls(stored.failing_since, stored.exhausted_heads, stored.trouble)

    @property
    def is_well(self) -> bool:
        """Whether a success would change nothing."""
        return self.failing_since is None and not self.exhausted_heads and self.trouble is None

    def succeeded(self, *, is_halted: bool = False) -> None:
        """An attempt succeeded: all is well, save where another ordering key is still halted."""
        self.failing_since, self.exhausted_heads = None, 0
        if self.trouble is not None and not (is_halted and self.trouble is Trouble.HALTED):
            self.has_recovered, self.trouble = True, None

    def failed(self, now: datetime) -> None:
        """An attempt failed."""
        if self.failing_since is None:
            self.failing_since = now

    def exhausted(self) -> None:
        """A delivery that others wait for has no further attempt."""
        self.exhausted_heads += 1

    def enabled(self) -> None:
        """EnableEndpoint: the record starts anew; what was told stays until a success takes it back."""
        self.failing_since, self.exhausted_heads = None, 0

    def reason_to_disable(self, policy: DisablePolicy, now: datetime) -> DisableReason | None:
        """Whether it has been too long, or too often."""
        if policy.off:
            return None
        if self.exhausted_heads >= policy.exhausted_heads:
            return DisableReason.EXHAUSTED
        if self.failing_since is not None and (now - self.failing_since).total_seconds() >= policy.failing_s:
            return DisableReason.FAILING
        return None
