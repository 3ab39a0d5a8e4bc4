"""Many endpoints, many events, random failures: each endpoint gets all of them in order."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.callers import WAIT_S, SteadyPublisher, calling
from tests.support.postgres import TestDatabase
from tests.support.process import processes
from tests.support.promises import assert_order_and_copies, failing_now_and_then, has_all
from tests.support.receiver import Receiver

ENDPOINTS = [f"e{i}" for i in range(50)]
EVENTS = 400


async def test_fifty_endpoints_get_four_hundred_events_each_in_order_through_two_processes(
    database: TestDatabase, tmp_path: Path
) -> None:
    with processes(database.dsn, tmp_path, 2) as both:
        async with calling(*both) as callers, Receiver() as receiver:
            receiver.default = failing_now_and_then(0.02)
            await callers[0].tenant()
            for name in ENDPOINTS:
                await callers[0].endpoint(name, receiver.url(name))
            publishers = [SteadyPublisher(f"p{i}", [caller], batch=10) for i, caller in enumerate(callers)]
            await asyncio.gather(*(publisher.run(EVENTS // 2) for publisher in publishers))
            await receiver.wait_for(has_all(receiver, ENDPOINTS, publishers), timeout_s=WAIT_S)
        for name in ENDPOINTS:
            assert_order_and_copies(receiver, name, publishers)
            assert [request.sequence for request in receiver.accepted(name)] == list(range(1, EVENTS + 1))
        assert both[0].troubles() + both[1].troubles() == []
