"""The baseline of publishing: the same rows by the same statement, asyncpg alone.

`python -m tests.benchmarks.inserting DSN COUNT BATCH CONNECTIONS` prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid

import asyncpg

from dispatcher.model import EndpointKey, NewEvent
from dispatcher.store.database import Database, DatabaseOptions, prepare_connection
from dispatcher.store.publish import PublishRequest, publish
from dispatcher.store.routes import load
from tests.benchmarks.seeding import DATA_BYTES, TENANT, type_of

DATA = b"x" * DATA_BYTES


def batch_of(
    size: int, tenant_id: uuid.UUID, version: uuid.UUID, routes: list[tuple[str, EndpointKey]]
) -> PublishRequest:
    """One request with so many new events, each to one endpoint."""
    places = [routes[number % len(routes)] for number in range(size)]
    events = tuple(
        NewEvent(uuid.uuid4().hex, None, type_, DATA, "application/json", None, {}, None, None, None, None)
        for type_, _ in places
    )
    return PublishRequest(tenant_id, TENANT, version, events, tuple((key,) for _, key in places))


async def insert_all(dsn: str, count: int, size: int, connections: int) -> float:
    """Events per second, from `connections` writers at once. The batches are made before the clock starts."""
    async with Database.open(DatabaseOptions(dsn)) as database:
        known = await load(database, TENANT)
    assert known is not None
    routes = [(type_of(number), known.subscriptions[type_of(number)][0]) for number in range(len(known.subscriptions))]
    batches = [batch_of(size, known.tenant_id, known.version, routes) for _ in range(count // size)]
    waiting = iter(batches)

    async def work() -> None:
        connection = await asyncpg.connect(dsn)
        await prepare_connection(connection)
        for batch in waiting:
            await publish(connection, [batch], lock_timeout_s=5.0, timeout_s=30.0)
        await connection.close()

    start_s = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(connections)))
    return len(batches) * size / (time.perf_counter() - start_s)


if __name__ == "__main__":
    import uvloop

    dsn, count, size, connections = sys.argv[1], *map(int, sys.argv[2:5])
    print(json.dumps({"events_per_s": uvloop.run(insert_all(dsn, count, size, connections))}))
