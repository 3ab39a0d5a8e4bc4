"""What the metrics promise: as the table says, bounded, and each value exported."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.trace import SpanContext

from dispatcher.telemetry import Instruments, catalog
from dispatcher.telemetry.catalog import METRICS, Kind
from dispatcher.telemetry.histograms import COMBINATIONS_MAX, Histograms, WithHistograms
from dispatcher.telemetry.instruments import SLO_RESULTS, status_class
from tests.support.measures import record_everything


class Reader(WithHistograms, InMemoryMetricReader):
    """What the others read, in memory."""


class Meters:
    def __init__(self, temporality: AggregationTemporality = AggregationTemporality.CUMULATIVE) -> None:
        self.reader = Reader({Histogram: temporality})
        histograms = Histograms()
        self.reader.show(histograms)
        meter = MeterProvider([self.reader], shutdown_on_exit=False).get_meter(catalog.SCOPE)
        self.instruments = Instruments(meter, histograms)

    def read(self) -> dict[str, Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
        return {metric.name: metric for metric in metrics}

    def points(self, name: str) -> dict[tuple[tuple[str, str], ...], Any]:
        return {tuple(sorted(point.attributes.items())): point for point in self.read()[name].data.data_points}


@pytest.fixture
def meters() -> Meters:
    return Meters()


def test_every_metric_of_the_table_is_exported_with_its_unit_and_meaning(meters: Meters) -> None:
    record_everything(meters.instruments)
    read = meters.read()
    assert set(read) == {metric.name for metric in METRICS}
    for metric in METRICS:
        assert (read[metric.name].unit, read[metric.name].description) == (metric.unit, metric.meaning)


def test_every_metric_has_exactly_the_attributes_of_the_table(meters: Meters) -> None:
    record_everything(meters.instruments)
    for metric in METRICS:
        for attributes in meters.points(metric.name):
            assert {name for name, _ in attributes} == set(metric.attributes), metric.name


def test_a_histogram_has_the_buckets_of_the_table(meters: Meters) -> None:
    record_everything(meters.instruments)
    for metric in METRICS:
        if metric.kind is Kind.HISTOGRAM:
            point, *_ = meters.points(metric.name).values()
            assert point.explicit_bounds == tuple(metric.buckets), metric.name


def test_a_histogram_counts_each_value_in_the_bucket_whose_bound_it_does_not_exceed(meters: Meters) -> None:
    bounds = catalog.DELIVERY_LATENCY.buckets
    for value in (bounds[0], bounds[1], bounds[1] + 1e-9, bounds[-1] * 2):
        meters.instruments.delivered(value)
    (point,) = meters.points("dispatcher.delivery.latency").values()
    assert list(point.bucket_counts) == [1, 1, 1, *[0] * (len(bounds) - 3), 1]
    assert (point.count, point.min, point.max) == (4, bounds[0], bounds[-1] * 2)
    assert point.sum == pytest.approx(bounds[0] + 2 * bounds[1] + 2 * bounds[-1])


def test_a_histogram_goes_on_from_the_start_for_a_reader_that_wants_it_so(meters: Meters) -> None:
    meters.instruments.delivered(0.2)
    (first,) = meters.points("dispatcher.delivery.latency").values()
    meters.instruments.delivered(0.3)
    (second,) = meters.points("dispatcher.delivery.latency").values()
    assert (first.count, second.count) == (1, 2)
    assert first.start_time_unix_nano == second.start_time_unix_nano


def test_a_histogram_tells_what_is_new_to_a_reader_that_wants_differences() -> None:
    meters = Meters(AggregationTemporality.DELTA)
    meters.instruments.delivered(0.2)
    (first,) = meters.points("dispatcher.delivery.latency").values()
    meters.instruments.delivered(0.3)
    meters.instruments.delivered(0.4)
    (second,) = meters.points("dispatcher.delivery.latency").values()
    assert (first.count, second.count, sum(second.bucket_counts)) == (1, 2, 2)
    assert (second.sum, second.min, second.max) == (pytest.approx(0.7), 0.3, 0.4)
    assert second.start_time_unix_nano == first.time_unix_nano
    meters.instruments.in_flight.set(1)
    assert "dispatcher.delivery.latency" not in meters.read()  # nothing new


def test_a_counter_counts_by_its_attribute(meters: Meters) -> None:
    meters.instruments.settled("skipped", 2)
    meters.instruments.settled("skipped")
    meters.instruments.delivered(1.0)
    points = meters.points(catalog.DELIVERIES.name)
    assert {dict(key)["dispatcher.delivery.outcome"]: point.value for key, point in points.items()} == {
        "skipped": 3,
        "delivered": 1,
        "dead_lettered": 0,
    }
    assert meters.read()[catalog.DELIVERIES.name].data.is_monotonic


def test_a_closed_counter_is_there_from_the_start_so_that_its_first_step_counts(meters: Meters) -> None:
    points = meters.points(catalog.SLO_DELIVERIES.name)
    assert {dict(key)["dispatcher.slo.result"]: point.value for key, point in points.items()} == dict.fromkeys(
        SLO_RESULTS, 0
    )


def test_a_call_has_an_error_type_where_its_status_is_the_servers_fault(meters: Meters) -> None:
    for status in ("OK", "NOT_FOUND", "UNAVAILABLE"):
        meters.instruments.rpc_server_call("a.B/C", status, 0.01)
    found = [dict(key) for key in meters.points(catalog.RPC_SERVER_CALL.name)]
    assert {a["rpc.response.status_code"]: a.get("error.type") for a in found} == {
        "OK": None,
        "NOT_FOUND": None,
        "UNAVAILABLE": "UNAVAILABLE",
    }


def test_a_gauge_with_one_attribute_shows_just_what_it_was_given_last(meters: Meters) -> None:
    meters.instruments.retention_blocked.by_label({"in_use": 2, "error": 1})
    meters.instruments.retention_blocked.by_label({"in_use": 0})
    points = meters.points(catalog.RETENTION_BLOCKED.name)
    assert {key: point.value for key, point in points.items()} == {(("dispatcher.retention.reason", "in_use"),): 0}


def test_an_exemplar_of_each_bucket_is_the_newest_with_a_span_and_is_told_once(meters: Meters) -> None:
    for number, (duration_s, traced) in enumerate([(0.02, True), (0.021, True), (0.022, False), (2.0, True)], 1):
        span = SpanContext(number, number + 10, is_remote=False) if traced else None
        meters.instruments.attempt("succeeded", 200, duration_s, span)
    (point,) = meters.points(catalog.ATTEMPT_DURATION.name).values()
    told = sorted((e.value, e.trace_id, e.span_id) for e in point.exemplars)
    assert told == [(0.021, 2, 12), (2.0, 4, 14)]
    (again,) = meters.points(catalog.ATTEMPT_DURATION.name).values()
    assert (list(again.exemplars), again.count) == ([], 4)


def test_a_gauge_may_follow_a_function_and_one_that_fails_hides_no_other(meters: Meters) -> None:
    meters.instruments.in_flight.follow(lambda: 17)
    meters.instruments.lanes.follow(lambda: 1 // 0)
    read = meters.read()
    assert read[catalog.IN_FLIGHT.name].data.data_points[0].value == 17
    assert catalog.LANES.name not in read


def test_only_the_present_worst_endpoints_are_named(meters: Meters) -> None:
    meters.instruments.worst_endpoints([("a", "x", 5, 1.0), ("a", "y", 6, 2.0)])
    assert len(meters.points(catalog.ENDPOINT_BACKLOG.name)) == 2
    meters.instruments.worst_endpoints([("a", "y", 7, 3.0)])
    ((attributes, point),) = meters.points(catalog.ENDPOINT_BACKLOG_AGE.name).items()
    assert dict(attributes) == {"dispatcher.tenant": "a", "dispatcher.endpoint": "y"}
    assert point.value == 3.0


def test_series_are_bounded_whatever_is_recorded(meters: Meters) -> None:
    for number in range(COMBINATIONS_MAX + 50):
        meters.instruments.rpc_server_call(f"method{number}", "OK", 0.01)
        meters.instruments.settled(f"outcome{number}")
    assert len(meters.points(catalog.RPC_SERVER_CALL.name)) == COMBINATIONS_MAX + 1
    points = meters.points(catalog.DELIVERIES.name)
    assert len(points) == COMBINATIONS_MAX + 1
    assert points[(("dispatcher.delivery.outcome", "_OTHER"),)].value == 53  # three were there before


def test_no_metric_but_the_worst_endpoints_names_an_endpoint() -> None:
    named = {metric.name for metric in METRICS if {"dispatcher.endpoint", "server.address"} & set(metric.attributes)}
    assert named == {catalog.ENDPOINT_BACKLOG.name, catalog.ENDPOINT_BACKLOG_AGE.name}


@pytest.mark.parametrize(("code", "word"), [(None, ""), (200, "2xx"), (599, "5xx"), (999, "other"), (0, "other")])
def test_a_receiver_does_not_choose_our_series(code: int | None, word: str) -> None:
    assert status_class(code) == word


def test_silent_instruments_take_everything() -> None:
    record_everything(Instruments.silent())
