"""What Citus asks of the schema, as far as a plain PostgreSQL can tell."""

from __future__ import annotations

import asyncpg

from dispatcher.store import citus

TABLES = """
SELECT relname FROM pg_class
WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace AND NOT relispartition"""
UNIQUE_WITHOUT_TENANT = """
SELECT i.indexrelid::regclass::text FROM pg_index i
WHERE i.indisunique AND i.indrelid = ANY ($1::text[]::regclass[])
  AND (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum = i.indkey[0]) <> 'tenant_id'"""
BETWEEN_TABLES = """
SELECT conname FROM pg_constraint WHERE contype = 'f'
UNION ALL SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND NOT tgrelid::regclass::text ~ '^audit(_p[0-9]+)?$'"""


async def test_every_table_has_its_place(connection: asyncpg.Connection) -> None:
    placed = [*citus.REFERENCE_TABLES, *citus.DISTRIBUTED_TABLES, *citus.LOCAL_TABLES]
    assert sorted(placed) == sorted(name for (name,) in await connection.fetch(TABLES))
    assert len(set(placed)) == len(placed)


async def test_the_tenant_leads_every_key_of_a_distributed_table(connection: asyncpg.Connection) -> None:
    assert await connection.fetch(UNIQUE_WITHOUT_TENANT, list(citus.DISTRIBUTED_TABLES)) == []
    assert len(await connection.fetch(UNIQUE_WITHOUT_TENANT, ["lease"])) == 2, "what has none is seen"


async def test_no_foreign_key_and_no_trigger_ties_tables_together(connection: asyncpg.Connection) -> None:
    assert await connection.fetch(BETWEEN_TABLES) == []
