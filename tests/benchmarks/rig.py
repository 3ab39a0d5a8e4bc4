"""What every benchmark stands on: a durable PostgreSQL, a receiver, dispatchers as processes, and what they cost."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from dispatcher.embedded.postgres import PostgresServer
from tests.benchmarks.processes import cpu_s, measured_cores, other_cores, pin
from tests.benchmarks.receivers import FastReceiver, fast_receiver
from tests.benchmarks.seeding import SECRET_KEYS
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Served

POLL_S = 0.1
ENDED_TIMEOUT_S = 30.0
SETTINGS = {
    "DISPATCHER_SECRET_KEYS": SECRET_KEYS,
    "DISPATCHER_AUTH_MODE": "none",
    "DISPATCHER_EGRESS_ALLOWED_NETWORKS": "127.0.0.0/8",
}
"""What a dispatcher cannot do without; all else is as delivered."""
SERVER_SETTINGS = {"max_connections": "200"}


@dataclass(frozen=True, slots=True)
class Rig:
    """The parts that outlive one measurement. `server` runs with fsync, synchronous commits and full page writes."""

    folder: Path
    server: PostgresServer
    cluster: Cluster
    receiver: FastReceiver

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[tuple[TestDatabase, asyncpg.Connection]]:
        """A migrated database of its own, and a connection to it."""
        async with self.cluster.migrated_database() as database:
            connection = await database.connect()
            try:
                await connection.execute("CREATE EXTENSION pg_stat_statements")
                yield database, connection
            finally:
                await connection.close()

    def dispatcher(self, database: TestDatabase, **variables: str) -> Served:
        """One that is not started yet; `variables` are settings in full."""
        return Served(database.dsn, self.folder, variables, base=SETTINGS)

    @contextlib.asynccontextmanager
    async def dispatching(
        self, database: TestDatabase, *, cores: set[int] | None = None, **variables: str
    ) -> AsyncIterator[Served]:
        """One that has just been started, on the core that is measured or on `cores`; ended if it still runs."""
        served = self.dispatcher(database, **variables)
        served.start()
        try:
            pin(served.pid, measured_cores() if cores is None else cores)
            yield served
        finally:
            if served.is_running():
                await ended(served)


async def ended(served: Served) -> None:
    """End it in good order; AssertionError where it can't be done in time, and it is killed."""
    try:
        served.terminate()
        await served.exit_code(ENDED_TIMEOUT_S)
    finally:
        served.kill()


@contextlib.contextmanager
def running_rig(*, own_receiver: bool = False) -> Iterator[Rig]:
    """All of it, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # the database's own user must get through
        server = PostgresServer(folder / "postgres", settings=SERVER_SETTINGS)
        stack.callback(server.stop)
        pin(os.getpid(), other_cores())
        server.start()
        receiver = stack.enter_context(fast_receiver(folder, own=own_receiver))
        yield Rig(folder, server, Cluster(server.dsn), receiver)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a measured stretch of work cost: CPU seconds by process, and what the database was asked and wrote."""

    cpu_s: Mapping[str, float]
    statements: int
    rows: int
    wal_bytes: int

    def per_event(self, events: int) -> dict[str, float]:
        """The same of one event, CPU in µs."""
        cpu = {f"{name}_cpu_us": seconds / events * 1e6 for name, seconds in self.cpu_s.items()}
        return cpu | {
            "statements": self.statements / events,
            "rows_written": self.rows / events,
            "wal_bytes": self.wal_bytes / events,
        }


def median_costs(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of several repetitions."""
    return {name: statistics.median(one[name] for one in each) for name in each[0]}


WRITTEN = """
SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS wal,
       (SELECT coalesce(sum(calls), 0) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
        WHERE d.datname = current_database() AND s.query NOT LIKE '%bench: not counted%')::bigint AS calls,
       (SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables)::bigint AS rows
-- bench: not counted"""


class Meter:
    """Measures between `begin` and `end`."""

    def __init__(self, connection: asyncpg.Connection, pids: Mapping[str, int]) -> None:
        self._connection = connection
        self._pids = dict(pids)

    async def begin(self, *, checkpoint: bool = True) -> None:
        """From here on. A checkpoint first, so that no measurement pays for what was written before it."""
        await self._connection.execute("SELECT pg_stat_force_next_flush() -- bench: not counted")
        if checkpoint:
            await self._connection.execute("CHECKPOINT -- bench: not counted")
        self._written = await self._connection.fetchrow(WRITTEN)
        self._cpu = {name: cpu_s(pid) for name, pid in self._pids.items()}

    def watch(self, name: str, pid: int) -> None:
        """A process that has been started since counts from its start."""
        self._pids[name], self._cpu[name] = pid, 0.0

    async def end(self) -> None:
        """Up to here."""
        self._cpu = {name: cpu_s(pid) - self._cpu[name] for name, pid in self._pids.items()}
        self._until = await self._connection.fetchrow(WRITTEN)

    async def cost(self) -> Cost:
        """What it was. Call it once the dispatcher has ended: a backend tells of its rows at its end, or much later."""
        then, until, now = self._written, self._until, await self._connection.fetchrow(WRITTEN)
        return Cost(
            self._cpu, until["calls"] - then["calls"], now["rows"] - then["rows"], int(until["wal"] - then["wal"])
        )
