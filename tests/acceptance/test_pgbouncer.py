"""Behind PgBouncer in transaction mode nothing needs a session: the same promises, through restarts of the pooler."""

from __future__ import annotations

from pathlib import Path

from tests.support.callers import WAIT_S, SteadyPublisher, calling
from tests.support.pgbouncer import POOL_SIZE, pooled
from tests.support.postgres import TestDatabase
from tests.support.process import processes
from tests.support.promises import assert_order_and_copies, failing_now_and_then, has_all
from tests.support.receiver import Receiver

ENDPOINTS = [f"e{i}" for i in range(6)]
POOLED = {"DISPATCHER_DATABASE_POOLED": "true"}


async def test_two_processes_behind_pgbouncer_deliver_all_in_order_through_a_sigkill(
    database: TestDatabase, tmp_path: Path
) -> None:
    with pooled(database.dsn, tmp_path) as through, processes(through, tmp_path, 2, POOLED) as (doomed, survivor):
        async with calling(doomed, survivor) as callers, Receiver() as receiver:
            receiver.default = failing_now_and_then(0.03, delay_s=0.002)
            await callers[0].tenant()
            for name in ENDPOINTS:
                await callers[0].endpoint(name, receiver.url(name))
            publishers = [SteadyPublisher("p", callers), SteadyPublisher("q", callers[::-1])]
            async with publishers[0].streaming(), publishers[1].streaming():
                await receiver.wait_for(300, timeout_s=WAIT_S)
                doomed.kill()
                await publishers[0].acknowledge(50)
                await doomed.started()
                await publishers[1].acknowledge(50)
            await receiver.wait_for(has_all(receiver, ENDPOINTS, publishers), timeout_s=WAIT_S)
        connection = await database.connect()
        try:
            backends = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        finally:
            await connection.close()
    assert 0 < backends <= POOL_SIZE, "nothing was pooled"
    for name in ENDPOINTS:
        assert_order_and_copies(receiver, name, publishers)
    assert doomed.troubles() == survivor.troubles() == []
