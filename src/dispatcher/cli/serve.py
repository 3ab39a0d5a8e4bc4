"""`dispatcher serve`: the production entry."""

from __future__ import annotations


def serve() -> None:
    """Run the service until SIGTERM or SIGINT.

    Settings come from DISPATCHER_* variables; DISPATCHER_DATABASE_URL and DISPATCHER_SECRET_KEYS must be set. The
    database must have been migrated: `dispatcher migrate`.
    """
    from dispatcher.config import SERVE_REQUIRES, from_environment

    settings = from_environment(required=SERVE_REQUIRES)

    import uvloop

    from dispatcher.app import serve as run
    from dispatcher.cli.failure import CliError
    from dispatcher.errors import DispatcherError

    try:
        uvloop.run(run(settings))
    except DispatcherError as error:
        raise CliError(error.message, details=(f"reason {error.reason}",)) from error
    except OSError as error:
        raise CliError(f"cannot start: {error.strerror or error}", details=(f"{error}",)) from error
