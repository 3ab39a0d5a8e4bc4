"""What was published and what arrived, judged from outside: no sequence header of the service is looked at.

One publisher writes down its events in the order in which they were acknowledged to it; the receiver writes down each
request whose signature it has verified. Nothing here does I/O, reads a clock or needs a lock: one event loop calls it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from dispatcher.model import OrderingMode

HISTORY_MAX = 20_000
"""Accepted events remembered per endpoint, to tell a duplicate from an event never heard of."""
LATENCIES_MAX = 100_000
"""Latencies kept exactly; above, a uniform sample of this many."""
EARLY_MAX = 20_000
"""Receipts per endpoint that may wait for their acknowledgement to be written down."""


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """Counts since the start. A delivery is one event at one endpoint, a request is one attempt that arrived."""

    published: int
    """Events acknowledged to the publisher."""
    delivered: int
    """Of these, events accepted by every endpoint they are owed to."""
    verified: int
    """Of these, events no request of which failed the verification."""
    deliveries: int
    """Deliveries accepted."""
    missing: int
    """Deliveries owed and not accepted yet."""
    unverified: int
    """Requests refused for their signature."""
    duplicates: int
    """Requests for a delivery that had been accepted before."""
    out_of_order: int
    """Deliveries whose first request came before the one they had to wait for was accepted."""
    retried: int
    """Requests that said to be a repeated attempt."""
    unexpected: int
    """Deliveries that arrived and of whose acknowledgement the publisher has not heard (yet)."""
    p50_ms: float | None
    p99_ms: float | None
    """Publish to acceptance, in milliseconds; None before the first."""

    @property
    def is_clean(self) -> bool:
        """Everything published has arrived, verified and in order."""
        return self.delivered == self.verified == self.published and not (
            self.missing or self.unverified or self.out_of_order
        )


@dataclass(slots=True)
class _Event:
    """An acknowledged event that some endpoint still has to accept."""

    sent_s: float
    owed_to: set[str]


@dataclass(slots=True)
class _Endpoint:
    """One endpoint's book. Positions number its requests, so they tell what came first."""

    mode: OrderingMode
    position: int = 0
    accepted: dict[str, tuple[int, float]] = field(default_factory=dict)  # event -> position, time of acceptance
    first_seen: dict[str, int] = field(default_factory=dict)  # event, not judged yet -> position of its first request
    predecessors: dict[str, str | None] = field(default_factory=dict)  # acknowledged event, not judged yet -> the last
    owed: set[str] = field(default_factory=set)  # acknowledged, not accepted
    early: set[str] = field(default_factory=set)  # received, not acknowledged
    last_by_key: dict[str, str] = field(default_factory=dict)

    def key_of(self, ordering_key: str) -> str | None:
        """What the endpoint's order holds within; None where there is none."""
        match self.mode:
            case OrderingMode.ORDERED:
                return ""
            case OrderingMode.ORDERED_BY_KEY:
                return ordering_key
            case OrderingMode.UNORDERED:
                return None
            case _:
                assert_never(self.mode)

    def follow(self, event_id: str, ordering_key: str) -> None:
        """Write down after which event this one has to come."""
        key = self.key_of(ordering_key)
        self.predecessors[event_id] = None if key is None else self.last_by_key.get(key)
        if key is not None:
            self.last_by_key[key] = event_id

    def judge(self, event_id: str) -> bool:
        """False when the event is now known to have come too early. Undecided until both its acknowledgement and its
        first request are known; then it is judged once."""
        if event_id not in self.predecessors or event_id not in self.first_seen:
            return True
        predecessor = self.predecessors.pop(event_id)
        first_seen = self.first_seen.pop(event_id)
        if predecessor is None:
            return True
        if predecessor in self.owed:
            return False
        position, _ = self.accepted.get(predecessor, (0, 0.0))  # forgotten means accepted long ago
        return position < first_seen


