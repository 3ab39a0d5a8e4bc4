"""Recent statistics and a tenant's status as the API shows them. Pure."""

from __future__ import annotations

from datetime import datetime

from webhooks.v1 import delivery_pb2, endpoint_pb2, statistics_pb2, tenant_pb2, tenant_status_pb2

from dispatcher.api.convert.times import duration, timestamp
from dispatcher.store.statistics import DeliveryStatistics, expected_wait_s, time_to_drain_s
from dispatcher.store.tenant_status import Standing, TenantStatus


def statistics_message(found: DeliveryStatistics) -> statistics_pb2.DeliveryStatistics:
    """How deliveries have gone of late."""
    message = statistics_pb2.DeliveryStatistics(
        window=duration(found.window_s),
        truncated=found.truncated,
        endpoint_count=found.endpoint_count,
        attempt_count=found.attempt_count,
        succeeded_count=found.succeeded_count,
        success_ratio=found.success_ratio,
        attempts_per_second=found.attempts_per_s,
        delivered_per_second=found.delivered_per_s,
        committed_per_second=found.committed_per_s,
        payload_bytes_p50=found.payload_bytes_p50,
        payload_bytes_max=found.payload_bytes_max,
    )
    if found.durations is not None:
        message.attempt_duration_p50.CopyFrom(duration(found.durations.p50_s))
        message.attempt_duration_p90.CopyFrom(duration(found.durations.p90_s))
        message.attempt_duration_p99.CopyFrom(duration(found.durations.p99_s))
    return message


def add_recent(message: delivery_pb2.EndpointStatus, found: DeliveryStatistics, *, is_held: bool) -> None:
    """Fill in how an endpoint has fared and when its backlog will be gone, which one that is held never says."""
    message.recent.CopyFrom(statistics_message(found))
    backlog = message.backlog_count
    if not is_held or not backlog:
        drain_s = time_to_drain_s(backlog, found.delivered_per_s, found.committed_per_s)
        wait_s = expected_wait_s(backlog, found.delivered_per_s)
        if drain_s is not None:
            message.time_to_drain.CopyFrom(duration(drain_s))
        if wait_s is not None:
            message.expected_wait.CopyFrom(duration(wait_s))


def tenant_status_message(status: TenantStatus) -> tenant_status_pb2.TenantStatus:
    """How all endpoints of a tenant fare."""
    walk, tenant = status.walk, status.tenant.name
    message = tenant_status_pb2.TenantStatus(
        name=f"tenants/{tenant}/status",
        state=tenant_pb2.Tenant.State.Value(f"STATE_{status.tenant.state.value}"),
        endpoints=tenant_status_pb2.EndpointCounts(
            total=walk.total,
            active=walk.active,
            paused=walk.paused,
            disabled=walk.disabled,
            halted=walk.halted,
            failing=walk.failing,
        ),
        partial=walk.is_partial,
        backlog_count=walk.backlog,
        held_count=walk.held,
        oldest=[_backlog(tenant, standing, status.now) for standing in status.oldest],
        largest=[_backlog(tenant, standing, status.now) for standing in status.largest],
    )
    if status.oldest_time is not None:
        message.oldest_pending_time.CopyFrom(timestamp(status.oldest_time))
        message.oldest_pending_age.CopyFrom(duration(_age_s(status.oldest_time, status.now)))
    if status.statistics is not None:
        message.recent.CopyFrom(statistics_message(status.statistics))
    if status.time_to_drain_s is not None:
        message.time_to_drain.CopyFrom(duration(status.time_to_drain_s))
    return message


def _backlog(tenant: str, standing: Standing, now: datetime) -> tenant_status_pb2.EndpointBacklog:
    message = tenant_status_pb2.EndpointBacklog(
        endpoint=f"tenants/{tenant}/endpoints/{standing.name}",
        state=endpoint_pb2.Endpoint.State.Value(f"STATE_{standing.state.value}"),
        halted=standing.is_halted,
        backlog_count=standing.backlog,
    )
    if standing.oldest_time is not None:
        message.oldest_pending_time.CopyFrom(timestamp(standing.oldest_time))
        message.oldest_pending_age.CopyFrom(duration(_age_s(standing.oldest_time, now)))
    return message


def _age_s(time: datetime, now: datetime) -> float:
    return max(0.0, (now - time).total_seconds())
