"""Operators' requests: appended by whoever is asked, executed by the owner of the endpoint's partition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg

from dispatcher.model import Command, CommandKind, EndpointKey
from dispatcher.store.database import Connection, Database
from dispatcher.store.fence import fenced

OPEN_COMMANDS_MAX = 1000
"""Commands read at once; the rest follows when these are done."""
RESULT_POLL_S = 0.1

APPEND = """
INSERT INTO command (tenant_id, command_id, endpoint_id, partition, kind, arguments, actor, create_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, clock_timestamp())
ON CONFLICT DO NOTHING"""


async def append(db: Database | Connection, command: Command) -> None:
    """Ask for something; inside the caller's transaction where a connection is given. Asking again changes nothing."""
    await db.execute(
        APPEND,
        command.key.tenant_id,
        command.command_id,
        command.key.endpoint_id,
        command.key.partition,
        command.kind,
        dict(command.arguments),
        command.actor,
    )


OPEN_COMMANDS = """
SELECT tenant_id, command_id, endpoint_id, kind, arguments, actor, create_time
FROM command
WHERE done_time IS NULL AND partition = ANY ($1::smallint[]) AND kind = ANY ($3::text[])
ORDER BY create_time, command_id
LIMIT $2"""


async def open_commands(db: Database, partitions: Sequence[int], limit: int = OPEN_COMMANDS_MAX) -> list[Command]:
    """Commands of these partitions that nobody has finished, oldest first; those of a newer release's kind are left."""
    known = [kind.value for kind in CommandKind]
    return [_command(row) for row in await db.fetch(OPEN_COMMANDS, list(partitions), limit, known)]


FINISH = """
UPDATE command SET done_time = clock_timestamp(), result = $3
WHERE tenant_id = $1 AND command_id = $2 AND done_time IS NULL"""


async def finish(db: Database, epoch: int, command: Command, result: Mapping[str, Any]) -> bool:
    """Put the result on record, under the lease. False: the lease is gone, its next owner does the command again."""
    async with fenced(db, {command.key.partition: epoch}) as (connection, held):
        if held:
            await finish_on(connection, command, result)
    return bool(held)


async def finish_on(connection: Connection, command: Command, result: Mapping[str, Any]) -> None:
    """Put the result on record inside a fenced transaction."""
    await connection.execute(FINISH, command.key.tenant_id, command.command_id, dict(result))


READ_RESULT = "SELECT result FROM command WHERE tenant_id = $1 AND command_id = $2 AND done_time IS NOT NULL"


async def read_result(db: Database, tenant_id: UUID, command_id: UUID) -> Mapping[str, Any] | None:
    """The result of a finished command; None while it is open (or was never asked)."""
    result: Mapping[str, Any] | None = await db.fetchval(READ_RESULT, tenant_id, command_id)
    return result


async def wait_result(db: Database, tenant_id: UUID, command_id: UUID, timeout_s: float) -> Mapping[str, Any] | None:
    """Poll for the result for so long; None when it has not come."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = await read_result(db, tenant_id, command_id)
        if result is not None or time.monotonic() >= deadline:
            return result
        await asyncio.sleep(RESULT_POLL_S)


REMOVE_DONE = "DELETE FROM command WHERE done_time < clock_timestamp() - make_interval(secs => $1)"


async def remove_done(db: Database, kept_s: float) -> None:
    """Forget commands finished so long ago."""
    await db.execute(REMOVE_DONE, float(kept_s))


def _command(row: asyncpg.Record) -> Command:
    return Command(
        command_id=row["command_id"],
        key=EndpointKey(row["tenant_id"], row["endpoint_id"]),
        kind=CommandKind(row["kind"]),
        arguments=row["arguments"],
        actor=row["actor"],
        create_time=row["create_time"],
    )
