"""The ledger: what counts as delivered, repeated, missing and out of order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.embedded import ledger as module
from dispatcher.embedded.ledger import LatencySample, OrderLedger
from dispatcher.model import OrderingMode


def ledger_of(*endpoints: str, mode: OrderingMode = OrderingMode.ORDERED, **bounds: int) -> OrderLedger:
    ledger = OrderLedger(chance=random.Random(1), **bounds)
    for endpoint in endpoints:
        ledger.add_endpoint(endpoint, mode)
    return ledger


def ack(ledger: OrderLedger, *events: str, to: tuple[str, ...] = ("a",), key: str = "") -> None:
    for event in events:
        ledger.acknowledged(event, to, sent_s=0.0, ordering_key=key)


def arrive(ledger: OrderLedger, *events: str, at: str = "a", accepted: bool = True, attempt: int = 1) -> None:
    for event in events:
        ledger.received(at, event, at_s=1.0, accepted=accepted, attempt=attempt)


def test_events_in_order_are_delivered_and_clean() -> None:
    ledger = ledger_of("a", "b")
    ack(ledger, "1", "2", to=("a", "b"))
    arrive(ledger, "1", "2", at="a")
    assert (ledger.totals().delivered, ledger.totals().deliveries, ledger.totals().missing) == (0, 2, 2)
    assert not ledger.totals().is_clean
    arrive(ledger, "1", "2", at="b")
    totals = ledger.totals()
    assert (totals.published, totals.delivered, totals.verified, totals.deliveries) == (2, 2, 2, 4)
    assert (totals.missing, totals.duplicates, totals.out_of_order, totals.retried, totals.unexpected) == (0,) * 5
    assert totals.is_clean


def test_an_event_whose_predecessor_has_not_come_is_out_of_order() -> None:
    ledger = ledger_of("a")
    ack(ledger, "1", "2", "3")
    arrive(ledger, "2", "1", "3")
    assert ledger.totals().out_of_order == 1
    assert not ledger.totals().is_clean


def test_an_event_tried_while_its_predecessor_was_only_refused_with_500_is_out_of_order() -> None:
    ledger = ledger_of("a")
    ack(ledger, "1", "2")
    arrive(ledger, "1", accepted=False)
    arrive(ledger, "2")
    arrive(ledger, "1", attempt=2)
    assert ledger.totals().out_of_order == 1


def test_a_retry_is_counted_and_is_neither_duplicate_nor_out_of_order() -> None:
    ledger = ledger_of("a")
    ack(ledger, "1", "2")
    arrive(ledger, "1", accepted=False)
    arrive(ledger, "1", attempt=2)
    arrive(ledger, "2")
    totals = ledger.totals()
    assert (totals.retried, totals.duplicates, totals.out_of_order) == (1, 0, 0)
    assert totals.is_clean


def test_a_repeated_delivery_is_a_duplicate_and_nothing_else() -> None:
    ledger = ledger_of("a")
    ack(ledger, "1", "2")
    arrive(ledger, "1", "2", "1", "2")
    totals = ledger.totals()
    assert (totals.duplicates, totals.deliveries, totals.out_of_order) == (2, 2, 0)
    assert totals.is_clean


def test_a_receipt_before_its_acknowledgement_is_judged_when_that_is_known() -> None:
    ledger = ledger_of("a")
    arrive(ledger, "1", "2")
    assert ledger.totals().unexpected == 2
    ack(ledger, "1", "2")
    assert ledger.totals().is_clean
    assert ledger.totals().unexpected == 0


def test_early_receipts_in_the_wrong_order_are_found_out_by_the_acknowledgements() -> None:
    ledger = ledger_of("a")
    arrive(ledger, "2", "1")
    ack(ledger, "1", "2")
    assert ledger.totals().out_of_order == 1


def test_an_early_receipt_whose_predecessor_came_after_the_acknowledgement_is_out_of_order() -> None:
    ledger = ledger_of("a")
    arrive(ledger, "2")
    ack(ledger, "1", "2")
    arrive(ledger, "1")
    totals = ledger.totals()
    assert (totals.out_of_order, totals.missing) == (1, 0)


def test_each_endpoint_has_an_order_of_its_own() -> None:
    ledger = ledger_of("a", "b")
    ack(ledger, "1", to=("a",))
    ack(ledger, "2", to=("b",))
    arrive(ledger, "2", at="b")
    arrive(ledger, "1", at="a")
    assert ledger.totals().is_clean


def test_a_keyed_endpoint_is_ordered_within_keys_only() -> None:
    ledger = ledger_of("a", mode=OrderingMode.ORDERED_BY_KEY)
    ack(ledger, "x1", "x2", key="x")
    ack(ledger, "y1", key="y")
    arrive(ledger, "y1", "x2", "x1")
    assert ledger.totals().out_of_order == 1


def test_an_unordered_endpoint_is_never_out_of_order() -> None:
    ledger = ledger_of("a", mode=OrderingMode.UNORDERED)
    ack(ledger, "1", "2")
    arrive(ledger, "2", "1")
    assert ledger.totals().is_clean


def test_a_refused_signature_is_counted_and_its_event_is_never_verified() -> None:
    ledger = ledger_of("a")
    ack(ledger, "1", "2")
    ledger.refused("1")
    arrive(ledger, "1", "2")
    totals = ledger.totals()
    assert (totals.unverified, totals.delivered, totals.verified) == (1, 2, 1)
    assert not totals.is_clean


def test_latency_runs_from_the_sending_to_the_acceptance_whichever_is_written_down_first() -> None:
    ledger = ledger_of("a")
    ledger.acknowledged("1", ["a"], sent_s=1.0)
    ledger.received("a", "1", at_s=1.5, accepted=False, attempt=1)
    ledger.received("a", "1", at_s=3.0, accepted=True, attempt=2)
    ledger.received("a", "2", at_s=5.0, accepted=True, attempt=1)
    assert (ledger.totals().p50_ms, ledger.totals().p99_ms) == (2000.0, 2000.0)
    ledger.acknowledged("2", ["a"], sent_s=1.0)
    assert (ledger.totals().p50_ms, ledger.totals().p99_ms) == (2000.0, 4000.0)


def test_memory_is_bounded_and_what_was_forgotten_still_counts_as_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EARLY_MAX", 5)
    ledger = ledger_of("a", history_max=3, latencies_max=4)
    for number in range(50):
        ack(ledger, f"{number}")
        arrive(ledger, f"{number}")
    assert ledger.totals().is_clean
    arrive(ledger, *(f"stray{number}" for number in range(50)), accepted=False)
    assert ledger.totals().unexpected == 5
    ack(ledger, "last")
    arrive(ledger, "last")
    assert ledger.totals().is_clean
    book = ledger._endpoints["a"]
    assert len(book.accepted) <= 3
    assert len(book.first_seen) <= 5
    assert not book.predecessors
    assert not ledger._events


def test_quantiles_are_nearest_rank_and_a_full_sample_stays_representative() -> None:
    sample = LatencySample(100, random.Random(1))
    assert sample.quantile_ms(0.5) is None
    for value in range(1, 101):
        sample.add(value / 1000)
    assert (sample.quantile_ms(0.5), sample.quantile_ms(0.99)) == (pytest.approx(50), pytest.approx(99))
    for _ in range(10_000):
        sample.add(9.0)
    assert len(sample._values_s) == 100
    assert sample.quantile_ms(0.5) == pytest.approx(9000)


@given(count=st.integers(1, 12), seed=st.integers(0, 2**32), swap=st.booleans())
def test_any_mix_of_acks_receipts_and_retries_is_clean_exactly_when_the_order_was_kept(
    count: int, seed: int, swap: bool
) -> None:
    chance = random.Random(seed)
    ledger = ledger_of("a")
    receipts = [f"{number}" for number in range(count)]
    if swap and count > 1:
        place = chance.randrange(count - 1)
        receipts[place], receipts[place + 1] = receipts[place + 1], receipts[place]
    acks = [f"{number}" for number in range(count)]
    while receipts or acks:
        if acks and (not receipts or chance.random() < 0.5):
            ack(ledger, acks.pop(0))
        else:
            event = receipts.pop(0)
            failures = chance.randrange(3)
            for attempt in range(1, failures + 1):
                arrive(ledger, event, accepted=False, attempt=attempt)
            arrive(ledger, event, attempt=failures + 1)
            arrive(ledger, *([event] if chance.random() < 0.2 else []), attempt=failures + 1)
    totals = ledger.totals()
    assert totals.is_clean == (not (swap and count > 1))
    assert (totals.delivered, totals.missing, totals.unexpected) == (count, 0, 0)
