"""What a row of the outbox costs in SQL: one event to very many endpoints, and as many events to one endpoint each."""

from __future__ import annotations

import asyncpg
import grpc.aio
from webhooks.v1 import event_pb2, publisher_pb2, publisher_pb2_grpc

from tests.benchmarks.publishing import BATCH, TIMEOUT_S
from tests.benchmarks.report import Row, Sense, Target
from tests.benchmarks.rig import Rig
from tests.benchmarks.seeding import DATA, TENANT, seed_endpoints, type_of
from tests.benchmarks.sizes import Sizes

TO_ALL = "bench.all"
ADD_PATTERN = "UPDATE endpoint SET event_types = event_types || $1::text, state = 'PAUSED'"
RESET = "SELECT pg_stat_statements_reset()"
SQL_TIME_US = """
SELECT sum(s.total_exec_time) * 1000 FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
WHERE d.datname = current_database() AND s.query ~ 'FROM publish(_one)?\\('"""


async def fan_out(rig: Rig, sizes: Sizes) -> list[Row]:
    """SQL time of each outbox row that publishing writes; both kinds on the same endpoints, one call before either."""
    to_one, to_all = [], []
    async with rig.database() as (database, connection):
        numbers = range(sizes.fan_out)
        patterns = [type_of(number, sizes.fan_out) for number in numbers]
        await seed_endpoints(connection, [rig.receiver.url(f"e/{n}") for n in numbers], patterns=patterns)
        await connection.execute(ADD_PATTERN, TO_ALL)
        await connection.execute("ANALYZE")
        async with rig.dispatching(database) as served:
            address = f"127.0.0.1:{served.grpc_port}"
            async with grpc.aio.insecure_channel(address) as channel:
                stub = publisher_pb2_grpc.PublisherServiceStub(channel)
                await _publish(stub, [[type_of(0, sizes.fan_out)]])
                for _ in range(sizes.repeat):
                    batches = [patterns[first : first + BATCH] for first in range(0, len(patterns), BATCH)]
                    to_one.append(await _row_us(connection, stub, batches))
                    to_all.append(await _row_us(connection, stub, [[TO_ALL]]))
    note = f"one event to {sizes.fan_out:,} endpoints against {sizes.fan_out:,} events to one each, {BATCH} a call"
    return [Row("fan_out", "µs/row", to_all, Target(Sense.AT_MOST, 1.0), to_one, note=note)]


async def _row_us(
    connection: asyncpg.Connection, stub: publisher_pb2_grpc.PublisherServiceAsyncStub, batches: list[list[str]]
) -> float:
    rows = await connection.fetchval("SELECT count(*) FROM outbox")
    await connection.execute(RESET)
    await _publish(stub, batches)
    sql_us: float = await connection.fetchval(SQL_TIME_US)
    written = await connection.fetchval("SELECT count(*) FROM outbox") - rows
    assert written >= sum(map(len, batches)), f"{written} rows were written"
    return sql_us / written


async def _publish(stub: publisher_pb2_grpc.PublisherServiceAsyncStub, batches: list[list[str]]) -> None:
    for types in batches:
        events = [event_pb2.Event(type=type_, data=DATA) for type_ in types]
        request = publisher_pb2.PublishRequest(parent=f"tenants/{TENANT}", events=events)
        await stub.Publish(request, timeout=TIMEOUT_S, wait_for_ready=True)
