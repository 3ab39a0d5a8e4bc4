"""Low watermarks: everything up to a cursor is settled. Moved lazily by the owner, never back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dispatcher.model import Cursor
from dispatcher.store import forms
from dispatcher.store.database import Connection, Database
from dispatcher.store.fence import fenced
from dispatcher.store.forms import by_tenant

ADVANCE = by_tenant(
    """
INSERT INTO cursor (tenant_id, endpoint_id, seq, time)
SELECT w.tenant_id, w.endpoint_id, w.seq, w.time
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::timestamptz[]) w(tenant_id, endpoint_id, seq, time)
ORDER BY w.tenant_id, w.endpoint_id
ON CONFLICT (tenant_id, endpoint_id) DO UPDATE SET seq = excluded.seq, time = excluded.time
WHERE cursor.seq < excluded.seq"""
)


async def advance(db: Database, epochs: Mapping[int, int], cursors: Sequence[Cursor]) -> set[int]:
    """Move cursors forward for the partitions still held at these epochs; returns those partitions."""
    async with fenced(db, epochs) as (connection, held):
        await advance_on(connection, [c for c in cursors if c.key.partition in held])
    return held


async def advance_on(connection: Connection, cursors: Sequence[Cursor]) -> None:
    """Move cursors forward inside a transaction. Each endpoint may appear once."""
    if cursors:
        records = [(c.key.tenant_id, c.key.endpoint_id, c.seq, c.time) for c in cursors]
        await forms.execute(connection, ADVANCE, records)
