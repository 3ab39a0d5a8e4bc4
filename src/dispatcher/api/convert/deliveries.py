"""Deliveries, attempts and endpoint status as the API shows them. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_never

from webhooks.v1 import attempt_pb2, delivery_pb2

from dispatcher.api.convert.times import duration, timestamp
from dispatcher.config import RetrySettings
from dispatcher.model import Attempt, DeliveryState, EndpointState, Outcome
from dispatcher.store.deliveries import Delivery, RecordedDecision
from dispatcher.store.endpoint_status import EndpointStatus


def delivery_name(tenant: str, endpoint: str, seq: int) -> str:
    return f"tenants/{tenant}/endpoints/{endpoint}/deliveries/{seq}"


def delivery_message(tenant: str, delivery: Delivery) -> delivery_pb2.Delivery:
    """A delivery with what became of it."""
    message = delivery_pb2.Delivery(
        name=delivery_name(tenant, delivery.endpoint_name, delivery.seq),
        sequence=delivery.seq,
        event=f"tenants/{tenant}/events/{delivery.event_id}",
        event_type=delivery.type,
        ordering_key=delivery.ordering_key or "",
        state=_state(delivery.state),
        endpoint_revision=delivery.revision,
        attempt_count=delivery.attempt_count,
        create_time=timestamp(delivery.create_time),
    )
    if delivery.last_attempt is not None:
        message.last_attempt.CopyFrom(attempt_message(tenant, delivery.endpoint_name, delivery.last_attempt))
    if delivery.deliver_time is not None:
        message.deliver_time.CopyFrom(timestamp(delivery.deliver_time))
    if delivery.decision is not None:
        message.decision.CopyFrom(_decision(delivery.decision))
    return message


def _state(state: DeliveryState) -> delivery_pb2.Delivery.State.ValueType:
    match state:
        case DeliveryState.PENDING:
            return delivery_pb2.Delivery.STATE_PENDING
        case DeliveryState.DELIVERED:
            return delivery_pb2.Delivery.STATE_DELIVERED
        case DeliveryState.DEAD_LETTERED:
            return delivery_pb2.Delivery.STATE_DEAD_LETTERED
        case DeliveryState.SKIPPED:
            return delivery_pb2.Delivery.STATE_SKIPPED
        case _:
            assert_never(state)


def _decision(decision: RecordedDecision) -> delivery_pb2.DeliveryDecision:
    return delivery_pb2.DeliveryDecision(
        reason=decision.reason, actor=decision.actor, decide_time=timestamp(decision.time)
    )


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
    )


def _outcome(outcome: Outcome) -> attempt_pb2.AttemptOutcome.ValueType:
    return attempt_pb2.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{outcome.name}")


def status_message(tenant: str, status: EndpointStatus, retry: RetrySettings) -> delivery_pb2.EndpointStatus:
    """How far an endpoint has come and what it waits for."""
    message = delivery_pb2.EndpointStatus(
        name=f"tenants/{tenant}/endpoints/{status.endpoint.name}/status",
        last_sequence=status.last_sequence,
        settled_sequence=status.settled_through,
        backlog_count=status.backlog_count,
    )
    oldest = status.oldest_pending_time
    if oldest is not None:
        message.oldest_pending_time.CopyFrom(timestamp(oldest))
        message.oldest_pending_age.CopyFrom(duration(max(0.0, (status.now - oldest).total_seconds())))
    if status.blocked_by is not None:
        is_active = status.endpoint.state is EndpointState.ACTIVE and status.endpoint.delete_time is None
        message.blocked_by.CopyFrom(_blocking(tenant, status.blocked_by, retry, is_active=is_active))
    return message


def _blocking(
    tenant: str, delivery: Delivery, retry: RetrySettings, *, is_active: bool
) -> delivery_pb2.BlockingDelivery:
    message = delivery_pb2.BlockingDelivery(
        delivery=delivery_name(tenant, delivery.endpoint_name, delivery.seq),
        event=f"tenants/{tenant}/events/{delivery.event_id}",
        attempt_count=delivery.attempt_count,
    )
    last = delivery.last_attempt
    if last is None:
        return message
    message.last_attempt.CopyFrom(attempt_message(tenant, delivery.endpoint_name, last))
    if is_active:
        due = last.start_time + timedelta(seconds=last.duration_s + longest_wait_s(retry, last.number))
        message.next_attempt_time.CopyFrom(timestamp(due))
    return message


def longest_wait_s(retry: RetrySettings, attempts: int) -> float:
    """The bound of the random wait after so many attempts: min x factor^(n-1), at most max."""
    # The exponent is bounded so that no float overflows; 64 doublings exceed every `retry_max_s`.
    growth = retry.retry_factor ** min(max(attempts - 1, 0), 64)
    return float(min(retry.retry_max_s, retry.retry_min_s * growth))
