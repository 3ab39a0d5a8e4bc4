"""The audit table: who did what, when, from where. Append-only, by days, kept for longer than anything else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from dispatcher.store import filters
from dispatcher.store.database import Database
from dispatcher.store.filters import Operator
from dispatcher.store.paging import SCAN_ROWS_MAX, Page, PageRequest, cut, decode_token, encode_token

FILTER_RULES = {
    "tenant": filters.TEXT,
    "principal": filters.TEXT,
    "method": filters.TEXT,
    "time": filters.TIME_RANGE,
}


@dataclass(frozen=True, slots=True)
class AuditCall:
    """A call that changes something. `resource` is its name as the caller gave it, bounded; `tenant` is empty where it
    is about the deployment."""

    audit_id: UUID
    tenant: str
    principal: str
    auth_mode: str
    method: str
    resource: str
    peer: str
    request_id: str
    trace_id: str


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One row. `status` is empty when `phase` is BEGUN, else a gRPC code."""

    time: datetime
    phase: str
    call: AuditCall
    status: str


APPEND_AUDIT = """
INSERT INTO audit (time, audit_id, phase, tenant, principal, auth_mode, method, resource, peer, request_id, trace_id,
                   status)
VALUES (clock_timestamp(), $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"""


class AuditTable:
    """Puts calls on record."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def begun(self, call: AuditCall) -> None:
        """That a call is about to be carried out. Errors: UnavailableError, and then it must not be."""
        await _append(self._db, call, "BEGUN", "")

    async def ended(self, call: AuditCall, status: str) -> None:
        """How it ended. Errors: UnavailableError."""
        await _append(self._db, call, "ENDED", status)


async def _append(db: Database, call: AuditCall, phase: str, status: str) -> None:
    await db.execute(
        APPEND_AUDIT,
        call.audit_id,
        phase,
        call.tenant,
        call.principal,
        call.auth_mode,
        call.method,
        call.resource,
        call.peer,
        call.request_id,
        call.trace_id,
        status,
    )


# Newest first, along an index; the scan is bounded, so a filter that few rows fit gives short pages.
LIST_AUDIT = """
WITH scanned AS MATERIALIZED (
    SELECT time, audit_id, phase, tenant, principal, auth_mode, method, resource, peer, request_id, trace_id, status
    FROM audit
    WHERE (time, audit_id, phase) < ($1, $2, $3)
      AND ($4::timestamptz IS NULL OR time >= $4) AND ($5::timestamptz IS NULL OR time < $5)
      AND ($6::text IS NULL OR tenant = $6)
    ORDER BY time DESC, audit_id DESC, phase DESC LIMIT $7
)
SELECT n.scan_count, z.scan_time, z.scan_audit_id, z.scan_phase, p.*
FROM (SELECT count(*) AS scan_count FROM scanned) n
LEFT JOIN (
    SELECT time AS scan_time, audit_id AS scan_audit_id, phase AS scan_phase FROM scanned
    ORDER BY time, audit_id, phase LIMIT 1
) z ON true
LEFT JOIN (
    SELECT * FROM scanned WHERE ($8::text IS NULL OR principal = $8) AND ($9::text IS NULL OR method = $9)
    ORDER BY time DESC, audit_id DESC, phase DESC LIMIT $10
) p ON true
ORDER BY p.time DESC, p.audit_id DESC, p.phase DESC"""
TIME_MAX = datetime(9999, 1, 1, tzinfo=UTC)


async def list_page(db: Database, request: PageRequest) -> Page[AuditRecord]:
    """Records, newest first. Filter: `tenant`, `principal`, `method`, `time`. A page may be short or empty and still
    have a next one. Errors: InvalidRequestError."""
    query = ("audit", request.filter)
    wanted = filters.parse(request.filter, FILTER_RULES)
    position = decode_token(query, request.token, (datetime, UUID, str)) or (TIME_MAX, UUID(int=0), "")
    rows = await db.fetch(
        LIST_AUDIT,
        *position,
        wanted.time("time", Operator.FROM),
        wanted.time("time", Operator.BEFORE),
        wanted.text("tenant"),
        SCAN_ROWS_MAX,
        wanted.text("principal"),
        wanted.text("method"),
        request.size + 1,
    )
    found, end = cut(rows, request.size, SCAN_ROWS_MAX, ("time", "audit_id", "phase"))
    return Page(tuple(map(_record, found)), encode_token(query, end) if end else "")


def _record(row: asyncpg.Record) -> AuditRecord:
    return AuditRecord(
        time=row["time"],
        phase=row["phase"],
        call=AuditCall(
            audit_id=row["audit_id"],
            tenant=row["tenant"],
            principal=row["principal"],
            auth_mode=row["auth_mode"],
            method=row["method"],
            resource=row["resource"],
            peer=row["peer"],
            request_id=row["request_id"],
            trace_id=row["trace_id"],
        ),
        status=row["status"],
    )
