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
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def count(self) -> int:
        return sum(map(len, self.taken.values()))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the events that the server had taken. Times in ms from the call's start to the receipt."""

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
    published = Published(taken={endpoint: [] for endpoint in range(load.endpoints)})
    start_s = time.monotonic()

    async def work(endpoint: int) -> None:
        for number in itertools.count():
            due_s = start_s if load.rate is None else start_s + (number * load.endpoints + endpoint) / load.rate
            if max(due_s, time.monotonic()) >= start_s + load.seconds:
                return
            await asyncio.sleep(due_s - time.monotonic())
            data = {"number": number, "sent_ns": time.monotonic_ns(), "note": "x" * PAD_BYTES}
            try:
                await publish(endpoint, data)
            except refusals as error:
                published.refused += 1
                published.errors = [*published.errors, str(error) or repr(error)][:ERRORS_MAX]
            else:
                published.taken[endpoint].append(number)

    async with asyncio.TaskGroup() as group:
        for endpoint in range(load.endpoints):
            group.create_task(work(endpoint))
    published.took_s = time.monotonic() - start_s
    return published


async def settled(count: Callable[[], Awaitable[int]], expected: int, settle_s: float) -> float:
    """Wait until so many events have come, or none for `settle_s`; the monotonic time of the last one seen."""
    known, last_s = await count(), time.monotonic()
    while known < expected and time.monotonic() < last_s + settle_s:
        await asyncio.sleep(POLL_S)
        if (now := await count()) > known:
            known, last_s = now, time.monotonic()
    return last_s


def losses(published: Published, receipts: Sequence[Receipt]) -> tuple[int, int, int]:
    """How many were lost, came again, and came first after a later one of their endpoint had."""
    highest: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    duplicated = out_of_order = 0
    for receipt in receipts:
        if (receipt.endpoint, receipt.number) in seen:
            duplicated += 1
            continue
        seen.add((receipt.endpoint, receipt.number))
        before = highest.get(receipt.endpoint, -1)
        out_of_order += receipt.number < before
        highest[receipt.endpoint] = max(receipt.number, before)
    taken = {(endpoint, number) for endpoint, numbers in published.taken.items() for number in numbers}
    return len(taken - seen), duplicated, out_of_order


def judge(load: Load, published: Published, receipts: Sequence[Receipt], received_s: float) -> Verdict:
    """All of it; `received_s` is the time from the first call to the last receipt."""
    lost, duplicated, out_of_order = losses(published, receipts)
    latencies = [receipt.latency_ms for receipt in receipts]
    tails = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else None
    received = len(receipts) - duplicated
    return Verdict(
        offered_per_s=load.rate,
        published=published.count,
        refused=published.refused,
        published_per_s=published.count / published.took_s,
        received=received,
        received_per_s=received / received_s,
        lost=lost,
        duplicated=duplicated,
        out_of_order=out_of_order,
        p50_ms=tails[49] if tails else None,
        p99_ms=tails[98] if tails else None,
    )
