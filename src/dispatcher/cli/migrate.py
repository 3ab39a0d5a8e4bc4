"""`dispatcher migrate`: brings the database to this release's schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli.failure import CliError, ExitCode, UsageError

if TYPE_CHECKING:
    from dispatcher.store.database import DatabaseOptions


def migrate(
    *,
    dsn: Annotated[
        str | None,
        typer.Option(
            "--dsn",
            metavar="URL",
            help="The database, past any pooler. "
            "Default: DISPATCHER_DATABASE_DIRECT_URL, or else DISPATCHER_DATABASE_URL.",
        ),
    ] = None,
    citus: Annotated[
        bool, typer.Option("--citus", help="Then spread the tables over the workers of Citus (docs/scaling.md).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Bring the database to this release's schema. Safe to repeat, and when several start at once."""
    import asyncio

    from dispatcher.cli.output import print_json
    from dispatcher.config import mask_dsn
    from dispatcher.errors import DispatcherError, UnavailableError
    from dispatcher.store.citus import spread
    from dispatcher.store.migrate import migrate as run

    options = _options(dsn)
    try:
        applied = asyncio.run(run(options))
        tables = asyncio.run(spread(options)) if citus else []
    except DispatcherError as error:
        code = ExitCode.UNAVAILABLE if isinstance(error, UnavailableError) else ExitCode.FAILED
        raise CliError(error.message, code=code, details=(f"database {mask_dsn(options.dsn)}",)) from error
    if as_json:
        print_json({"applied": applied, "spread": tables} if citus else {"applied": applied})
        return
    for name in applied:
        print(f"applied {name}")
    for table in tables:
        print(f"spread {table}")
    print(f"{len(applied)} applied; the schema is that of this release" if applied else "the schema is up to date")


def _options(dsn: str | None) -> DatabaseOptions:
    """Where to connect: --dsn, else the settings."""
    from dispatcher.config import MIGRATE_REQUIRES, from_environment
    from dispatcher.store.database import DatabaseOptions

    settings = from_environment(required=() if dsn else MIGRATE_REQUIRES)
    if dsn and not dsn.startswith(("postgresql://", "postgres://")):
        raise UsageError("--dsn must be a postgresql:// URL")
    direct, url = settings.database_direct_url, settings.database_url
    secret = direct or url
    return DatabaseOptions(
        dsn or (secret.get_secret_value() if secret else ""),
        password_file="" if dsn else settings.database_password_file,
        pooled=settings.database_pooled and direct is None and dsn is None,
        connect_timeout_s=settings.database_connect_timeout_s,
    )
