"""How the tables lie on Citus: a tenant's rows together on one worker, what every instance shares on all of them.

The statements' shapes were tried on Citus 13.2, the whole service was not: see docs/scaling.md.
"""

from __future__ import annotations

import asyncpg

from dispatcher.store.database import HAS_CITUS, DatabaseOptions
from dispatcher.store.migrate import MigrationError, connect

REFERENCE_TABLES = ("deployment", "instance", "lease", "tenant")
"""Small, the same on every worker."""
DISTRIBUTED_TABLES = (
    "endpoint",
    "attempt",
    "command",
    "cursor",
    "dead_letter",
    "dead_letter_payload",
    "decision",
    "dedup",
    "endpoint_health",
    "endpoint_revision",
    "event",
    "event_type",
    "halt",
    "operational_event",
    "outbox",
    "parked",
    "replay",
    "signing_key",
)
"""By tenant_id, all in the colocation group of the first."""
LOCAL_TABLES = ("audit", "schema_migration")


def calls() -> list[tuple[str, str]]:
    """Each table with the call that spreads it, in the order in which they are made."""
    first = DISTRIBUTED_TABLES[0]
    reference = [(table, f"SELECT create_reference_table('{table}')") for table in REFERENCE_TABLES]
    distributed = [
        (table, f"SELECT create_distributed_table('{table}', 'tenant_id', colocate_with => '{near}')")
        for table in DISTRIBUTED_TABLES
        for near in ("none" if table == first else first,)
    ]
    return reference + distributed


IS_SPREAD = "SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = $1::text::regclass)"


async def spread(options: DatabaseOptions) -> list[str]:
    """Spread the tables that are not yet; returns them. The rows go along, and nothing may be written meanwhile.

    Errors: MigrationError where the extension is not there or refuses, UnavailableError.
    """
    connection = await connect(options)
    try:
        if not await connection.fetchval(HAS_CITUS):
            raise MigrationError(
                "the database has no extension citus: add it to shared_preload_libraries, then CREATE EXTENSION citus",
                reason="CITUS_MISSING",
            )
        made = []
        for table, call in calls():
            if not await connection.fetchval(IS_SPREAD, table):
                await connection.execute(call, timeout=None)
                made.append(table)
    except asyncpg.PostgresError as error:
        raise MigrationError(f"citus refused: {error}") from error
    finally:
        await connection.close(timeout=options.connect_timeout_s)
    return made
