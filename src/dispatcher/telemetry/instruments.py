"""Recording: one typed method or gauge per row of the catalog. Cheap enough for every attempt.

A counter is an int of ours that the SDK reads when it collects (0.2 µs where `Counter.add` takes 5), a histogram one of
`histograms`; gauges are read at collection and cost nothing in between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Self

from opentelemetry.metrics import CallbackOptions, Meter, NoOpMeterProvider, Observation

from dispatcher.telemetry import catalog
from dispatcher.telemetry.catalog import Metric
from dispatcher.telemetry.histograms import COMBINATIONS_MAX, OVERFLOW, Histograms, Sampled
from dispatcher.telemetry.tracing import SERVER_FAULTS

_NO_ATTRIBUTES: dict[str, str] = {}

_log = logging.getLogger(__name__)

Attributes = Mapping[str, str]


class Tally:
    """A monotonic counter with at most one attribute; without one, and for `labels`, it is exported from 0 on: a rate
    sees no first step of a series that begins with it. `add` is for the event loop's thread; others may read."""

    __slots__ = ("_attribute", "_counts")

    def __init__(self, meter: Meter, metric: Metric, labels: Iterable[str] = ()) -> None:
        (self._attribute,) = metric.attributes or ("",)
        self._counts = dict.fromkeys(labels, 0)
        meter.create_observable_counter(metric.name, [self._observe], metric.unit, metric.meaning)

    def add(self, count: int = 1, label: str = "") -> None:
        """Count `count` more under the attribute's value `label` (a closed set; beyond 500 all are `_OTHER`)."""
        counts = self._counts
        if label in counts:
            counts[label] += count
        elif len(counts) < COMBINATIONS_MAX:
            counts[label] = count
        else:
            counts[OVERFLOW] = counts.get(OVERFLOW, 0) + count

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        counts = (self._counts.copy() if self._attribute else {"": 0} | self._counts).items()
        return [Observation(count, {self._attribute: label} if label else _NO_ATTRIBUTES) for label, count in counts]


class Gauge:
    """A present value: set now and then, or followed by a function that must be quick and free of I/O."""

    __slots__ = ("_names", "_points", "_source")

    def __init__(self, meter: Meter, metric: Metric) -> None:
        self._names = metric.attributes
        self._points: Sequence[tuple[float, Attributes]] = ()
        self._source: Callable[[], float] | None = None
        meter.create_observable_gauge(metric.name, [self._observe], metric.unit, metric.meaning)

    def set(self, value: float) -> None:
        """The value from now on."""
        self._points = ((value, _NO_ATTRIBUTES),)

    def replace(self, points: Iterable[tuple[float, Attributes]]) -> None:
        """All values of a gauge with attributes; whoever is not among them is no longer exported."""
        self._points = tuple(points)

    def by_label(self, values: Mapping[str, float]) -> None:
        """All values of a gauge with one attribute, by what it says."""
        (name,) = self._names
        self.replace((value, {name: label}) for label, value in values.items())

    def follow(self, source: Callable[[], float]) -> None:
        """Ask `source` at each collection, from the collecting thread."""
        self._source = source

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        if self._source is not None:
            try:
                return [Observation(self._source())]
            except Exception:  # noqa: BLE001 - one broken gauge must not take the others with it
                _log.warning("a gauge's source failed", exc_info=True)
                return []
        return [Observation(value, attributes) for value, attributes in self._points]


SLO_RESULTS = ("good", "excused", "slow", "late")


@lru_cache(maxsize=1024)
def status_class(status_code: int | None) -> str:
    """`2xx` … `5xx`, `other`, or empty where no answer came: a receiver must not choose our metrics' series."""
    if status_code is None:
        return ""
    return f"{status_code // 100}xx" if 100 <= status_code < 600 else "other"


