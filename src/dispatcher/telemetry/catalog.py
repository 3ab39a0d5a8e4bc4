"""Every metric of this service in one table: name, kind, unit, attributes, meaning. docs/telemetry.md is made from it.

Names without the prefix `dispatcher.` are OpenTelemetry's semantic conventions, version `SCHEMA_URL`. Where a
convention demands an attribute with one value per endpoint (`server.address` on http.client.request.duration) a metric
of our own stands instead: the SDK drops *all* attributes beyond 2,000 series, so no metric may grow with the endpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from opentelemetry.semconv._incubating.metrics.rpc_metrics import RPC_SERVER_CALL_DURATION
from opentelemetry.semconv.metrics.db_metrics import DB_CLIENT_OPERATION_DURATION
from opentelemetry.semconv.schemas import Schemas

SCHEMA_URL = Schemas.V1_44_0.value
SCOPE = "dispatcher"

_SHORT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 43200, 259200)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class Kind(Enum):
    """How a metric is recorded."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. `unit` is UCUM; `buckets` are a histogram's upper bounds in that unit."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    attributes: tuple[str, ...] = ()
    buckets: Sequence[float] = ()


RPC_SERVER_CALL = Metric(
    RPC_SERVER_CALL_DURATION,
    Kind.HISTOGRAM,
    "s",
    "Duration of a gRPC call, as the server sees it.",
    ("rpc.system.name", "rpc.method", "rpc.response.status_code"),
    _SHORT_S,
)
EVENTS_PUBLISHED = Metric(
    "dispatcher.events.published",
    Kind.COUNTER,
    "{event}",
    "Events acknowledged to publishers; `duplicate` ones were stored by an earlier call.",
    ("dispatcher.publish.result",),
)
OUTBOX_ROWS = Metric(
    "dispatcher.outbox.rows", Kind.COUNTER, "{delivery}", "Deliveries that published events fanned out to."
)
COMMIT_DURATION = Metric(
    "dispatcher.commit.duration",
    Kind.HISTOGRAM,
    "s",
    "Duration of one group commit.",
    ("dispatcher.commit.result",),
    _SHORT_S,
)
COMMIT_EVENTS = Metric("dispatcher.commit.events", Kind.HISTOGRAM, "{event}", "Events committed together.", (), _SIZES)
PUBLISH_QUEUE_EVENTS = Metric(
    "dispatcher.publish.queue.events", Kind.GAUGE, "{event}", "Events that wait for a group commit."
)
PUBLISH_QUEUE_BYTES = Metric(
    "dispatcher.publish.queue.bytes", Kind.GAUGE, "By", "Bytes of payload that wait for a group commit."
)
ATTEMPT_DURATION = Metric(
    "dispatcher.attempt.duration",
    Kind.HISTOGRAM,
    "s",
    "Duration of one attempt from name look-up to the end of the answer; its count is the number of attempts.",
    ("dispatcher.attempt.outcome", "dispatcher.http.status_class"),
    _SHORT_S,
)
DELIVERIES = Metric(
    "dispatcher.deliveries",
    Kind.COUNTER,
    "{delivery}",
    "Deliveries settled: delivered, dead-lettered, skipped.",
    ("dispatcher.delivery.outcome",),
)
DELIVERY_LATENCY = Metric(
    "dispatcher.delivery.latency",
    Kind.HISTOGRAM,
    "s",
    "Time from the event's acceptance to the receiver's success.",
    (),
    _LONG_S,
)
IN_FLIGHT = Metric("dispatcher.attempts.in_flight", Kind.GAUGE, "{attempt}", "Attempts in flight.")
LANES = Metric("dispatcher.lanes", Kind.GAUGE, "{lane}", "Endpoints with work in this instance's memory.")
PAYLOAD_BYTES = Metric(
    "dispatcher.payload.bytes", Kind.GAUGE, "By", "Bytes of payload in memory, of DISPATCHER_PAYLOAD_BYTES_BUDGET."
)
BACKLOG = Metric("dispatcher.backlog", Kind.GAUGE, "{delivery}", "Unsettled deliveries of the partitions owned here.")
BACKLOG_AGE = Metric(
    "dispatcher.backlog.age", Kind.GAUGE, "s", "Age of the oldest undelivered event of the partitions owned here."
)
BACKLOG_DUE = Metric(
    "dispatcher.backlog.due",
    Kind.GAUGE,
    "{delivery}",
    "Deliveries that this instance keeps waiting, for want of a place in flight or of CPU; of one endpoint "
    "DISPATCHER_DUE_ENDPOINT_ROWS_MAX at most. Not those that wait for a receiver, a retry, a limit, an operator.",
)
BACKLOG_DUE_AGE = Metric(
    "dispatcher.backlog.due.age", Kind.GAUGE, "s", "For how long it has kept waiting the one that waits longest."
)
ENDPOINT_BACKLOG = Metric(
    "dispatcher.endpoint.backlog",
    Kind.GAUGE,
    "{delivery}",
    "Unsettled deliveries of the worst endpoints, at most DISPATCHER_METRICS_ENDPOINTS_WORST_MAX.",
    ("dispatcher.tenant", "dispatcher.endpoint"),
)
ENDPOINT_BACKLOG_AGE = Metric(
    "dispatcher.endpoint.backlog.age",
    Kind.GAUGE,
    "s",
    "Age of the oldest undelivered event of the same endpoints.",
    ("dispatcher.tenant", "dispatcher.endpoint"),
)
FLUSH_ATTEMPTS = Metric(
    "dispatcher.flush.attempts", Kind.HISTOGRAM, "{attempt}", "Attempts written together.", (), _SIZES
)
FLUSH_DURATION = Metric("dispatcher.flush.duration", Kind.HISTOGRAM, "s", "Duration of one flush.", (), _SHORT_S)
FLUSH_LAG = Metric(
    "dispatcher.flush.lag", Kind.GAUGE, "s", "Age of the oldest acknowledgement not yet written; a crash repeats it."
)
FLUSH_DROPPED = Metric(
    "dispatcher.flush.dropped",
    Kind.COUNTER,
    "{attempt}",
    "Attempts the database refused for good; their deliveries are repeated. Anything but 0 is a bug: see the log.",
)
PARTITIONS_OWNED = Metric(
    "dispatcher.partitions.owned", Kind.GAUGE, "{partition}", "Endpoint partitions leased by this instance, of 256."
)
OPERATIONAL_EVENTS = Metric(
    "dispatcher.operational_events",
    Kind.COUNTER,
    "{event}",
    "Events of the service's own (`dispatcher.…`) that were published to the tenants' subscribers, if there were any.",
    ("dispatcher.event.type",),
)
CIRCUITS_OPEN = Metric(
    "dispatcher.circuits.open", Kind.GAUGE, "{circuit}", "URLs of endpoints owned here that get no attempts for now."
)
ENDPOINTS_THROTTLED = Metric(
    "dispatcher.endpoints.throttled", Kind.GAUGE, "{endpoint}", "Endpoints owned here that 429 or 503 have slowed down."
)
DELIVERIES_PARKED = Metric(
    "dispatcher.deliveries.parked",
    Kind.GAUGE,
    "{delivery}",
    "Deliveries in memory that wait aside for a retry while others pass them.",
)
LANES_HALTED = Metric(
    "dispatcher.lanes.halted", Kind.GAUGE, "{lane}", "Endpoints owned here at which an operator has to decide."
)
LEASE_CHANGES = Metric(
    "dispatcher.lease.changes",
    Kind.COUNTER,
    "{lease}",
    "Leases acquired, released, lost.",
    ("dispatcher.lease.change",),
)
WORKERS = Metric("dispatcher.workers", Kind.GAUGE, "{process}", "Workers that run; from a supervisor only.")
WORKERS_ENDED = Metric(
    "dispatcher.workers.ended",
    Kind.COUNTER,
    "{process}",
    "Workers that ended unasked, or were killed as they had fallen silent; each was replaced. From a supervisor only.",
)
DATABASE_OPERATION = Metric(
    DB_CLIENT_OPERATION_DURATION,
    Kind.HISTOGRAM,
    "s",
    "Duration of a database operation, the wait for a connection excluded.",
    ("db.system.name", "db.operation.name", "error.type"),
    _SHORT_S,
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
