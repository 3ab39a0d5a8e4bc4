"""One writer connection, and the question what a batch came to when its reply was lost."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from dispatcher.errors import CommitUnknownError, UnavailableError
from dispatcher.store.database import AWAY_ERRORS, Database, is_one_tenant
from dispatcher.store.publish import PublishRequest, PublishResult, RequestResult, Verdict, publish, read_back

log = logging.getLogger(__name__)

SETTLE_INTERVAL_S = 0.05
XID_NOTICE = re.compile(r"dispatcher\.xid (\d+)")


# A replica may be behind: what it has not heard of yet is not over.
SELECT_STATUS = """
SELECT CASE WHEN pg_is_in_recovery() THEN 'in progress' ELSE pg_xact_status($1::text::xid8) END"""


async def read_status(connection: asyncpg.Connection, xid: int) -> str | None:
    """`in progress`, `committed`, `aborted`, or None where the transaction is too old to tell."""
    status: str | None = await connection.fetchval(SELECT_STATUS, str(xid), timeout=SETTLE_INTERVAL_S * 20)
    return status


# A commit that wrote WAL waits for the synchronous standby, and WAL goes there in order: once this is confirmed, all
# that was committed before it is. The lost reply's own wait may have been cut short.
CONFIRM = """
SELECT pg_logical_emit_message(true, 'dispatcher', ''),
       CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END"""


async def confirm_durable(connection: asyncpg.Connection, timeout_s: float) -> None:
    """Returns once everything committed so far is as durable as the database is told to make it.

    A cancelled wait is only a warning: the caller looks for that.
    """
    await connection.execute(CONFIRM, timeout=timeout_s)


class BatchRefusedError(Exception):
    """The server answered with an error, so the transaction is rolled back: nothing of the batch was written."""

    def __init__(self, cause: asyncpg.PostgresError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """`reply` is None where it was lost and the results were read back."""

    results: list[RequestResult]
    reply: PublishResult | None


@dataclass(slots=True)
class _Notices:
    """What the server said beside the result of the call in flight."""

    xid: int | None = None
    warning: str | None = None

    def clear(self) -> None:
        self.xid = self.warning = None

    def receive(self, _connection: Any, message: Any) -> None:
        found = XID_NOTICE.match(message.message or "")
        if found:
            self.xid = int(found[1])
        elif message.severity == "WARNING":
            self.warning = message.message


class PublishWriter:
    """Calls publish() on a connection of its own, which is made when needed and dropped when in doubt."""

    def __init__(self, database: Database, *, lock_timeout_s: float, timeout_s: float, settle_timeout_s: float) -> None:
        self._database = database
        self._lock_timeout_s = lock_timeout_s
        self._timeout_s = timeout_s
        self._settle_timeout_s = settle_timeout_s
        self._connection: asyncpg.Connection | None = None
        self._notices = _Notices()

    @property
    def takes_one_tenant(self) -> bool:
        """Whether a batch must be of one tenant, as far as is known before the first connection."""
        asked = self._database.options.one_tenant
        return bool(asked) if self._connection is None else is_one_tenant(self._connection)

    def terminate(self) -> None:
        """Drop the connection without a farewell."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def write(self, requests: Sequence[PublishRequest]) -> WriteOutcome:
        """Write one batch.

        Raises BatchRefusedError and UnavailableError where nothing was written, CommitUnknownError where nobody knows.
        """
        connection = await self._connected()
        if is_one_tenant(connection) and len({request.tenant_id for request in requests}) > 1:
            # Only for the first batch, formed before anybody knew; whoever is refused halves it.
            raise BatchRefusedError(asyncpg.FeatureNotSupportedError("a batch must be of one tenant"))
        notices = self._notices
        notices.clear()
        try:
            reply = await publish(
                connection,
                requests,
                lock_timeout_s=self._lock_timeout_s,
                timeout_s=self._timeout_s,
                with_timeline=self._database.timeline != 0,
            )
        except asyncio.CancelledError:
            self.terminate()
            raise
        except asyncpg.ReadOnlySQLTransactionError as error:
            self.terminate()  # the next connection may find the primary
            self._database.availability.failed()
            raise UnavailableError("the database is a replica; nothing was written") from error
        except asyncpg.PostgresError as error:
            if not _is_rolled_back(error):
                return await self._settle(requests, notices.xid, error)
            raise BatchRefusedError(error) from error
        except AWAY_ERRORS as error:
            return await self._settle(requests, notices.xid, error)
        if notices.warning is not None:
            self._database.availability.answered()
            raise CommitUnknownError(f"the commit was not confirmed by the standby: {notices.warning}")
        self._database.availability.answered()
        # Rows of another timeline do not continue what lanes have in memory: their owner reads them when it knows.
        return WriteOutcome(reply.requests, reply if self._database.is_on(reply.timeline) else None)

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._database.connect()
            self._connection.add_log_listener(self._notices.receive)
        return self._connection

    async def _settle(self, requests: Sequence[PublishRequest], xid: int | None, cause: BaseException) -> WriteOutcome:
        """The reply is lost; ask the database what became of the transaction."""
        log.warning("the reply to a publish was lost, asking for its outcome", extra={"error": type(cause).__name__})
        self.terminate()
        if xid is None:
            self._database.availability.failed()
            raise CommitUnknownError("the connection was lost while the event was being stored") from cause
        status = await self._final_status(xid)
        if status == "aborted":
            raise UnavailableError("the connection was lost; nothing was written") from cause
        if status != "committed":
            raise CommitUnknownError("the connection was lost while the event was being stored") from cause
        try:
            connection = await self._connected()
            self._notices.clear()
            with self._database.away_as_unavailable():
                await confirm_durable(connection, self._settle_timeout_s)
                found = await read_back(connection, requests, xid)
        except (UnavailableError, asyncpg.PostgresError) as error:  # of a replica that it cannot confirm, too
            self.terminate()
            raise CommitUnknownError("the events may be stored; the database did not confirm them") from error
        if self._notices.warning is not None:
            raise CommitUnknownError(f"the commit was not confirmed by the standby: {self._notices.warning}")
        return WriteOutcome([_found(result) for result in found], None)

    async def _final_status(self, xid: int) -> str | None:
        """`committed`, `aborted`, or None where it is not to be learnt within the bound."""
        deadline = time.monotonic() + self._settle_timeout_s
        while time.monotonic() < deadline:
            try:
                connection = await self._connected()
                status = await read_status(connection, xid)
            except UnavailableError:
                status = "in progress"
            except asyncpg.PostgresError:
                return None  # the server knows no such transaction: another timeline
            except AWAY_ERRORS:
                self.terminate()
                status = "in progress"
            if status != "in progress":
                return status
            await asyncio.sleep(SETTLE_INTERVAL_S)
        return None


def _is_rolled_back(error: asyncpg.PostgresError) -> bool:
    """An ERROR ends the transaction; a FATAL ends the connection, perhaps just after the commit."""
    return not isinstance(error, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError) or isinstance(
        error, asyncpg.QueryCanceledError
    )


def _found(result: RequestResult | None) -> RequestResult:
    """A request without a trace was refused and wrote nothing; sent again, it is told why."""
    return result or RequestResult(Verdict.STALE)
