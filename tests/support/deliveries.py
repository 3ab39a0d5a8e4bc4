"""Makers of rows, attempts and decisions for tests: everything defaulted, whatever matters is named by the test."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from dispatcher.model import Attempt, DeadLetter, Decision, DecisionKind, EndpointKey, OutboxRow, Outcome, Payload

TENANT_ID = UUID("01900000-0000-7000-8000-000000000001")
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def key_of(partition: int = 7) -> EndpointKey:
    """An endpoint's key in the given lease partition."""
    return EndpointKey(TENANT_ID, UUID(bytes=bytes.fromhex("019000000000700080000000000000") + bytes([partition])))


def row_of(seq: int = 1, **changes: Any) -> OutboxRow:
    """A fresh outbox row with its payload."""
    data = changes.pop("data", b'{"amount":1}')
    fields: dict[str, Any] = {
        "key": key_of(),
        "seq": seq,
        "time": NOW,
        "event_id": f"event-{seq}",
        "event_time": NOW,
        "type": "order.paid",
        "ordering_key": None,
        "revision": 1,
        "data_bytes": len(data),
        "payload": Payload(data, "application/json", None),
    }
    return OutboxRow(**(fields | changes))


def attempt_of(seq: int = 1, **changes: Any) -> Attempt:
    """A success, unless told otherwise."""
    fields: dict[str, Any] = {
        "key": key_of(),
        "seq": seq,
        "event_id": f"event-{seq}",
        "epoch": 1,
        "number": 1,
        "start_time": NOW,
        "duration_s": 0.01,
        "outcome": Outcome.SUCCEEDED,
        "status_code": 200,
        "error": None,
        "response_excerpt": None,
    }
    return Attempt(**(fields | changes))


def decision_of(seq: int = 1, partition: int = 7, **changes: Any) -> Decision:
    """A dead letter of an endpoint in the given lease partition."""
    fields: dict[str, Any] = {
        "key": key_of(partition),
        "seq": seq,
        "event_id": f"event-{seq}",
        "event_time": NOW,
        "kind": DecisionKind.DEAD_LETTER,
        "reason": "ATTEMPTS_EXHAUSTED",
        "actor": "dispatcher",
    }
    return Decision(**(fields | changes))


def letter_of(seq: int = 1, partition: int = 7, **changes: Any) -> DeadLetter:
    """The dead letter of `decision_of`."""
    fields: dict[str, Any] = {
        "key": key_of(partition),
        "seq": seq,
        "event_id": f"event-{seq}",
        "event_time": NOW,
        "type": "order.paid",
        "ordering_key": None,
        "attempts": 3,
        "last_outcome": Outcome.HTTP_ERROR,
        "last_status_code": 500,
        "last_error": None,
    }
    return DeadLetter(**(fields | changes))
