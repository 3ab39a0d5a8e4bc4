"""What the database does for us, as telemetry sees it: one duration per statement, and a span inside a call."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache

import asyncpg
from asyncpg.connection import LoggedQuery
from asyncpg.pool import PoolConnectionProxy

from dispatcher.telemetry import Instruments, Tracing

OTHER = "_OTHER"
TRANSACTION = "TRANSACTION"
# The first operation found in the text stands for all of it: semantic conventions, database spans, db.operation.name.
_OPERATION = re.compile(
    r"\b(SELECT|INSERT|UPDATE|DELETE|COPY|CALL|BEGIN|COMMIT|ROLLBACK|SET|LISTEN|NOTIFY|CREATE|ALTER|DROP)\b",
    re.IGNORECASE,
)


@lru_cache(maxsize=512)
def operation_of(sql: str) -> str:
    """`db.operation.name` of a statement, `_OTHER` where there is none that we know."""
    found = _OPERATION.search(sql)
    return found[0].upper() if found else OTHER


@dataclass(frozen=True, slots=True)
class Observation:
    """Where durations and spans go."""

    instruments: Instruments
    tracing: Tracing

    def watch(self, connection: asyncpg.Connection | PoolConnectionProxy) -> None:
        """Measure each statement of this connection from now on; COPY is not among them, a flush has its own metric."""
        connection.add_query_logger(self._statement_ended)

    def span(self, operation: str) -> AbstractContextManager[None]:
        """The span around an operation, inside another one only."""
        return self.tracing.database_span(operation)

    def _statement_ended(self, query: LoggedQuery) -> None:
        error = "" if query.exception is None else type(query.exception).__name__
        self.instruments.database_operation(operation_of(query.query), query.elapsed, error)
