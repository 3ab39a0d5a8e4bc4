"""The arithmetic of recent deliveries: rates, shares, percentiles, time to drain; pure.

Of an endpoint with more attempts than are read only the latest are known, so each endpoint has a span of its own that
is known, save retries further back. Rates of several endpoints add up; shares and percentiles weigh each attempt by the
rate it stands for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SPAN_MIN_S = 0.001
"""No rate is reckoned over less: senders' clocks and the database's differ."""


@dataclass(frozen=True, slots=True)
class AttemptRead:
    """One attempt as statistics need it."""

    seq: int
    duration_s: float
    succeeded: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """What was read of one endpoint: its attempts since `span_s` ago, all of them or, where `truncated`, those of its
    highest sequences. `committed` deliveries came in since `committed_span_s` ago."""

    span_s: float
    truncated: bool
    attempts: Sequence[AttemptRead]
    payload_bytes: Sequence[int]
    committed: int
    committed_span_s: float

    @property
    def delivered(self) -> frozenset[int]:
        """The sequences that were delivered: a copy counts once."""
        return frozenset(attempt.seq for attempt in self.attempts if attempt.succeeded)

    @property
    def delivered_per_s(self) -> float:
        return len(self.delivered) / self.span_s

    @property
    def committed_per_s(self) -> float:
        return self.committed / self.committed_span_s


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of attempt durations, in seconds."""

    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class DeliveryStatistics:
    """What the samples of one or more endpoints come to. Counts are of what was read; without attempts there are no
    percentiles, and the ratio is 0."""

    window_s: float
    truncated: bool
    endpoint_count: int
    attempt_count: int
    succeeded_count: int
    success_ratio: float
    attempts_per_s: float
    delivered_per_s: float
    committed_per_s: float
    durations: Percentiles | None
    payload_bytes_p50: int
    payload_bytes_max: int


def summarize(samples: Sequence[Sample], window_s: float, *, truncated: bool = False) -> DeliveryStatistics:
    """Samples together. `truncated`: there are further endpoints, of which nothing was read."""
    attempts_per_s = sum(len(sample.attempts) / sample.span_s for sample in samples)
    succeeded_per_s = sum(sum(a.succeeded for a in sample.attempts) / sample.span_s for sample in samples)
    durations = [(a.duration_s, 1 / sample.span_s) for sample in samples for a in sample.attempts]
    payloads = [(size, 1 / sample.span_s) for sample in samples for size in sample.payload_bytes]
    return DeliveryStatistics(
        window_s=max((sample.span_s for sample in samples), default=window_s),
        truncated=truncated or any(sample.truncated for sample in samples),
        endpoint_count=len(samples),
        attempt_count=len(durations),
        succeeded_count=sum(a.succeeded for sample in samples for a in sample.attempts),
        success_ratio=succeeded_per_s / attempts_per_s if attempts_per_s else 0.0,
        attempts_per_s=attempts_per_s,
        delivered_per_s=sum(sample.delivered_per_s for sample in samples),
        committed_per_s=sum(sample.committed_per_s for sample in samples),
        durations=Percentiles(*percentiles(durations, (0.5, 0.9, 0.99))) if durations else None,
        payload_bytes_p50=int(percentiles(payloads, (0.5,))[0]) if payloads else 0,
        payload_bytes_max=max((size for size, _ in payloads), default=0),
    )


def percentiles(weighted: Iterable[tuple[float, float]], shares: Sequence[float]) -> list[float]:
    """For each share, ascending, the least value that this share of the weight does not exceed: one that was measured,
    not one in between. There must be at least one value."""
    ordered = sorted(weighted)
    total = sum(weight for _, weight in ordered)
    found: list[float] = []
    reached = 0.0
    for value, weight in ordered:
        reached += weight
        # Sums of fractions end a little below what they stand for.
        while len(found) < len(shares) and reached >= shares[len(found)] * total * (1 - 1e-9):
            found.append(value)
    return found


def time_to_drain_s(due: int, delivered_per_s: float, committed_per_s: float) -> float | None:
    """How long until `due` deliveries are made while others come in; None where it does not get fewer."""
    if due <= 0:
        return 0.0
    net_per_s = delivered_per_s - committed_per_s
    return due / net_per_s if net_per_s > 0 else None


def expected_wait_s(backlog: int, delivered_per_s: float) -> float | None:
    """How long what comes in now waits behind the backlog; None where nothing is delivered."""
    if backlog <= 0:
        return 0.0
    return backlog / delivered_per_s if delivered_per_s > 0 else None
