"""`dispatcher serve`: the production entry."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer


def serve(
    *,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Processes that share the gRPC port, about one per core. Each has connections to the database and "
            "leases of its own; one that dies is replaced. Default: DISPATCHER_WORKERS, 1.",
        ),
    ] = None,
) -> None:
    """Run the service until SIGTERM or SIGINT.

    Settings come from DISPATCHER_* variables; DISPATCHER_DATABASE_URL and DISPATCHER_SECRET_KEYS must be set. The
    database must have been migrated: `dispatcher migrate`.
    """
    from dispatcher.config import SERVE_REQUIRES, from_environment

    settings = from_environment(required=SERVE_REQUIRES)
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})

    import uvloop

    if settings.workers > 1:
        # Read by grpc at its import. The supervisor starts workers by exec, so nothing of grpc is ever used after a
        # fork; its handlers would only complain that they can't prepare for it.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # noqa: TID251 -- set for a library, nothing is read
        from dispatcher.workers.pool import WorkerFailedError
        from dispatcher.workers.supervisor import supervise

        try:
            with _errors_told():
                uvloop.run(supervise(settings))
        except WorkerFailedError as error:
            raise SystemExit(max(1, error.exit_code)) from None  # the worker has said why
        return
    from dispatcher.app import serve as run
    from dispatcher.collecting import tune_collector

    tune_collector()
    with _errors_told():
        uvloop.run(run(settings))


def worker(number: int, folder: Path, grpc_listen: str) -> None:
    """One of the processes of `serve --workers`: started by that, never by hand. Ends with its standard input."""
    from dispatcher.config import SERVE_REQUIRES, from_environment
    from dispatcher.workers.process import worker_settings

    settings = worker_settings(from_environment(required=SERVE_REQUIRES), folder, grpc_listen)

    import uvloop

    from dispatcher.app import serve_as_worker as run
    from dispatcher.collecting import tune_collector

    tune_collector()
    with _errors_told():
        uvloop.run(run(settings, number))


@contextlib.contextmanager
def _errors_told() -> Iterator[None]:
    from dispatcher.cli.failure import CliError
    from dispatcher.errors import DispatcherError

    try:
        yield
    except DispatcherError as error:
        raise CliError(error.message, details=(f"reason {error.reason}",)) from error
    except OSError as error:
        raise CliError(f"cannot start: {error.strerror or error}", details=(f"{error}",)) from error