class OrderLedger:
    """The books of one publisher and its endpoints.

    Times are seconds of one monotonic clock. The order is judged more strictly than the service promises: an event
    must not even be tried before the one it follows was accepted (dead letters do not occur in the demo).
    """

    def __init__(
        self,
        *,
        history_max: int = HISTORY_MAX,
        latencies_max: int = LATENCIES_MAX,
        chance: random.Random | None = None,
    ) -> None:
        self._history_max = history_max
        self._latencies = LatencySample(latencies_max, chance or random.Random())  # noqa: S311 - a sample, no secret
        self._endpoints: dict[str, _Endpoint] = {}
        self._events: dict[str, _Event] = {}
        self._tainted: dict[str, None] = {}
        self._published = self._delivered = self._verified = self._deliveries = 0
        self._unverified = self._duplicates = self._out_of_order = self._retried = 0
        self.first_accepted_s: float | None = None
        self.last_accepted_s: float | None = None

    @property
    def deliveries(self) -> int:
        """Deliveries accepted, without the cost of all the totals."""
        return self._deliveries

    @property
    def missing(self) -> int:
        """Deliveries owed and not accepted yet."""
        return sum(len(book.owed) for book in self._endpoints.values())

    def add_endpoint(self, endpoint: str, mode: OrderingMode = OrderingMode.ORDERED) -> None:
        """Open the book of an endpoint; known ones keep theirs."""
        self._endpoints.setdefault(endpoint, _Endpoint(mode))

    def acknowledged(self, event_id: str, endpoints: Iterable[str], *, sent_s: float, ordering_key: str = "") -> None:
        """The publisher was told that an event is stored, which it had sent at `sent_s`. Call it in the order of the
        acknowledgements. `endpoints` are all that have to receive it; an id comes once."""
        owed_to = set(endpoints)
        self._published += 1
        self._events[event_id] = _Event(sent_s, owed_to)
        for name in sorted(owed_to):
            self._owe(name, event_id, ordering_key)
        self._settle(event_id)

    def _owe(self, name: str, event_id: str, ordering_key: str) -> None:
        endpoint = self._endpoints[name]
        endpoint.follow(event_id, ordering_key)
        endpoint.early.discard(event_id)
        endpoint.owed.add(event_id)
        if event_id in endpoint.accepted:
            self._fulfil(name, event_id)
        self._out_of_order += not endpoint.judge(event_id)

    def received(self, endpoint: str, event_id: str, *, at_s: float, accepted: bool, attempt: int) -> None:
        """A request with a good signature arrived; `accepted` says that it is answered with 2xx."""
        book = self._endpoints[endpoint]
        book.position += 1
        self._retried += attempt > 1
        if event_id in book.accepted:
            self._duplicates += 1
            return
        if event_id not in book.owed and event_id not in book.early:
            book.early.add(event_id)
            self._forget_early(book)
        if event_id in book.early or event_id in book.predecessors:
            book.first_seen.setdefault(event_id, book.position)
        self._out_of_order += not book.judge(event_id)
        if accepted:
            self._accept(endpoint, event_id, at_s)

    def _accept(self, endpoint: str, event_id: str, at_s: float) -> None:
        book = self._endpoints[endpoint]
        book.accepted[event_id] = (book.position, at_s)
        self._deliveries += 1
        self.last_accepted_s = at_s
        if self.first_accepted_s is None:
            self.first_accepted_s = at_s
        if event_id in book.owed:
            self._fulfil(endpoint, event_id)
            self._settle(event_id)
        while len(book.accepted) > self._history_max:
            del book.accepted[next(iter(book.accepted))]

    def _fulfil(self, endpoint: str, event_id: str) -> None:
        book, event = self._endpoints[endpoint], self._events[event_id]
        book.owed.discard(event_id)
        event.owed_to.discard(endpoint)
        _, at_s = book.accepted[event_id]
        self._latencies.add(max(0.0, at_s - event.sent_s))

    def _settle(self, event_id: str) -> None:
        if self._events[event_id].owed_to:
            return
        del self._events[event_id]
        self._delivered += 1
        self._verified += event_id not in self._tainted

    def _forget_early(self, book: _Endpoint) -> None:
        """Bound what a former run's backlog may take: the oldest unknown receipt is let go."""
        if len(book.early) <= EARLY_MAX:
            return
        oldest = next(event_id for event_id in book.first_seen if event_id in book.early)
        book.early.discard(oldest)
        del book.first_seen[oldest]

    def refused(self, event_id: str) -> None:
        """A request for this event, or what claims to be one, failed the verification."""
        self._unverified += 1
        self._tainted[event_id] = None
        while len(self._tainted) > self._history_max:
            del self._tainted[next(iter(self._tainted))]

    def totals(self) -> LedgerTotals:
        """The counts of this moment."""
        books = self._endpoints.values()
        return LedgerTotals(
            published=self._published,
            delivered=self._delivered,
            verified=self._verified,
            deliveries=self._deliveries,
            missing=self.missing,
            unverified=self._unverified,
            duplicates=self._duplicates,
            out_of_order=self._out_of_order,
            retried=self._retried,
            unexpected=sum(len(book.early) for book in books),
            p50_ms=self._latencies.quantile_ms(0.50),
            p99_ms=self._latencies.quantile_ms(0.99),
        )


class LatencySample:
    """Exact up to `size_max` values, then a uniform random sample of that size (Vitter's algorithm R)."""

    def __init__(self, size_max: int, chance: random.Random) -> None:
        self._values_s: list[float] = []
        self._size_max = size_max
        self._seen = 0
        self._chance = chance

    def add(self, value_s: float) -> None:
        self._seen += 1
        if len(self._values_s) < self._size_max:
            self._values_s.append(value_s)
            return
        place = self._chance.randrange(self._seen)
        if place < self._size_max:
            self._values_s[place] = value_s

    def quantile_ms(self, share: float) -> float | None:
        """The nearest-rank quantile in milliseconds, None without values."""
        if not self._values_s:
            return None
        rank = max(1, math.ceil(share * len(self._values_s)))
        return sorted(self._values_s)[rank - 1] * 1000
