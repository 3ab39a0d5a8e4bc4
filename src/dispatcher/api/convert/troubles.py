"""What keeps an endpoint from delivering, as EndpointStatus shows it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from webhooks.v1 import delivery_pb2, endpoint_pb2

from dispatcher.api.convert.attempts import attempt_message, delivery_name
from dispatcher.api.convert.times import timestamp
from dispatcher.model import Endpoint, TenantState
from dispatcher.store.endpoint_troubles import EndpointTroubles, HaltStatus


def add_troubles(
    message: delivery_pb2.EndpointStatus, tenant: str, endpoint: Endpoint, troubles: EndpointTroubles
) -> None:
    """Fill in halts, circuits, rates, health and states."""
    message.endpoint_state = endpoint_pb2.Endpoint.State.Value(f"STATE_{endpoint.state.value}")
    message.tenant_paused = troubles.tenant_state is TenantState.PAUSED
    message.halt_count = troubles.halt_count
    message.parked_count = troubles.parked_count
    message.exhausted_count = troubles.exhausted_heads
    message.throttled_per_second = troubles.throttle_per_s or 0.0
    message.open_circuits.extend(map(_circuit, troubles.circuits))
    if troubles.failing_since is not None:
        message.failing_since_time.CopyFrom(timestamp(troubles.failing_since))
    if troubles.catch_up is not None:
        message.catch_up_per_second = troubles.catch_up.per_second
        message.catch_up_time.CopyFrom(timestamp(troubles.catch_up.until))
    if troubles.halt is not None:
        message.halt.CopyFrom(_halt(tenant, endpoint.name, troubles.halt))


def _halt(tenant: str, endpoint: str, halt: HaltStatus) -> delivery_pb2.Halt:
    message = delivery_pb2.Halt(
        delivery=delivery_name(tenant, endpoint, halt.seq),
        event=f"tenants/{tenant}/events/{halt.event_id}",
        sequence=halt.seq,
        ordering_key=halt.ordering_key or "",
        reason=halt.reason,
        halt_time=timestamp(halt.time),
        waiting_count=halt.waiting_count,
    )
    if halt.delivery is not None and halt.delivery.last_attempt is not None:
        message.last_attempt.CopyFrom(attempt_message(tenant, endpoint, halt.delivery.last_attempt))
    return message


def _circuit(stored: Mapping[str, Any]) -> delivery_pb2.CircuitStatus:
    return delivery_pb2.CircuitStatus(
        url_index=stored["url_index"],
        state=delivery_pb2.CircuitStatus.State.Value(f"STATE_{stored['state']}"),
        open_time=timestamp(datetime.fromisoformat(stored["open_time"])),
        probe_time=timestamp(datetime.fromisoformat(stored["probe_time"])),
    )
