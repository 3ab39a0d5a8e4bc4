"""Lists of deliveries and attempts: every filter against a plain list of what there is, page by page under traffic."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from webhooks.v1 import delivery_pb2

from dispatcher.model import Attempt, DecisionKind, EndpointKey, Outcome
from dispatcher.store import attempts, endpoints
from tests.support.api import Api, event, refused
from tests.support.configured import decided

TYPES = ("order.paid", "order.refunded", "user.created")
NAMES = ("a", "b")
COUNT = 24


@dataclass(frozen=True)
class Made:
    """An attempt that the test put on record."""

    endpoint: str
    seq: int
    event_id: str
    type: str
    number: int
    outcome: Outcome
    status_code: int | None
    start: datetime

    @property
    def id(self) -> tuple[str, int, int]:
        return self.endpoint, self.seq, self.number


def type_of(seq: int) -> str:
    return TYPES[seq % 3]


def fate(seq: int) -> list[tuple[Outcome, int | None]]:
    """The attempts of a delivery: successes, failures by status, timeouts, and some that were never tried."""
    failed = (Outcome.HTTP_ERROR, 503 if seq % 2 else 429)
    return [
        [(Outcome.SUCCEEDED, 204)],
        [failed, (Outcome.SUCCEEDED, 200)],
        [failed, (Outcome.TIMEOUT, None)],
        [],
    ][seq % 4]


async def history(api: Api) -> list[Made]:
    """Two endpoints with the same events; every sixth delivery that is not done is skipped or dead-lettered."""
    await api.tenant()
    for name in NAMES:
        await api.endpoint(name)
    for seq in range(1, COUNT + 1):
        await api.publish(event(f"e-{seq}", type=type_of(seq)))
    made, now = [], datetime.now(UTC)
    for name in NAMES:
        key = (await endpoints.get(api.database, "acme", name)).key
        for seq in range(1, COUNT + 1):
            for number, (outcome, code) in enumerate(fate(seq), 1):
                start = now - timedelta(minutes=COUNT - seq) + timedelta(seconds=number)
                made.append(Made(name, seq, f"e-{seq}", type_of(seq), number, outcome, code, start))
        await attempts.append(api.database, [stored(key, one) for one in made if one.endpoint == name])
    return made


def stored(key: EndpointKey, made: Made) -> Attempt:
    failed = made.outcome is not Outcome.SUCCEEDED
    return Attempt(
        key=key,
        seq=made.seq,
        event_id=made.event_id,
        epoch=1,
        number=made.number,
        start_time=made.start,
        duration_s=0.1,
        outcome=made.outcome,
        status_code=made.status_code,
        error="failed" if failed else None,
        response_excerpt=b"sorry" if failed else None,
    )


async def all_pages(call: Callable[[Any], Any], request: Any, items: str, between: Callable[[], Any]) -> list[Any]:
    found: list[Any] = []
    while True:
        page = await call(request)
        assert len(getattr(page, items)) <= request.page_size
        found += getattr(page, items)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token
        await between()


def minute(made: list[Made], seq: int) -> datetime:
    return next(one.start for one in made if one.seq >= seq)


async def test_attempts_by_every_filter_alone_and_together(api: Api) -> None:
    made = await history(api)
    middle = minute(made, COUNT // 2)
    terms: list[tuple[str, Callable[[Made], bool]]] = [
        ("outcome = HTTP_ERROR", lambda one: one.outcome is Outcome.HTTP_ERROR),
        ("outcome != SUCCEEDED", lambda one: one.outcome is not Outcome.SUCCEEDED),
        ("status_code = 503", lambda one: one.status_code == 503),
        ("status_code = 204", lambda one: one.status_code == 204),
        ('event_type = "order.paid"', lambda one: one.type == "order.paid"),
        ('event = "tenants/acme/events/e-6"', lambda one: one.event_id == "e-6"),
        (f'start_time >= "{middle.isoformat()}"', lambda one: one.start >= middle),
        (f'start_time < "{middle.isoformat()}"', lambda one: one.start < middle),
    ]
    extra = itertools.count(COUNT + 1)

    async def publish_more() -> None:
        await api.publish(event(f"e-{next(extra)}"))

    for chosen in [*itertools.combinations(terms, 1), *itertools.combinations(terms, 2)]:
        text = " AND ".join(term for term, _ in chosen)
        if text.count("start_time") > 1 or text.count("status_code") > 1 or text.count("outcome =") > 1:
            continue
        for name in (*NAMES, "-"):
            if name == "-" and "event =" not in text and "start_time" not in text:
                continue
            expected = {one.id for one in made if name in ("-", one.endpoint) and all(fits(one) for _, fits in chosen)}
            request = delivery_pb2.ListAttemptsRequest(
                parent=f"tenants/acme/endpoints/{name}/deliveries/-", filter=text, page_size=5
            )
            found = await all_pages(api.deliveries.ListAttempts, request, "attempts", publish_more)
            ids = [attempt_id(attempt) for attempt in found]
            assert len(ids) == len(set(ids)), text
            assert set(ids) == expected, f"{text} of {name}"


def attempt_id(attempt: Any) -> tuple[str, int, int]:
    segments = attempt.name.split("/")
    return segments[3], int(segments[5]), attempt.attempt_number


def state_of(seq: int) -> str:
    outcomes = [outcome for outcome, _ in fate(seq)]
    if Outcome.SUCCEEDED in outcomes:
        return "DELIVERED"
    return {0: "SKIPPED", 3: "DEAD_LETTERED"}.get(seq % 5, "PENDING")


async def test_deliveries_by_every_filter_alone_and_together(api: Api) -> None:
    await history(api)
    kinds = {"SKIPPED": DecisionKind.SKIP, "DEAD_LETTERED": DecisionKind.DEAD_LETTER}
    for name in NAMES:
        key = (await endpoints.get(api.database, "acme", name)).key
        for seq in range(1, COUNT + 1):
            if (kind := kinds.get(state_of(seq))) is not None:
                await decided(api.database, key, seq, f"e-{seq}", kind)
    last = {seq: fate(seq)[-1][1] if fate(seq) else None for seq in range(1, COUNT + 1)}
    day = f'create_time >= "{(datetime.now(UTC) - timedelta(hours=1)).isoformat()}"'
    terms: list[tuple[str, Callable[[int], bool]]] = [
        *[(f"state = {state}", lambda seq, s=state: state_of(seq) == s) for state in ("DELIVERED", "SKIPPED")],
        *[(f"state = {state}", lambda seq, s=state: state_of(seq) == s) for state in ("PENDING", "DEAD_LETTERED")],
        ("last_status_code = 204", lambda seq: last[seq] == 204),
        ("last_status_code = 503", lambda seq: last[seq] == 503),
        ('event_type = "user.created"', lambda seq: type_of(seq) == "user.created"),
        ('event = "tenants/acme/events/e-7"', lambda seq: seq == 7),
        (day, lambda seq: True),
    ]
    for chosen in [*itertools.combinations(terms, 1), *itertools.combinations(terms, 2)]:
        text = " AND ".join(term for term, _ in chosen)
        if text.count("state =") > 1 or text.count("last_status_code") > 1:
            continue
        for name in ("a", "-"):
            if name == "-" and "event =" not in text and "create_time" not in text:
                continue
            request = delivery_pb2.ListDeliveriesRequest(
                parent=f"tenants/acme/endpoints/{name}", filter=text, page_size=4
            )
            found = await all_pages(api.deliveries.ListDeliveries, request, "deliveries", nothing)
            expected = [seq for seq in range(1, COUNT + 1) if all(fits(seq) for _, fits in chosen)]
            assert sorted(d.sequence for d in found) == sorted(expected * (2 if name == "-" else 1)), (
                f"{text} of {name}"
            )


async def nothing() -> None:
    """Between two pages."""


@pytest.mark.parametrize("text", ["", "outcome != SUCCEEDED", 'event_type = "order.paid"', "status_code = 503"])
async def test_attempts_of_all_endpoints_are_listed_only_for_an_event_or_a_day(api: Api, text: str) -> None:
    await api.tenant()
    request = delivery_pb2.ListAttemptsRequest(parent="tenants/acme/endpoints/-/deliveries/-", filter=text)
    refusal = await refused(api.deliveries.ListAttempts(request))
    assert refusal.fields == ["filter"]


async def test_a_page_token_is_of_its_list_alone(api: Api) -> None:
    await history(api)
    request = delivery_pb2.ListAttemptsRequest(
        parent="tenants/acme/endpoints/a/deliveries/-", filter="outcome != SUCCEEDED", page_size=1
    )
    request.page_token = (await api.deliveries.ListAttempts(request)).next_page_token
    request.filter = "status_code = 503"
    assert (await refused(api.deliveries.ListAttempts(request))).fields == ["page_token"]
