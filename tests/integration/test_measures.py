"""What a running service counts is what has happened."""

from __future__ import annotations

import time

from prometheus_client import generate_latest

from tests.support.postgres import TestDatabase
from tests.support.promql import Exposition
from tests.support.receiver import Receiver
from tests.support.service import Service, running_service
from tests.support.waiting import until


def page_of(service: Service) -> str:
    return generate_latest(service.node.core.telemetry.registry).decode()


async def test_an_event_is_counted_once_and_a_copy_of_it_as_such(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        await service.publish("e-1", "e-2", "e-3")
        await service.publish("e-3")

        async def are_delivered() -> bool:
            return 'dispatcher_slo_deliveries_total{dispatcher_slo_result="good"} 3.0' in page_of(service)

        await until(are_delivered)
        page = page_of(service)
    assert 'dispatcher_events_published_total{dispatcher_publish_result="stored"} 3.0' in page
    assert 'dispatcher_events_published_total{dispatcher_publish_result="duplicate"} 1.0' in page
    assert 'dispatcher_deliveries_total{dispatcher_delivery_outcome="delivered"} 3.0' in page


async def test_the_database_s_and_the_upkeep_s_gauges_are_there(database: TestDatabase) -> None:
    async with running_service(database.dsn) as service:

        async def are_there() -> bool:
            shown = Exposition.of(page_of(service)).labels
            return {"dispatcher_database_xmin_held_seconds", "dispatcher_retention_blocked"} <= shown.keys()

        await until(are_there, 30)
        values = Exposition.of(page_of(service)).values
    assert values["dispatcher_database_xmin_age", "dispatcher_xmin_holder"] == {
        "session",
        "standby",
        "slot",
        "prepared",
    }
    assert values["dispatcher_retention_blocked", "dispatcher_retention_reason"] == {"undelivered", "in_use", "error"}


async def test_it_tells_when_upkeep_last_went_through(database: TestDatabase) -> None:
    began_s = time.time()
    async with running_service(database.dsn) as service:

        async def has_gone_through() -> bool:
            points = service.node.core.telemetry.instruments.upkeep_last_success_s._points
            return any(began_s <= at_s <= time.time() for at_s, _ in points)

        await until(has_gone_through, 30)
