"""How much of everything: short enough for ten minutes, or as it is published."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Sizes:
    """Counts and times of one run."""

    repeat: int
    posts: int
    endpoints: int
    events_per_endpoint: int
    shared_per_endpoint: int = 100
    events: int = 50_000
    calls: int = 5_000
    latency_s: int = 4
    held_s: int = 60
    backlog: int = 300_000
    idle_endpoints: int = 100_000
    idle_s: int = 6
    fan_out: int = 10_000
    growth: int = 200_000

    def repeated(self, times: int) -> Sizes:
        """The same, with another number of repetitions."""
        return replace(self, repeat=times)


SHORT = Sizes(repeat=3, posts=4_000, endpoints=1000, events_per_endpoint=25)
FULL = Sizes(
    repeat=3,
    posts=30_000,
    endpoints=1000,
    events_per_endpoint=100,
    events=300_000,
    calls=30_000,
    latency_s=20,
    held_s=600,
    backlog=5_000_000,
    idle_s=60,
    growth=1_000_000,
)
GUARD = Sizes(repeat=1, posts=6_000, endpoints=300, events_per_endpoint=60)
