"""What SkipDelivery and RetryDelivery do to one delivery, each in one fenced transaction with the command's end."""

from __future__ import annotations

import enum

from dispatcher.model import Command, DecisionKind, EndpointKey
from dispatcher.store import commands, halts
from dispatcher.store.database import Connection, Database
from dispatcher.store.fence import fenced, guard_plan


class CommandOutcome(enum.StrEnum):
    """What became of a command on a delivery.

    DONE: skipped, or due now. LIFTED: it had ended otherwise, and the halt that held what is behind it is gone.
    SETTLED: it had ended before, there was nothing to do.
    """

    DONE = "DONE"
    LIFTED = "LIFTED"
    SETTLED = "SETTLED"


IS_SETTLED = """
SELECT EXISTS (SELECT FROM attempt a
               WHERE a.tenant_id = $1 AND a.endpoint_id = $2 AND a.seq = $3 AND a.event_id = $4 AND a.outcome = 1)
    OR EXISTS (SELECT FROM decision d
               WHERE d.tenant_id = $1 AND d.endpoint_id = $2 AND d.seq = $3 AND d.event_id = $4)"""
INSERT_SKIP = """
INSERT INTO decision (tenant_id, endpoint_id, seq, kind, event_id, reason, actor, time)
VALUES ($1, $2, $3, $5, $4, $6, $7, clock_timestamp())
ON CONFLICT DO NOTHING"""
UNPARK = "DELETE FROM parked WHERE tenant_id = $1 AND endpoint_id = $2 AND seq = $3"


async def skip(db: Database, epoch: int, command: Command) -> CommandOutcome | None:
    """Put the skip on record and end a halt at it. None: the lease is gone, its next owner does the command.

    Raises UnavailableError; then nothing or everything is done, and doing it again changes nothing.
    """
    key, seq, event_id = command.key, int(command.arguments["seq"]), str(command.arguments["event_id"])
    async with fenced(db, {key.partition: epoch}) as (connection, held):
        if not held:
            return None
        is_settled = await _is_settled(connection, key, seq, event_id)
        was_halted = await _end_halt(connection, key, seq)
        if not is_settled:
            reason, actor = str(command.arguments["reason"]), command.actor
            await connection.execute(
                INSERT_SKIP, key.tenant_id, key.endpoint_id, seq, event_id, DecisionKind.SKIP, reason, actor
            )
            await connection.execute(UNPARK, key.tenant_id, key.endpoint_id, seq)
        outcome = _outcome(is_settled=is_settled, was_halted=was_halted)
        await commands.finish_on(connection, command, {"outcome": outcome.value})
    return outcome


MAKE_DUE = "UPDATE parked SET due_time = clock_timestamp() WHERE tenant_id = $1 AND endpoint_id = $2 AND seq = $3"


async def retry(db: Database, epoch: int, command: Command) -> CommandOutcome | None:
    """End a halt at the delivery, so that it is tried again. None and errors as for `skip`.

    A halt whose delivery has ended otherwise stays: there is nothing to try.
    """
    key, seq, event_id = command.key, int(command.arguments["seq"]), str(command.arguments["event_id"])
    async with fenced(db, {key.partition: epoch}) as (connection, held):
        if not held:
            return None
        is_settled = await _is_settled(connection, key, seq, event_id)
        if not is_settled:
            await _end_halt(connection, key, seq)
            await connection.execute(MAKE_DUE, key.tenant_id, key.endpoint_id, seq)
        outcome = _outcome(is_settled=is_settled, was_halted=False)
        await commands.finish_on(connection, command, {"outcome": outcome.value})
    return outcome


async def _is_settled(connection: Connection, key: EndpointKey, seq: int, event_id: str) -> bool:
    await guard_plan(connection)
    return bool(await connection.fetchval(IS_SETTLED, key.tenant_id, key.endpoint_id, seq, event_id))


async def _end_halt(connection: Connection, key: EndpointKey, seq: int) -> bool:
    return bool(await halts.delete(connection, key, [seq]))


def _outcome(*, is_settled: bool, was_halted: bool) -> CommandOutcome:
    if not is_settled:
        return CommandOutcome.DONE
    return CommandOutcome.LIFTED if was_halted else CommandOutcome.SETTLED
