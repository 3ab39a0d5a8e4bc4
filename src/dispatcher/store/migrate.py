"""Schema migrations: numbered `.sql` files, applied in order, each in a transaction of its own, once.

Several may start at once: a transaction-level advisory lock makes them queue, and each file is looked up again under
the lock. Migrations only expand; what they replace is contracted a release later, so the previous release runs on the
new schema.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

import asyncpg

from dispatcher.errors import DispatcherError, UnavailableError
from dispatcher.store import partitions
from dispatcher.store.database import AWAY_ERRORS, Connection, Database, DatabaseOptions, connect_arguments

LOCK_KEY = 0x64697370_61746368  # "dispatch"
LOCK_WAIT_S = 120.0
"""How long a migration waits for another that runs; then it fails and says so."""
SERVER_VERSION_MIN = 150000


class MigrationError(DispatcherError):
    """The schema cannot be brought to this release; the message says which file and why."""

    default_reason = "MIGRATION_FAILED"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: `version` is its number, `digest` the SHA-256 of its text in hex."""

    version: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load_migrations() -> list[Migration]:
    """All migrations shipped with this release, in order."""
    folder = resources.files("dispatcher.store") / "migrations"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text()) for file in files]


async def migrate(options: DatabaseOptions) -> list[str]:
    """Bring the database to this release's schema and create the coming partitions. Returns the names applied now."""
    connection = await connect(options)
    try:
        _check_server(connection)
        await _prepare(connection)
        applied = [m.name for m in load_migrations() if await _apply(connection, m)]
        await partitions.create_ahead(connection)
    except (TimeoutError, asyncpg.LockNotAvailableError) as error:
        raise UnavailableError(f"another migration holds the lock, or the database is silent: {error}") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise MigrationError(f"the database refused: {error}") from error
    finally:
        await connection.close(timeout=options.connect_timeout_s)
    return applied


async def connect(options: DatabaseOptions) -> asyncpg.Connection:
    """A connection; what cannot be reached is unavailable, what refuses us is an error to be mended."""
    try:
        connection: asyncpg.Connection = await asyncpg.connect(**connect_arguments(options))
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        raise MigrationError(f"cannot connect: {error}") from error
    except AWAY_ERRORS as error:
        raise UnavailableError(f"cannot connect: {str(error) or type(error).__name__}") from error
    except asyncpg.PostgresError as error:
        raise MigrationError(f"cannot connect: {error}") from error
    return connection


SELECT_APPLIED = "SELECT count(*) FROM schema_migration"


async def pending(connection: Connection) -> int:
    """How many migrations of this release the database lacks; all of them where it was never migrated."""
    try:
        applied = int(await connection.fetchval(SELECT_APPLIED))
    except asyncpg.UndefinedTableError:
        applied = 0
    return max(0, len(load_migrations()) - applied)


async def check_schema(db: Database) -> None:
    """That the database has all migrations of this release; a later release's ones are no harm (expand, contract).

    Errors: MigrationError `SCHEMA_OUTDATED`; UnavailableError where the database is away.
    """
    async with db.acquire() as connection:
        missing = await pending(connection)
    if missing:
        raise MigrationError(
            f"the database lacks {missing} of this release's migrations: run `dispatcher migrate` first",
            reason="SCHEMA_OUTDATED",
        )


def _check_server(connection: asyncpg.Connection) -> None:
    version = connection.get_server_version()
    if version.major * 10000 < SERVER_VERSION_MIN:
        raise MigrationError(f"PostgreSQL 15 or newer is needed, the server is {version.major}")


SET_LOCAL_LIMITS = "SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', '0', true)"
TAKE_LOCK = "SELECT pg_advisory_xact_lock($1)"
CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migration (
    version      integer PRIMARY KEY,
    name         text NOT NULL,
    digest       text NOT NULL,
    applied_time timestamptz NOT NULL DEFAULT clock_timestamp()
)"""


async def _locked(connection: asyncpg.Connection) -> None:
    """Queue behind other migrations. A transaction-level lock also works through a transaction pooler."""
    await connection.execute(SET_LOCAL_LIMITS, f"{LOCK_WAIT_S:.0f}s")
    await connection.execute(TAKE_LOCK, LOCK_KEY, timeout=LOCK_WAIT_S + 5.0)


async def _prepare(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await _locked(connection)
        await connection.execute(CREATE_TABLE)


SELECT_DIGEST = "SELECT digest FROM schema_migration WHERE version = $1"
INSERT_MIGRATION = "INSERT INTO schema_migration (version, name, digest) VALUES ($1, $2, $3)"


async def _apply(connection: asyncpg.Connection, migration: Migration) -> bool:
    async with connection.transaction(isolation="read_committed"):
        await _locked(connection)
        known = await connection.fetchval(SELECT_DIGEST, migration.version)
        if known is not None:
            _check_digest(migration, known)
            return False
        try:
            await connection.execute(migration.sql, timeout=None)
        except asyncpg.PostgresError as error:
            raise MigrationError(f"migration {migration.name} failed: {error}") from error
        await connection.execute(INSERT_MIGRATION, migration.version, migration.name, migration.digest)
    return True


def _check_digest(migration: Migration, known: str) -> None:
    if known != migration.digest:
        raise MigrationError(f"migration {migration.name} was changed after it had been applied to this database")
