"""Every metric of this service in one table: name, kind, unit, attributes, meaning, and what to do when it moves.
docs/telemetry.md is made from it.

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
    """One row of the table. `unit` is UCUM; `buckets` are a histogram's upper bounds in that unit.

    `action`: what an operator does when it moves. Where an alert watches it, the alert's runbook says more.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    action: str
    attributes: tuple[str, ...] = ()
    buckets: Sequence[float] = ()


RPC_SERVER_CALL = Metric(
    RPC_SERVER_CALL_DURATION,
    Kind.HISTOGRAM,
    "s",
    "Duration of a gRPC call, as the server sees it; `error.type` where the status is the server's fault.",
    "Rises with the database: look at commit and operation durations. UNAVAILABLE: it is away, or we drain; INTERNAL: "
    "a bug, see the log.",
    ("rpc.system.name", "rpc.method", "rpc.response.status_code", "error.type"),
    _SHORT_S,
)
EVENTS_PUBLISHED = Metric(
    "dispatcher.events.published",
    Kind.COUNTER,
    "{event}",
    "Events acknowledged to publishers; `duplicate` ones were stored by an earlier call.",
    "Falls to 0 with publishers alive: look at their errors. Many duplicates: a publisher retries too soon.",
    ("dispatcher.publish.result",),
)
OUTBOX_ROWS = Metric(
    "dispatcher.outbox.rows",
    Kind.COUNTER,
    "{delivery}",
    "Deliveries that published events fanned out to.",
    "Grows faster than events: more endpoints subscribe; check the capacity.",
)
COMMIT_DURATION = Metric(
    "dispatcher.commit.duration",
    Kind.HISTOGRAM,
    "s",
    "Duration of one group commit.",
    "Slow: the database's disk, or a synchronous standby that is away; `unknown`: connections break in the middle.",
    ("dispatcher.commit.result",),
    _SHORT_S,
)
COMMIT_EVENTS = Metric(
    "dispatcher.commit.events",
    Kind.HISTOGRAM,
    "{event}",
    "Events committed together.",
    "Nothing: it grows with the load, which is what makes commits cheap.",
    (),
    _SIZES,
)
PUBLISH_QUEUE_EVENTS = Metric(
    "dispatcher.publish.queue.events",
    Kind.GAUGE,
    "{event}",
    "Events that wait for a group commit.",
    "Near DISPATCHER_PUBLISH_QUEUE_EVENTS_MAX publishers get RESOURCE_EXHAUSTED: more instances, or a faster database.",
)
PUBLISH_QUEUE_BYTES = Metric(
    "dispatcher.publish.queue.bytes",
    Kind.GAUGE,
    "By",
    "Bytes of payload that wait for a group commit.",
    "The same, with DISPATCHER_PUBLISH_QUEUE_BYTES_MAX; large payloads fill this one first.",
)
ATTEMPT_DURATION = Metric(
    "dispatcher.attempt.duration",
    Kind.HISTOGRAM,
    "s",
    "Duration of one attempt from name look-up to the end of the answer; its count is the number of attempts.",
    "By outcome: `http_error`, `timeout` are receivers'; `egress_proxy_failed` is our own egress proxy; "
    "`connection_failed` or `name_not_resolved` of all at once is our own network.",
    ("dispatcher.attempt.outcome", "dispatcher.http.status_class"),
    _SHORT_S,
)
DELIVERIES = Metric(
    "dispatcher.deliveries",
    Kind.COUNTER,
    "{delivery}",
    "Deliveries settled: delivered, dead-lettered, skipped.",
    "`dead_lettered` moves: list the dead letters, mend the receiver, redrive.",
    ("dispatcher.delivery.outcome",),
)
DELIVERY_LATENCY = Metric(
    "dispatcher.delivery.latency",
    Kind.HISTOGRAM,
    "s",
    "Time from the event's acceptance to the receiver's success.",
    "Its tail is receivers that were away. To judge ourselves look at dispatcher.slo.deliveries.",
    (),
    _LONG_S,
)
SLO_DELIVERIES = Metric(
    "dispatcher.slo.deliveries",
    Kind.COUNTER,
    "{delivery}",
    "Deliveries by how they kept DISPATCHER_SLO_THRESHOLD_S, each counted once by its owner, replays not: `good`, the "
    "first attempt ended within it, delivered or a failure of the receiver; else what kept it at the threshold: "
    "`excused`, its endpoint fails, is paused or bounded; `slow`, its receiver still worked on what comes before it; "
    "`late`, nothing but us.",
    "`late` spends the error budget: find what holds us up, the database, a lost owner, or too few instances.",
    ("dispatcher.slo.result",),
)
SLO_LATE_AGE = Metric(
    "dispatcher.slo.late.age",
    Kind.GAUGE,
    "s",
    "For how long the same late delivery of an endpoint has been found waiting for nothing but us, or known of and not "
    "to be read, the longest; 0 without one. Not its age: a backlog that moves is no stall.",
    "Grows: a stall, which the counter alone does not show for long: look at the database, the log, missing keys.",
)
IN_FLIGHT = Metric(
    "dispatcher.attempts.in_flight",
    Kind.GAUGE,
    "{attempt}",
    "Attempts in flight.",
    "At DISPATCHER_IN_FLIGHT_MAX for long: receivers are slow, or there are too few instances.",
)
LANES = Metric(
    "dispatcher.lanes",
    Kind.GAUGE,
    "{lane}",
    "Endpoints with work in this instance's memory.",
    "Nothing by itself; a few instances with most of the lanes: look at the partitions owned.",
)
PAYLOAD_BYTES = Metric(
    "dispatcher.payload.bytes",
    Kind.GAUGE,
    "By",
    "Bytes of payload in memory, of DISPATCHER_PAYLOAD_BYTES_BUDGET.",
    "At the budget for long: payloads are read anew as they are wanted; raise it if the memory is there.",
)
BACKLOG = Metric(
    "dispatcher.backlog",
    Kind.GAUGE,
    "{delivery}",
    "Unsettled deliveries of the partitions owned here.",
    "Grows: find the worst endpoints; are they away, or is everything slow?",
)
BACKLOG_AGE = Metric(
    "dispatcher.backlog.age",
    Kind.GAUGE,
    "s",
    "Age of the oldest undelivered event of the partitions owned here; of one that can't be read, how long that is so.",
    "Grows second by second: an endpoint stands still, maybe for a good reason; GetEndpointStatus tells it.",
)
BACKLOG_DUE = Metric(
    "dispatcher.backlog.due",
    Kind.GAUGE,
    "{delivery}",
    "Deliveries that this instance keeps waiting, for want of a place in flight or of CPU; of one endpoint "
    "DISPATCHER_DUE_ENDPOINT_ROWS_MAX at most. Not those that wait for a receiver, a retry, a limit, an operator.",
    "Grows: add instances; autoscaling by it is in docs/scaling.md.",
)
BACKLOG_DUE_AGE = Metric(
    "dispatcher.backlog.due.age",
    Kind.GAUGE,
    "s",
    "For how long it has kept waiting the one that waits longest.",
    "Grows: there are too few instances, or their places in flight are too few.",
)
ENDPOINT_BACKLOG = Metric(
    "dispatcher.endpoint.backlog",
    Kind.GAUGE,
    "{delivery}",
    "Unsettled deliveries of the worst endpoints, at most DISPATCHER_METRICS_ENDPOINTS_WORST_MAX.",
    "Ask GetEndpointStatus of the endpoint that it names.",
    ("dispatcher.tenant", "dispatcher.endpoint"),
)
ENDPOINT_BACKLOG_AGE = Metric(
    "dispatcher.endpoint.backlog.age",
    Kind.GAUGE,
    "s",
    "Age of the oldest undelivered event of the same endpoints.",
    "The same.",
    ("dispatcher.tenant", "dispatcher.endpoint"),
)
FLUSH_ATTEMPTS = Metric(
    "dispatcher.flush.attempts",
    Kind.HISTOGRAM,
    "{attempt}",
    "Attempts written together.",
    "Nothing: it grows with the load.",
    (),
    _SIZES,
)
FLUSH_DURATION = Metric(
    "dispatcher.flush.duration",
    Kind.HISTOGRAM,
    "s",
    "Duration of one flush.",
    "Slow: the database; sending stops once a flush lags by DISPATCHER_FLUSH_STALL_S.",
    (),
    _SHORT_S,
)
FLUSH_LAG = Metric(
    "dispatcher.flush.lag",
    Kind.GAUGE,
    "s",
    "Age of the oldest acknowledgement not yet written; a crash repeats it.",
    "Over DISPATCHER_FLUSH_STALL_S nothing is sent: the database is away or too slow.",
)
FLUSH_DROPPED = Metric(
    "dispatcher.flush.dropped",
    Kind.COUNTER,
    "{attempt}",
    "Attempts the database refused for good; their deliveries are repeated.",
    "Anything but 0 is a bug: keep the log and report it.",
)
PARTITIONS_OWNED = Metric(
    "dispatcher.partitions.owned",
    Kind.GAUGE,
    "{partition}",
    "Endpoint partitions leased by this instance, of 256.",
    "A sum below 256 for a minute: endpoints without an owner; are there instances, do they reach the database?",
)
OPERATIONAL_EVENTS = Metric(
    "dispatcher.operational_events",
    Kind.COUNTER,
    "{event}",
    "Events of the service's own (`dispatcher.…`) that were published to the tenants' subscribers, if there were any.",
    "By type: tenants are being told of halts, disabled endpoints, dead letters; see who.",
    ("dispatcher.event.type",),
)
CIRCUITS_OPEN = Metric(
    "dispatcher.circuits.open",
    Kind.GAUGE,
    "{circuit}",
    "URLs of endpoints owned here that get no attempts for now.",
    "One: its receiver is away. Many at once: our own way out (DNS, proxy, network policy).",
)
ENDPOINTS_THROTTLED = Metric(
    "dispatcher.endpoints.throttled",
    Kind.GAUGE,
    "{endpoint}",
    "Endpoints owned here that 429 or 503 have slowed down.",
    "They speed up by themselves; for long, their owners should allow more or set a rate.",
)
DELIVERIES_PARKED = Metric(
    "dispatcher.deliveries.parked",
    Kind.GAUGE,
    "{delivery}",
    "Deliveries in memory that wait aside for a retry while others pass them.",
    "Grows: some keys or events of an endpoint keep failing; its attempts tell why.",
)
LANES_HALTED = Metric(
    "dispatcher.lanes.halted",
    Kind.GAUGE,
    "{lane}",
    "Endpoints owned here at which an operator has to decide.",
    "Retry or skip the delivery that each is halted at.",
)
LEASE_CHANGES = Metric(
    "dispatcher.lease.changes",
    Kind.COUNTER,
    "{lease}",
    "Leases acquired, released, lost.",
    "`lost` moves: an instance froze or lost the database for longer than a lease lives; expect copies.",
    ("dispatcher.lease.change",),
)
WORKERS = Metric(
    "dispatcher.workers",
    Kind.GAUGE,
    "{process}",
    "Workers that run; from a supervisor only.",
    "Below DISPATCHER_WORKERS for long: they keep dying, see the supervisor's log.",
)
WORKERS_ENDED = Metric(
    "dispatcher.workers.ended",
    Kind.COUNTER,
    "{process}",
    "Workers that ended unasked, or were killed as they had fallen silent; each was replaced. From a supervisor only.",
    "A bug, or no memory: the supervisor's log has the exit codes.",
)
DATABASE_OPERATION = Metric(
    DB_CLIENT_OPERATION_DURATION,
    Kind.HISTOGRAM,
    "s",
    "Duration of a database operation, the wait for a connection excluded.",
    "All slow: the server (CPU, disk, a standby). One slow: locks or a plan; look at pg_stat_activity.",
    ("db.system.name", "db.operation.name", "error.type"),
    _SHORT_S,
)
DATABASE_XMIN_AGE = Metric(
    "dispatcher.database.xmin.age",
    Kind.GAUGE,
    "{transaction}",
    "Transactions begun since the oldest one that keeps VACUUM of our database from its work, by what holds it.",
    "Find the holder (pg_stat_activity, pg_replication_slots, pg_prepared_xacts) and end it.",
    ("dispatcher.xmin.holder",),
)
DATABASE_XMIN_HELD = Metric(
    "dispatcher.database.xmin.held",
    Kind.GAUGE,
    "s",
    "The same as a time: for how long this instance has seen that it was not the newest.",
    "Hours: the small, often updated tables (lease, cursor) bloat; end the holder.",
    ("dispatcher.xmin.holder",),
)
RETENTION_BLOCKED = Metric(
    "dispatcher.retention.blocked",
    Kind.GAUGE,
    "{partition}",
    "Day partitions past the retention that the last upkeep could not drop, by why: `undelivered`, `in_use` by a "
    "reader, `error`.",
    "For hours: `undelivered` has an endpoint whose owner does not expire it, `in_use` a long reader, `error` is in "
    "the log.",
    ("dispatcher.retention.reason",),
)
UPKEEP_LAST_SUCCESS = Metric(
    "dispatcher.upkeep.last_success",
    Kind.GAUGE,
    "s",
    "When partition upkeep last went through here, as a Unix time; 0 before it has.",
    "Hours ago at every instance: the log says why; without the partitions of the coming days publishing fails.",
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
