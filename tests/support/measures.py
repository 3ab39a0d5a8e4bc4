"""Instruments that have recorded one of everything, and the page that Prometheus reads of them."""

from __future__ import annotations

from functools import cache

from prometheus_client import generate_latest

from dispatcher.model import Outcome
from dispatcher.telemetry import ExportPlan, Instruments, start_telemetry
from tests.support.promql import Exposition


def record_everything(instruments: Instruments) -> None:
    """Give every metric of the catalog at least one value, with all its attributes."""
    instruments.rpc_server_call("webhooks.v1.PublisherService/Publish", "UNAVAILABLE", 0.01)
    instruments.events_published(3, "stored")
    instruments.commit(events=3, rows=6, duration_s=0.002, result="committed")
    for outcome in Outcome:
        instruments.attempt(outcome.name.lower(), 200, 0.05)
    instruments.delivered(0.2)
    instruments.settled("dead_lettered", 2)
    instruments.slo_delivery("good")
    instruments.flushed(10, 0.001)
    instruments.flush_dropped(1)
    instruments.worker_ended()
    instruments.workers.set(2)
    instruments.lease_changed("acquired", 256)
    instruments.operational_event("dispatcher.circuit.opened")
    instruments.database_operation("publish", 0.001, "UniqueViolationError")
    instruments.worst_endpoints([("acme", "orders", 12, 3.5)])
    instruments.xmin_age.by_label({"session": 7})
    instruments.xmin_held_s.by_label({"session": 7.5})
    instruments.retention_blocked.by_label({"in_use": 1})
    for gauge in vars(instruments).values():
        if hasattr(gauge, "set") and not gauge._points:
            gauge.set(4)


@cache
def exposition() -> Exposition:
    """/metrics of a service that has recorded everything."""
    telemetry = start_telemetry(ExportPlan(), version="0.1", instance_id="i-1")
    record_everything(telemetry.instruments)
    return Exposition.of(generate_latest(telemetry.registry).decode())
