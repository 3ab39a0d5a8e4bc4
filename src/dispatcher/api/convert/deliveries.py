"""Deliveries, attempts and endpoint status as the API shows them. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_never

from webhooks.v1 import delivery_pb2

from dispatcher.api.convert.attempts import attempt_message, delivery_name
from dispatcher.api.convert.times import duration, timestamp
from dispatcher.api.convert.troubles import add_troubles
from dispatcher.config.groups import RetrySettings
from dispatcher.model import DeliveryState, EndpointState
from dispatcher.store.deliveries import Delivery, RecordedDecision
from dispatcher.store.endpoint_status import EndpointStatus


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
        replay=delivery.replay_of is not None,
        replay_of=delivery_name(tenant, delivery.endpoint_name, delivery.replay_of) if delivery.replay_of else "",
    )
    if delivery.last_attempt is not None:
        message.last_attempt.CopyFrom(attempt_message(tenant, delivery.endpoint_name, delivery.last_attempt))
    if delivery.deliver_time is not None:
        message.deliver_time.CopyFrom(timestamp(delivery.deliver_time))
    if delivery.decision is not None:
        message.decision.CopyFrom(decision_message(delivery.decision))
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


def decision_message(decision: RecordedDecision) -> delivery_pb2.DeliveryDecision:
    """Why a delivery ended without success."""
    return delivery_pb2.DeliveryDecision(
        reason=decision.reason, actor=decision.actor, decide_time=timestamp(decision.time)
    )


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
    add_troubles(message, tenant, status.endpoint, status.troubles)
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