class Instruments:
    """What the rest of the service records with. Words given as `str` are values of closed enums."""

    def __init__(self, meter: Meter, histograms: Histograms | None = None) -> None:
        """`histograms` are what readers are to show; None for nobody."""
        histograms = histograms or Histograms()
        self._rpc = histograms.create(catalog.RPC_SERVER_CALL, {"rpc.system.name": "grpc"})
        self._commit = histograms.create(catalog.COMMIT_DURATION)
        self._commit_events = histograms.create(catalog.COMMIT_EVENTS).of()
        self._attempt = histograms.create(catalog.ATTEMPT_DURATION)
        self._latency = histograms.create(catalog.DELIVERY_LATENCY).of()
        self._flush_attempts = histograms.create(catalog.FLUSH_ATTEMPTS).of()
        self._flush_duration = histograms.create(catalog.FLUSH_DURATION).of()
        self._database = histograms.create(catalog.DATABASE_OPERATION, {"db.system.name": "postgresql"})
        self._published = Tally(meter, catalog.EVENTS_PUBLISHED)
        self._rows = Tally(meter, catalog.OUTBOX_ROWS)
        self._deliveries = Tally(meter, catalog.DELIVERIES, ("delivered", "dead_lettered", "skipped"))
        self._slo_deliveries = Tally(meter, catalog.SLO_DELIVERIES, SLO_RESULTS)
        self._flush_dropped = Tally(meter, catalog.FLUSH_DROPPED)
        self._lease_changes = Tally(meter, catalog.LEASE_CHANGES, ("acquired", "released", "lost"))
        self._workers_ended = Tally(meter, catalog.WORKERS_ENDED)
        self.workers = Gauge(meter, catalog.WORKERS)
        self._operational_events = Tally(meter, catalog.OPERATIONAL_EVENTS)
        self.circuits_open = Gauge(meter, catalog.CIRCUITS_OPEN)
        self.endpoints_throttled = Gauge(meter, catalog.ENDPOINTS_THROTTLED)
        self.deliveries_parked = Gauge(meter, catalog.DELIVERIES_PARKED)
        self.lanes_halted = Gauge(meter, catalog.LANES_HALTED)
        self.publish_queue_events = Gauge(meter, catalog.PUBLISH_QUEUE_EVENTS)
        self.publish_queue_bytes = Gauge(meter, catalog.PUBLISH_QUEUE_BYTES)
        self.in_flight = Gauge(meter, catalog.IN_FLIGHT)
        self.lanes = Gauge(meter, catalog.LANES)
        self.payload_bytes = Gauge(meter, catalog.PAYLOAD_BYTES)
        self.backlog = Gauge(meter, catalog.BACKLOG)
        self.backlog_age_s = Gauge(meter, catalog.BACKLOG_AGE)
        self.backlog_due = Gauge(meter, catalog.BACKLOG_DUE)
        self.backlog_due_age_s = Gauge(meter, catalog.BACKLOG_DUE_AGE)
        self.flush_lag_s = Gauge(meter, catalog.FLUSH_LAG)
        self.partitions_owned = Gauge(meter, catalog.PARTITIONS_OWNED)
        self.slo_late_age_s = Gauge(meter, catalog.SLO_LATE_AGE)
        self.xmin_age = Gauge(meter, catalog.DATABASE_XMIN_AGE)
        self.xmin_held_s = Gauge(meter, catalog.DATABASE_XMIN_HELD)
        self.retention_blocked = Gauge(meter, catalog.RETENTION_BLOCKED)
        self.upkeep_last_success_s = Gauge(meter, catalog.UPKEEP_LAST_SUCCESS)
        self._endpoint_backlog = Gauge(meter, catalog.ENDPOINT_BACKLOG)
        self._endpoint_backlog_age = Gauge(meter, catalog.ENDPOINT_BACKLOG_AGE)

    @classmethod
    def silent(cls) -> Self:
        """Instruments that go nowhere, for tests and tools."""
        return cls(NoOpMeterProvider().get_meter(catalog.SCOPE))

    def rpc_server_call(self, method: str, status: str, duration_s: float) -> None:
        """One gRPC call is over. `method` is `package.Service/Method`, `_OTHER` if not ours; `status` its code."""
        self._rpc.of(method, status, status if status in SERVER_FAULTS else "").record(duration_s)

    def events_published(self, count: int, result: str) -> None:
        """Events acknowledged: `stored` or `duplicate`."""
        self._published.add(count, result)

    def commit(self, *, events: int, rows: int, duration_s: float, result: str) -> None:
        """One group commit is over, with `result` `committed`, `failed` or `unknown`."""
        self._commit.of(result).record(duration_s)
        self._commit_events.record(events)
        self._rows.add(rows)

    def attempt(self, outcome: str, status_code: int | None, duration_s: float, span: Sampled | None = None) -> None:
        """One attempt is over; `status_code` is None where no answer came. `span`: the one recorded of it, if any."""
        series = self._attempt.of(outcome, status_class(status_code))
        series.record(duration_s)
        if span is not None:
            series.exemplify(duration_s, span)

    def delivered(self, latency_s: float, span: Sampled | None = None) -> None:
        """One delivery succeeded, `latency_s` after the event was accepted. `span`: its attempt's, where recorded."""
        self._deliveries.add(1, "delivered")
        self._latency.record(latency_s)
        if span is not None:
            self._latency.exemplify(latency_s, span)

    def slo_delivery(self, result: str) -> None:
        """One delivery kept its threshold, or not: one of `SLO_RESULTS`."""
        self._slo_deliveries.add(1, result)

    def settled(self, outcome: str, count: int = 1) -> None:
        """Deliveries settled without success: `dead_lettered`, `skipped`."""
        self._deliveries.add(count, outcome)

    def flushed(self, attempts: int, duration_s: float) -> None:
        """One flush of `attempts` rows is over."""
        self._flush_attempts.record(attempts)
        self._flush_duration.record(duration_s)

    def flush_dropped(self, attempts: int) -> None:
        """Attempts that the database refuses for good."""
        self._flush_dropped.add(attempts)

    def operational_event(self, event_type: str) -> None:
        """An event of the service's own was published; its type is one of a closed set."""
        self._operational_events.add(1, event_type)

    def lease_changed(self, change: str, count: int = 1) -> None:
        """Leases `acquired`, `released` or `lost`."""
        self._lease_changes.add(count, change)

    def worker_ended(self) -> None:
        """A worker ended unasked."""
        self._workers_ended.add()

    def database_operation(self, operation: str, duration_s: float, error_type: str = "") -> None:
        """One database operation is over; `operation` is ours (`publish`), `error_type` empty on success."""
        self._database.of(operation, error_type).record(duration_s)

    def worst_endpoints(self, worst: Sequence[tuple[str, str, int, float]]) -> None:
        """The worst endpoints as (tenant, endpoint, backlog, age in s); the caller bounds their number."""
        labels = [{"dispatcher.tenant": tenant, "dispatcher.endpoint": endpoint} for tenant, endpoint, _, _ in worst]
        self._endpoint_backlog.replace((row[2], label) for row, label in zip(worst, labels, strict=True))
        self._endpoint_backlog_age.replace((row[3], label) for row, label in zip(worst, labels, strict=True))
