"""Rows and lanes for the tests of delivery's pure parts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from dispatcher.delivery.lane import Lane, LaneLimits, ModeSettings
from dispatcher.delivery.payloads import PayloadBudget
from dispatcher.model import Cursor, EndpointKey, OrderingMode, OutboxRow, Payload

KEY = EndpointKey(UUID(int=1), UUID(int=2))
START_TIME = datetime(2026, 1, 1, tzinfo=UTC)

ORDERED, BY_KEY, UNORDERED = OrderingMode.ORDERED, OrderingMode.ORDERED_BY_KEY, OrderingMode.UNORDERED


def row_time(seq: int) -> datetime:
    return START_TIME + timedelta(seconds=seq)


def payload_of(row: OutboxRow) -> Payload:
    return Payload(b"x" * row.data_bytes, "text/plain", None)


def row(
    seq: int,
    *,
    ordering_key: str | None = None,
    revision: int = 1,
    data_bytes: int = 10,
    settled: bool = False,
    payload: bool = True,
) -> OutboxRow:
    made = OutboxRow(
        key=KEY,
        seq=seq,
        time=row_time(seq),
        event_id=f"event-{seq}",
        event_time=row_time(seq),
        type="order.created",
        ordering_key=ordering_key,
        revision=revision,
        data_bytes=data_bytes,
        settled=settled,
    )
    if payload:
        made.payload = payload_of(made)
    return made


def lane(
    mode: OrderingMode = ORDERED,
    *,
    max_in_flight: int = 4,
    rows_max: int = 64,
    bytes_max: int = 10_000,
    payload_rows_max: int = 64,
    position: int = 0,
    highest_known: int = 0,
    budget: PayloadBudget | None = None,
    needs_held: bool = False,
) -> Lane:
    """A lane at `position` that knows of revision 1 in `mode`."""
    made = Lane(
        KEY,
        epoch=1,
        position=Cursor(KEY, position, row_time(position)),
        limits=LaneLimits(rows_max, bytes_max, payload_rows_max),
        highest_known=highest_known,
        budget=budget,
        needs_held=needs_held,
    )
    made.configure({1: ModeSettings(mode, max_in_flight)})
    return made
