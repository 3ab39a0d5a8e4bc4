"""What a receiver must have seen: the promises of README as checks over its record."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable

from tests.support.callers import SteadyPublisher
from tests.support.receiver import Answer, Receiver, Request


def failing_now_and_then(share: float, *, seed: int = 7, delay_s: float = 0.0) -> Callable[[Request], Answer]:
    """Answers 500 to this share of requests, by chance with a seed; the others after `delay_s`."""
    chance = random.Random(seed)
    return lambda _: Answer(500) if chance.random() < share else Answer(delay_s=delay_s)


def has_all(receiver: Receiver, endpoints: Iterable[str], publishers: Iterable[SteadyPublisher]) -> Callable[[], bool]:
    """Whether every endpoint has accepted everything acknowledged so far; cheap enough to ask at every arrival."""
    wanted = {event_id for publisher in publishers for event_id in publisher.ids}
    missing = {endpoint: wanted.copy() for endpoint in endpoints}
    seen = 0

    def holds() -> bool:
        nonlocal seen
        while seen < len(receiver.requests) and (status := receiver.requests[seen].status) is not None:
            request = receiver.requests[seen]
            if 200 <= status < 300 and request.endpoint in missing:
                missing[request.endpoint].discard(request.event_id)
            seen += 1
        return not any(missing.values())

    return holds


def assert_order_and_copies(receiver: Receiver, endpoint: str, publishers: Iterable[SteadyPublisher]) -> None:
    """An ordered endpoint: gapless sequences in the order of first receipt, which is each publisher's order of
    acknowledgement, and copies that are the same in id, sequence and body."""
    by_sequence: dict[int, tuple[str, bytes]] = {}
    for request in receiver.of(endpoint):
        copy = by_sequence.setdefault(request.sequence, (request.event_id, request.body))
        assert copy == (request.event_id, request.body), f"{endpoint} got two events as {request.sequence}"
    assert list(by_sequence) == list(range(1, len(by_sequence) + 1)), endpoint
    first = receiver.first_receipts(endpoint)
    assert len(first) == len(by_sequence), f"{endpoint}: an event was given two sequences"
    for publisher in publishers:
        assert [seen for seen in first if seen.startswith(f"{publisher.name}-")] == publisher.ids, endpoint


def assert_order_within_keys(receiver: Receiver, endpoint: str, publisher: SteadyPublisher) -> None:
    """First receipts of each ordering key in the order of acknowledgement; nothing missing."""
    got: dict[str, list[str]] = defaultdict(list)
    for request in receiver.of(endpoint):
        seen = got[request.headers.get("webhook-ordering-key", "")]
        if request.event_id not in seen:
            seen.append(request.event_id)
    wanted: dict[str, list[str]] = defaultdict(list)
    for event in publisher.acknowledged:
        wanted[event.ordering_key].append(event.id)
    assert got == wanted
