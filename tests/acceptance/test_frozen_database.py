"""The end of a process whose database is frozen: it owes nobody a word, so no end may wait for one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dispatcher.config import Settings
from tests.support.callers import WAIT_S, calling, event
from tests.support.node import QUICK
from tests.support.postgres import TestDatabase
from tests.support.process import processes
from tests.support.proxy import proxied
from tests.support.receiver import Receiver

VARIABLES = {
    "DISPATCHER_DELIVERY_DRAIN_S": "1",
    "DISPATCHER_GRPC_DRAIN_S": "1",
    "DISPATCHER_DATABASE_CONNECT_TIMEOUT_S": "1",
    "DISPATCHER_TELEMETRY_FLUSH_TIMEOUT_S": "1",
}
IN_THE_MIDDLE_S = 0.5
"""Long enough for every loop of delivery to have asked something that is not answered."""


async def test_the_end_comes_in_time_though_the_database_never_answers_again(
    database: TestDatabase, tmp_path: Path
) -> None:
    async with proxied(database.dsn) as (proxy, dsn), Receiver() as receiver:
        stop_max_s = Settings.load(QUICK | VARIABLES | {"DISPATCHER_DATABASE_URL": dsn}).process_stop_max_s
        with processes(dsn, tmp_path, 1, VARIABLES) as (served,):
            async with calling(served) as (caller,):
                await caller.tenant()
                await caller.endpoint("a", receiver.url("a"))
                await caller.publish(event("e1"))
                await receiver.wait_for(1, timeout_s=WAIT_S)
                proxy.open_road.clear()
                publishing = asyncio.ensure_future(caller.publish(event("e2")))
                reading = asyncio.ensure_future(caller.endpoint("b", receiver.url("b")))
                await asyncio.sleep(IN_THE_MIDDLE_S)
                served.terminate()
                assert await served.exit_code(stop_max_s) == 0
                await asyncio.wait({publishing, reading}, timeout=WAIT_S)
                assert publishing.exception() is not None, "nothing can be acknowledged"
                assert reading.exception() is not None
        assert served.troubles() == []
