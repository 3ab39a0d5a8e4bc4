"""Attempts as the API shows them, and the name of their delivery. Pure."""

from __future__ import annotations

from webhooks.v1 import attempt_pb2

from dispatcher.api.convert.times import duration, timestamp
from dispatcher.model import Attempt, Outcome


def delivery_name(tenant: str, endpoint: str, seq: int) -> str:
    """The full resource name of a delivery."""
    return f"tenants/{tenant}/endpoints/{endpoint}/deliveries/{seq}"


def attempt_message(tenant: str, endpoint: str, attempt: Attempt) -> attempt_pb2.Attempt:
    """An attempt; the last segment of its name is epoch and number, unique within the delivery save after a crash."""
    started_us = round(attempt.start_time.timestamp() * 1e6)
    return attempt_pb2.Attempt(
        name=f"{delivery_name(tenant, endpoint, attempt.seq)}/attempts/{attempt.epoch}-{attempt.number}-{started_us:x}",
        attempt_number=attempt.number,
        start_time=timestamp(attempt.start_time),
        duration=duration(attempt.duration_s),
        outcome=_outcome(attempt.outcome),
        status_code=attempt.status_code or 0,
        error=attempt.error or "",
        response_excerpt=attempt.response_excerpt or b"",
        epoch=attempt.epoch,
        url_index=attempt.url_index,
    )


def _outcome(outcome: Outcome) -> attempt_pb2.AttemptOutcome.ValueType:
    return attempt_pb2.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{outcome.name}")
