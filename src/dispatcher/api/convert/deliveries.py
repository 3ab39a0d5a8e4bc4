"""Deliveries, attempts and endpoint status as the API shows them. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import assert_never

from webhooks.v1 import delivery_pb2

from dispatcher.api.convert.attempts import attempt_message, delivery_name
from dispatcher.api.convert.statistics import add_recent
from dispatcher.api.convert.times import duration, timestamp
from dispatcher.api.convert.troubles import add_troubles
from dispatcher.model import DeliveryState, EndpointState, OrderingMode, Outcome, TenantState
from dispatcher.policy import RetryDefaults, resolve, wait_bound_s
from dispatcher.store.deliveries import Delivery, RecordedDecision
from dispatcher.store.endpoint_status import EndpointStatus
from dispatcher.store.statistics import DeliveryStatistics


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


def status_message(
    tenant: str, status: EndpointStatus, retry: RetryDefaults, recent: DeliveryStatistics | None
) -> delivery_pb2.EndpointStatus:
    """How far an endpoint has come, what it waits for and how it has fared of late."""
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
    due = next_attempt_time(status, retry)
    if status.blocked_by is not None:
        message.blocked_by.CopyFrom(_blocking(tenant, status.blocked_by, due))
    first_due = first_attempt_time(status, due)
    if first_due is not None:
        message.next_attempt_time.CopyFrom(timestamp(first_due))
    add_troubles(message, tenant, status.endpoint, status.troubles)
    if recent is not None:
        add_recent(message, recent, is_held=is_held(status) or status.troubles.halt_count > 0)
    return message


def _blocking(tenant: str, delivery: Delivery, due: datetime | None) -> delivery_pb2.BlockingDelivery:
    message = delivery_pb2.BlockingDelivery(
        delivery=delivery_name(tenant, delivery.endpoint_name, delivery.seq),
        event=f"tenants/{tenant}/events/{delivery.event_id}",
        attempt_count=delivery.attempt_count,
    )
    if delivery.last_attempt is not None:
        message.last_attempt.CopyFrom(attempt_message(tenant, delivery.endpoint_name, delivery.last_attempt))
    if due is not None:
        message.next_attempt_time.CopyFrom(timestamp(due))
    return message


def next_attempt_time(status: EndpointStatus, retry: RetryDefaults) -> datetime | None:
    """When the delivery that blocks is tried again at the latest; None where that takes an operator."""
    endpoint, troubles, delivery = status.endpoint, status.troubles, status.blocked_by
    if delivery is None or delivery.last_attempt is None:
        return None
    if is_held(status) or (troubles.halt is not None and troubles.halt.seq == delivery.seq):
        return None
    others_wait = endpoint.settings.ordering_mode is not OrderingMode.UNORDERED
    policy = resolve(retry, troubles.tenant_retry, endpoint.settings.retry, others_wait=others_wait)
    last = delivery.last_attempt
    ended = last.start_time + timedelta(seconds=last.duration_s)
    # For our own proxy the service waits, by its own bounds (`delivery.admission`), and few attempts are on record.
    if last.outcome is Outcome.EGRESS_PROXY_FAILED:
        bound = max(ended, status.now) + timedelta(seconds=retry.exponential.max_s)
    else:
        bound = ended + timedelta(seconds=wait_bound_s(policy.backoff, last.number))
    due = status.blocked_due or bound
    return max(due, _first_probe(status) or due)


def first_attempt_time(status: EndpointStatus, blocking_due: datetime | None) -> datetime | None:
    """When the first of those that failed is due: the one that blocks, or one that is parked further on."""
    if is_held(status):
        return None
    parked = status.troubles.parked_due
    if parked is not None:
        parked = max(parked, _first_probe(status) or parked)
    return min((time for time in (parked, blocking_due) if time is not None), default=None)


def is_held(status: EndpointStatus) -> bool:
    """Whether nothing at all is sent until somebody says so."""
    endpoint = status.endpoint
    is_active = endpoint.state is EndpointState.ACTIVE and status.troubles.tenant_state is TenantState.ACTIVE
    return not is_active or endpoint.delete_time is not None


def _first_probe(status: EndpointStatus) -> datetime | None:
    """Where all URLs have a circuit that is not closed, the first probe comes before anything else."""
    probes = [datetime.fromisoformat(circuit["probe_time"]) for circuit in status.troubles.circuits]
    all_open = len(probes) == 1 + len(status.endpoint.settings.fallback_urls)
    return min(probes) if all_open else None
