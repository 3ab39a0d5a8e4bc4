"""What a load says of a server: nothing lost goes unseen, a copy is no receipt, a call that failed promises nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from dispatcher.cli import load as loads
from dispatcher.cli.load import Load, Published, Verdict, judge, publish_all, settle
from dispatcher.embedded.load_receiver import Receipt

LOAD = Load(endpoints=2, rate=100.0, seconds=1.0, settle_s=1.0)
MS = 1_000_000


def verdict_of(receipts: Sequence[Receipt], taken: Mapping[int, list[int]] | None = None) -> Verdict:
    """Of four events that were taken, and one call that failed: number 3 of endpoint 0."""
    published = Published(taken=dict(taken or {0: [0, 1, 2], 1: [0]}), refused=1, took_s=1.0)
    return judge(LOAD, published, receipts)


@pytest.mark.parametrize(
    ("received", "lost", "duplicated", "out_of_order"),
    [
        pytest.param([(0, 0), (1, 0), (0, 1), (0, 2)], 0, 0, 0, id="all in order, endpoints between one another"),
        pytest.param([(0, 0), (0, 2), (1, 0)], 1, 0, 0, id="a gap is a loss, not disorder"),
        pytest.param([(0, 0), (0, 1), (0, 0), (0, 2), (1, 0)], 0, 1, 0, id="a copy later is no disorder"),
        pytest.param([(0, 0), (0, 2), (0, 1), (1, 0)], 0, 0, 1, id="a first receipt after a later one's"),
        pytest.param([(1, 0), (0, 0), (0, 3), (0, 1), (0, 2)], 0, 0, 0, id="one whose call failed, at any place"),
        pytest.param([(0, 3), (0, 3)], 4, 0, 0, id="its copies say nothing either"),
        pytest.param([], 4, 0, 0, id="nothing came"),
    ],
)
def test_what_was_lost_came_twice_or_out_of_order(
    received: list[tuple[int, int]], lost: int, duplicated: int, out_of_order: int
) -> None:
    verdict = verdict_of([Receipt(endpoint, number, 0, MS) for endpoint, number in received])
    assert (verdict.lost, verdict.duplicated, verdict.out_of_order) == (lost, duplicated, out_of_order)
    assert verdict.received == verdict.published - lost
    assert verdict.is_kept is (lost == out_of_order == 0)


def test_latencies_are_of_first_receipts_and_never_beyond_what_was_measured() -> None:
    took_ms = [10] * 99 + [100]
    receipts = [Receipt(0, number, 0, took * MS) for number, took in enumerate(took_ms)]
    copies = [Receipt(0, number, 0, 60_000 * MS) for number in range(5)]
    verdict = verdict_of([*receipts, *copies], {0: list(range(100))})
    assert (verdict.p50_ms, verdict.duplicated) == (10, 5)
    assert verdict.p99_ms is not None
    assert 10 <= verdict.p99_ms <= 100
    assert (verdict_of(receipts[:1], {0: [0]}).p99_ms, verdict_of([], {0: [0]}).p99_ms) == (10, None)
    few = verdict_of([Receipt(0, 0, 0, 10 * MS), Receipt(0, 1, 0, 20 * MS)], {0: [0, 1]})
    assert few.p99_ms is not None
    assert few.p99_ms <= 20


def test_the_rate_of_receipts_ends_with_the_last_first_receipt() -> None:
    receipts = [Receipt(0, number, 0, (number + 1) * 10 * MS) for number in range(10)]
    late_copy = Receipt(0, 0, 0, 10_000 * MS)
    assert verdict_of([*receipts, late_copy], {0: list(range(10))}).received_per_s == pytest.approx(100.0)


async def test_waiting_for_webhooks_counts_on_those_of_failed_calls() -> None:
    """Else the webhook of a call that failed would stand for one that is still to come."""
    counts = iter([3, 3, 4])

    async def count() -> int:
        return next(counts)

    published = Published(taken={0: [0, 1, 2]}, refused=1)
    await settle(count, published.expected, settle_s=30.0)
    assert list(counts) == []


async def test_waiting_ends_where_nothing_comes() -> None:
    async def count() -> int:
        return 3

    async with asyncio.timeout(5):
        await settle(count, expected=4, settle_s=0.1)


async def test_a_load_is_bounded_and_a_refusing_server_is_not_hammered(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    async def refuse(endpoint: int, _data: Mapping[str, Any]) -> None:
        calls.append(endpoint)
        raise RuntimeError("no")

    load = Load(endpoints=2, rate=None, seconds=0.35, settle_s=1.0)
    published = await publish_all(refuse, load, (RuntimeError,))
    assert 2 * 2 <= len(calls) <= 2 * 4
    assert (published.count, published.refused) == (0, len(calls))

    async def take(_endpoint: int, _data: Mapping[str, Any]) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(loads, "EVENTS_MAX", 10)
    assert (await publish_all(take, load, (RuntimeError,))).count == 10


async def test_what_is_no_refusal_ends_the_load() -> None:
    async def break_down(_endpoint: int, _data: Mapping[str, Any]) -> None:
        raise ValueError("a bug")

    with pytest.raises(ExceptionGroup):
        await publish_all(break_down, LOAD, (RuntimeError,))
