"""Histograms that are counted here and handed to the SDK's readers as it collects.

`Histogram.record` of the SDK takes 5 to 8 µs (attributes hashed, a lock, a view and a reservoir per record), and every
delivery has two. Here a record is a search in the bounds and three additions; what is exported is the same
(https://opentelemetry.io/docs/specs/otel/metrics/data-model/#histogram).

Exemplars are kept of what has a recorded span only, the newest one of each bucket: an attempt without a span, which is
what most are, costs nothing more. The SDK's own would look up the current span at each record.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics import Histogram as SdkHistogram
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.metrics.export import Metric as MetricData

from dispatcher.telemetry.catalog import SCOPE, Metric

COMBINATIONS_MAX = 500
OVERFLOW = "_OTHER"


class Sampled(Protocol):
    """A recorded span, as an exemplar names it (`opentelemetry.trace.SpanContext`)."""

    @property
    def trace_id(self) -> int: ...

    @property
    def span_id(self) -> int: ...


class Series:
    """The distribution of one combination of attributes. `record` is for one thread, others may read meanwhile."""

    __slots__ = ("_bounds", "_exemplars", "attributes", "counts", "greatest", "least", "total")

    def __init__(self, attributes: Mapping[str, str], bounds: Sequence[float]) -> None:
        self.attributes = attributes
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.least, self.greatest = math.inf, -math.inf
        self._exemplars: dict[int, tuple[float, int, Sampled]] = {}

    def record(self, value: float) -> None:
        """One value, in the metric's unit."""
        self.counts[bisect_left(self._bounds, value)] += 1  # bounds are inclusive
        self.total += value
        if value < self.least:
            self.least = value
        if value > self.greatest:
            self.greatest = value

    def exemplify(self, value: float, span: Sampled) -> None:
        """A value just recorded is that of `span`."""
        self._exemplars[bisect_left(self._bounds, value)] = (value, time.time_ns(), span)

    def exemplars(self, after_ns: int, until_ns: int) -> list[Exemplar]:
        """Those of a time between."""
        return [
            Exemplar({}, value, at_ns, span.span_id, span.trace_id)
            for value, at_ns, span in list(self._exemplars.values())
            if after_ns < at_ns <= until_ns
        ]


class Histogram:
    """One metric: a series for each combination of its attributes' values, bounded; what comes later is `_OTHER`."""

    __slots__ = ("_constant", "_names", "_series", "metric")

    def __init__(self, metric: Metric, constant: Mapping[str, str] | None = None) -> None:
        """`constant` are the first attributes, with the value that they always have."""
        self.metric = metric
        self._constant = dict(constant or {})
        self._names = metric.attributes[len(self._constant) :]
        self._series: dict[tuple[str, ...], Series] = {}

    def of(self, *values: str) -> Series:
        """The series of these values, in the order of the table; an empty one is left out."""
        known = self._series.get(values)
        return known if known is not None else self._learn(values)

    def _learn(self, values: tuple[str, ...]) -> Series:
        if len(self._series) >= COMBINATIONS_MAX:
            values = (OVERFLOW,) * len(self._names)
        made = self._constant | {name: value for name, value in zip(self._names, values, strict=True) if value}
        return self._series.setdefault(values, Series(made, self.metric.buckets))

    def series(self) -> list[Series]:
        """All there are so far."""
        return list(self._series.values())


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a reader that wants differences was told of a series before."""

    counts: Sequence[int]
    total: float
    at_ns: int


class Histograms:
    """All histograms of a process."""

    def __init__(self) -> None:
        self._histograms: list[Histogram] = []
        self._start_ns = time.time_ns()

    def create(self, metric: Metric, constant: Mapping[str, str] | None = None) -> Histogram:
        """One more."""
        made = Histogram(metric, constant)
        self._histograms.append(made)
        return made

    def collect(self, seen: dict[Series, _Seen] | None, after_ns: int, now_ns: int) -> list[MetricData]:
        """The metrics that have values; since a reader's last time where it keeps `seen`, else since the start.
        Exemplars are those since `after_ns`, the reader's last time in either case."""
        temporality = AggregationTemporality.CUMULATIVE if seen is None else AggregationTemporality.DELTA
        collected = []
        for histogram in self._histograms:
            points = [self._point(series, seen, now_ns, after_ns) for series in histogram.series()]
            metric, filled = histogram.metric, [point for point in points if point.count]
            if filled:
                data = HistogramData(filled, temporality)
                collected.append(MetricData(metric.name, metric.meaning, metric.unit, data))
        return collected

    def _point(
        self, series: Series, seen: dict[Series, _Seen] | None, now_ns: int, after_ns: int
    ) -> HistogramDataPoint:
        counts, total, least, greatest = series.counts.copy(), series.total, series.least, series.greatest
        before = _Seen([0] * len(counts), 0.0, self._start_ns)
        if seen is not None:
            before = seen.get(series, before)
            seen[series] = _Seen(counts, total, now_ns)
            series.least, series.greatest = math.inf, -math.inf
        new = [count - told for count, told in zip(counts, before.counts, strict=True)]
        return HistogramDataPoint(
            attributes=series.attributes,
            start_time_unix_nano=before.at_ns,
            time_unix_nano=now_ns,
            count=sum(new),
            sum=total - before.total,
            bucket_counts=new,
            explicit_bounds=series._bounds,  # noqa: SLF001 -- of this module
            min=least,
            max=greatest,
            exemplars=series.exemplars(after_ns, now_ns),
        )


class WithHistograms(MetricReader):
    """A reader that is given our histograms beside what the SDK has collected."""

    histograms: Histograms | None = None
    _seen: dict[Series, _Seen] | None = None
    _shown_ns = 0
    """When this reader was last told: each exemplar is exported once."""

    def show(self, histograms: Histograms) -> None:
        """Collect these too."""
        self.histograms = histograms
        wanted = {t for kind, t in self._instrument_class_temporality.items() if issubclass(kind, SdkHistogram)}
        if AggregationTemporality.DELTA in wanted:
            self._seen = {}

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        if self.histograms is not None and any(
            _is_ours(s) for r in metrics_data.resource_metrics for s in r.scope_metrics
        ):
            last_ns, self._shown_ns = self._shown_ns, time.time_ns()
            metrics_data = _joined(metrics_data, self.histograms.collect(self._seen, last_ns, self._shown_ns))
        super()._receive_metrics(metrics_data, timeout_millis, **kwargs)  # type: ignore[safe-super]


class PrometheusReader(WithHistograms, PrometheusMetricReader):
    """For /metrics."""


class PeriodicReader(WithHistograms, PeriodicExportingMetricReader):
    """For an exporter."""


def _is_ours(scope: ScopeMetrics) -> bool:
    """The service always has counters, so its scope is always there."""
    return bool(scope.scope.name == SCOPE)


def _joined(data: MetricsData, ours: Sequence[MetricData]) -> MetricsData:
    resources = [
        replace(
            resource,
            scope_metrics=[
                replace(scope, metrics=[*scope.metrics, *ours]) if _is_ours(scope) else scope
                for scope in resource.scope_metrics
            ],
        )
        for resource in data.resource_metrics
    ]
    return replace(data, resource_metrics=resources)
