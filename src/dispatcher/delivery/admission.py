"""Whether an endpoint's next attempt may begin, and to which of its URLs; pure, monotonic seconds are passed in.

An admission outlives the lanes of its endpoint: a bucket that were made anew with each of them would never be empty.

    opens_at = latest of (hold by Retry-After or for the egress proxy, rate limit, throttle, catch-up, the earliest of
    the circuits)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from dispatcher.bucket import TokenBucket
from dispatcher.delivery.circuit import Circuit, CircuitPolicy, CircuitState, Transition
from dispatcher.delivery.rate import Throttle, ThrottlePolicy
from dispatcher.model import CatchUp
from dispatcher.policy import ExponentialBackoff, RateLimit

SLOW_DOWN = frozenset({429, 503})
"""The statuses by which a receiver asks for a lower rate (RFC 6585 section 4, RFC 9110 section 15.6.4)."""

PROXY_FORGOTTEN_S = 600.0
"""So long after it failed an attempt, nothing is known of the egress proxy any more."""
PROXY_WAIT_MAX_S = 300.0
"""The longest wait for the egress proxy, whatever the settings say: shorter than it takes to be forgotten, and than
what was seen of it holds (`app.EVIDENCE_MAX_S`)."""
TRIAL_MAX_S = 60.0
"""While the egress proxy fails, no attempt waits longer for the end of another one, which may have been lost."""


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """What one revision of an endpoint says; `urls` are the endpoint's and its fallbacks, in this order.

    `proxy_waits` bound the waits for an egress proxy that fails: the service's own, whatever the endpoint says.
    """

    urls: tuple[str, ...]
    rate_limit: RateLimit | None = None
    circuit: CircuitPolicy = CircuitPolicy()  # noqa: RUF009 -- frozen
    throttle: ThrottlePolicy = ThrottlePolicy()  # noqa: RUF009 -- frozen
    proxy_waits: ExponentialBackoff = ExponentialBackoff(1.0, 60.0, 2.0)  # noqa: RUF009 -- frozen
    catch_ups: tuple[CatchUp, ...] = ()


@dataclass(frozen=True, slots=True)
class CircuitChange:
    """A circuit that has opened or closed."""

    url_index: int
    transition: Transition


@dataclass(slots=True)
class _CatchUpBucket:
    until: datetime
    bucket: TokenBucket


@dataclass(slots=True)
class Admission:
    """The gate of one endpoint's lanes (`lane_types.Gate`). `is_shut`: nothing begins; its setter ends that."""

    policy: AdmissionPolicy
    is_shut: bool = False
    _hold_until: float = -math.inf
    _proxy_failing_since: float | None = None
    _proxy_failed_at: float = -math.inf
    _trial_until: float = -math.inf
    _bucket: TokenBucket | None = None
    _catch_ups: list[_CatchUpBucket] = field(default_factory=list)
    _circuits: dict[str, Circuit] = field(default_factory=dict)
    _throttle: Throttle = field(init=False)
    _first: Circuit = field(init=False)

    def __post_init__(self) -> None:
        self._throttle = Throttle(self.policy.throttle)
        self._first = Circuit(self.policy.circuit)

    def configure(self, policy: AdmissionPolicy, now: float) -> None:
        """Use what the endpoint says now. Circuits stay with their URLs, tokens within the new bounds; what a receiver
        asked for ends with its URL."""
        if policy.urls[0] != self.policy.urls[0]:
            self._hold_until, self._throttle = -math.inf, Throttle(policy.throttle)
        self.policy = policy
        known = self._circuits
        self._circuits = {url: known.get(url) or Circuit(policy.circuit) for url in policy.urls}
        self._first = self._circuits[policy.urls[0]]
        for circuit in self._circuits.values():
            circuit.configure(policy.circuit)
        limit = policy.rate_limit
        if limit is None:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = TokenBucket(limit.per_second, limit.burst, now)
        else:
            self._bucket.configure(limit.per_second, limit.burst, now)
        if [(known.until, known.bucket.per_second) for known in self._catch_ups] != [
            (catch_up.until, catch_up.per_second) for catch_up in policy.catch_ups
        ]:
            self._catch_ups = [_CatchUpBucket(c.until, TokenBucket(c.per_second, 1, now)) for c in policy.catch_ups]

    def try_now(self, now: float) -> None:
        """An operator asks for an attempt: neither a receiver's Retry-After nor an open circuit makes it wait."""
        self._hold_until = -math.inf
        for circuit in self._circuits.values():
            circuit.probe_now(now)

    @property
    def throttled_per_s(self) -> float | None:
        """The rate that 429 and 503 have brought it down to."""
        return self._throttle.per_second

    @property
    def open_circuits(self) -> list[tuple[int, Circuit]]:
        """The circuits that are not closed, with the index of their URL."""
        circuits = [(i, self._circuits[url]) for i, url in enumerate(self.policy.urls)]
        return [(i, circuit) for i, circuit in circuits if circuit.state is not CircuitState.CLOSED]

    def is_at_rest(self, now: float) -> bool:
        """Whether a fresh one would be no different."""
        return (
            not self.is_shut
            and self._hold_until <= now
            and not self.is_proxy_failing(now)
            and (self._bucket is None or self._bucket.is_full(now))
            and self._throttle.per_second is None
            and not self.open_circuits
            and not self._catch_ups
        )

    def opens_at(self, now: float, row_time: datetime) -> float:
        """When an attempt for a row of that time may begin; inf while it is shut."""
        if self._is_calm(now):
            return now
        if self.is_shut:
            return math.inf
        at = max(self._hold_until, self._throttle.opens_at(now), self._circuits_open_at(now))
        if self._bucket is not None:
            at = max(at, self._bucket.opens_at(now))
        for catch_up in self._catch_ups:
            if row_time <= catch_up.until:
                at = max(at, catch_up.bucket.opens_at(now))
        return at

    def _is_calm(self, now: float) -> bool:
        """Nothing holds an attempt at the first URL back: what nearly always is so, asked in one go."""
        return (
            self._first.state is CircuitState.CLOSED
            and self._bucket is None
            and not self._throttle.is_on
            and self._hold_until <= now
            and not self._catch_ups
            and not self.is_shut
        )

    def _circuits_open_at(self, now: float) -> float:
        first = self._circuits[self.policy.urls[0]].opens_at(now)
        if first <= now or len(self._circuits) == 1:
            return first
        return min(circuit.opens_at(now) for circuit in self._circuits.values())

    def is_ours(self, now: float) -> bool:
        """Whether what keeps an attempt back is of our own house."""
        return self.is_proxy_failing(now)

    def begin(self, now: float, row_time: datetime) -> int:
        """An attempt begins: the index of the URL it goes to, the first whose circuit lets it."""
        self._throttle.begin(now)
        if self._proxy_failing_since is not None and self.is_proxy_failing(now):
            self._trial_until = self._hold_until = now + TRIAL_MAX_S
        if self._first.state is CircuitState.CLOSED and self._bucket is None and not self._catch_ups:
            return 0
        if self._bucket is not None:
            self._bucket.take(now)
        for catch_up in self._catch_ups:
            if row_time <= catch_up.until:
                catch_up.bucket.take(now)
        index = self._choose(now)
        self._circuits[self.policy.urls[index]].begin(now)
        return index

    def _choose(self, now: float) -> int:
        for index, url in enumerate(self.policy.urls):
            if self._circuits[url].opens_at(now) <= now:
                return index
        return 0

    def ended(
        self, now: float, url: str, *, failed: bool, status_code: int | None, hold_s: float | None
    ) -> Sequence[CircuitChange]:
        """An attempt at `url` has ended. `hold_s`: the receiver's Retry-After, clamped, if it sent one."""
        if self._proxy_failing_since is not None:
            self._proxy_failing_since = None
            self._end_trial()
        if not failed:
            if self._throttle.is_on:
                self._throttle.succeeded(now)
        elif status_code in SLOW_DOWN:
            limit = self.policy.rate_limit
            self._throttle.slow_down(now, None if limit is None else limit.per_second)
            if hold_s is not None:
                self._hold_until = max(self._hold_until, now + hold_s)
        circuit = self._circuits.get(url)
        if circuit is None:
            return ()  # the endpoint has other URLs by now
        transition = circuit.ended(now, failed=failed)
        return () if transition is None else (CircuitChange(self.policy.urls.index(url), transition),)

    def proxy_failed(self, now: float, draw: float) -> float:
        """The egress proxy failed an attempt, which says nothing of the endpoint: nothing begins for as many seconds as
        are returned, and then one attempt at a time. They are random, up to as long again as it has been failing;
        `draw` in [0, 1)."""
        if self._proxy_failing_since is None or not self.is_proxy_failing(now):
            self._proxy_failing_since = now
        self._proxy_failed_at = now
        self._end_trial()
        waits = self.policy.proxy_waits
        longest_s = min(waits.max_s, PROXY_WAIT_MAX_S)
        wait_s = draw * min(max(waits.min_s, now - self._proxy_failing_since), longest_s)
        self._hold_until = max(self._hold_until, now + wait_s)
        return wait_s

    def is_proxy_failing(self, now: float) -> bool:
        """Whether the last attempt failed by the egress proxy, and not long ago: where nothing is left to be sent,
        nobody hears that it works again."""
        return self._proxy_failing_since is not None and now - self._proxy_failed_at <= PROXY_FORGOTTEN_S

    def _end_trial(self) -> None:
        """The attempt that others waited for has ended."""
        if self._hold_until == self._trial_until:
            self._hold_until = -math.inf

    def has_another_url(self, now: float, url: str) -> bool:
        """Whether the circuit of `url` is open and another one lets an attempt begin now."""
        circuit = self._circuits.get(url)
        if circuit is None or circuit.state is CircuitState.CLOSED:
            return False
        return any(known.opens_at(now) <= now for other, known in self._circuits.items() if other != url)
