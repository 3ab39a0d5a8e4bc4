"""A load on a webhook server, and what became of it: published in order per endpoint, at a rate; lost, twice, late."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dispatcher.embedded.load_receiver import Receipt

PAD_BYTES = 360
"""With it an event's data has about 400 bytes."""
POLL_S = 0.2
ERRORS_MAX = 3
EVENTS_MAX = 1_000_000
"""Calls of one load; it ends there, though its time is not over."""
REFUSED_PAUSE_S = 0.1
"""What a publisher waits after a call that failed, so that a service in trouble is not hammered."""

Publish = Callable[[int, Mapping[str, Any]], Awaitable[None]]
"""Publishes this data to the endpoint of that number, and returns once the server has taken it."""


@dataclass(frozen=True, slots=True)
class Load:
    """`rate` events a second in all (None: as fast as the server takes them), for `seconds`, to `endpoints` in turn.

    So long without a webhook as `settle_s` is the end, though some have not come.
    """

    endpoints: int
    rate: float | None
    seconds: float
    settle_s: float


@dataclass(slots=True)
class Published:
    """By endpoint the numbers that were taken. `refused` are calls that failed; their webhooks may come nonetheless."""

    taken: dict[int, list[int]]
    begun_ns: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def count(self) -> int:
        """Events that were taken."""
        return sum(map(len, self.taken.values()))

    @property
    def expected(self) -> int:
        """Events whose webhooks may come: with all of them here there is nothing to wait for."""
        return self.count + self.refused


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the events that the server had taken; of calls that failed nothing is said but their number.

    Times in ms from the call's start to the first receipt; rates from the first call to the last answer or receipt.
    """

    offered_per_s: float | None
    published: int
    refused: int
    published_per_s: float
    received: int
    received_per_s: float
    lost: int
    duplicated: int
    out_of_order: int
    p50_ms: float | None
    p99_ms: float | None

    @property
    def is_kept(self) -> bool:
        """Whether what was promised was kept; copies are allowed."""
        return self.lost == self.out_of_order == 0


async def publish_all(publish: Publish, load: Load, refusals: tuple[type[Exception], ...]) -> Published:
    """One publisher for each endpoint, which waits for the answer before the next event: so there is an order to keep.

    A late one does not wait for its turn. A call that raises one of `refusals` is counted and not repeated.
    """
    published = Published(taken={endpoint: [] for endpoint in range(load.endpoints)}, begun_ns=time.monotonic_ns())
    start_s = time.monotonic()
    tickets = itertools.count()

    async def work(endpoint: int) -> None:
        for number in itertools.count():
            due_s = start_s if load.rate is None else start_s + (number * load.endpoints + endpoint) / load.rate
            if max(due_s, time.monotonic()) >= start_s + load.seconds or next(tickets) >= EVENTS_MAX:
                return
            await asyncio.sleep(due_s - time.monotonic())
            data = {"number": number, "sent_ns": time.monotonic_ns(), "note": "x" * PAD_BYTES}
            try:
                await publish(endpoint, data)
            except refusals as error:
                published.refused += 1
                published.errors = [*published.errors, str(error) or repr(error)][:ERRORS_MAX]
                await asyncio.sleep(REFUSED_PAUSE_S)
            else:
                published.taken[endpoint].append(number)

    async with asyncio.TaskGroup() as group:
        for endpoint in range(load.endpoints):
            group.create_task(work(endpoint))
    published.took_s = time.monotonic() - start_s
    return published


async def settle(count: Callable[[], Awaitable[int]], expected: int, settle_s: float) -> None:
    """Wait until so many different events have come, or none for `settle_s`."""
    known, last_s = await count(), time.monotonic()
    while known < expected and time.monotonic() < last_s + settle_s:
        await asyncio.sleep(POLL_S)
        if (now := await count()) > known:
            known, last_s = now, time.monotonic()


def judge(load: Load, published: Published, receipts: Sequence[Receipt]) -> Verdict:
    """Of `receipts` in the order of arrival."""
    taken = {(endpoint, number) for endpoint, numbers in published.taken.items() for number in numbers}
    ours = [receipt for receipt in receipts if (receipt.endpoint, receipt.number) in taken]
    first: dict[tuple[int, int], Receipt] = {}
    for receipt in ours:
        first.setdefault((receipt.endpoint, receipt.number), receipt)
    firsts = list(first.values())
    last_ns = firsts[-1].received_ns if firsts else published.begun_ns
    p50_ms, p99_ms = _percentiles([(receipt.received_ns - receipt.sent_ns) / 1e6 for receipt in firsts])
    return Verdict(
        offered_per_s=load.rate,
        published=published.count,
        refused=published.refused,
        published_per_s=published.count / published.took_s,
        received=len(firsts),
        received_per_s=len(firsts) / max(1, last_ns - published.begun_ns) * 1e9,
        lost=len(taken) - len(firsts),
        duplicated=len(ours) - len(firsts),
        out_of_order=_out_of_order(firsts),
        p50_ms=p50_ms,
        p99_ms=p99_ms,
    )


def _out_of_order(firsts: Sequence[Receipt]) -> int:
    """How many came after a later one of their endpoint."""
    highest: dict[int, int] = {}
    late = 0
    for receipt in firsts:
        before = highest.get(receipt.endpoint, -1)
        late += receipt.number < before
        highest[receipt.endpoint] = max(receipt.number, before)
    return late


def _percentiles(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The median and the 99th, never outside of what was measured; None for nothing."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (None, None)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]
