"""The command `dispatcher`: which commands there are, and how every one of them ends.

A group of commands is a module with an `app`, a single command a module with a function; naming it here is one line.
Nothing slow is imported before a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from dispatcher import __version__
from dispatcher.cli import (
    bench,
    dead_letters,
    deliveries,
    dev,
    endpoints,
    event_types,
    health,
    migrate,
    publish,
    replays,
    secrets,
    serve,
    show_config,
    tenants,
    tokens,
)
from dispatcher.cli.failure import CliError, ExitCode, UsageError

SERVICE = "Service"
EVENTS = "Events"
RESOURCES = "Resources"
EPILOG = (
    "Exit codes: 0 done; 1 failed; 2 wrong usage, settings or input; 3 the service or database is not available, "
    "try again; 4 not found; 5 conflict: it exists, has changed, or its state forbids it; 130 interrupted. "
    "Settings are DISPATCHER_* variables: `dispatcher config` lists them."
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
app.command("serve", rich_help_panel=SERVICE)(serve.serve)
app.command("worker", hidden=True)(serve.worker)
app.command("dev", rich_help_panel=SERVICE)(dev.dev)
app.command("migrate", rich_help_panel=SERVICE)(migrate.migrate)
app.command("config", rich_help_panel=SERVICE)(show_config.config)
app.command("health", rich_help_panel=SERVICE)(health.health)
app.command("prestop", rich_help_panel=SERVICE)(health.prestop)
app.add_typer(secrets.app, name="secrets", rich_help_panel=SERVICE)
app.add_typer(tokens.app, name="tokens", rich_help_panel=SERVICE)
app.command("publish", rich_help_panel=EVENTS)(publish.publish)
app.command("bench", rich_help_panel=EVENTS)(bench.bench)
app.add_typer(deliveries.app, name="deliveries", rich_help_panel=EVENTS)
app.add_typer(dead_letters.app, name="dead-letters", rich_help_panel=EVENTS)
app.add_typer(replays.app, name="replays", rich_help_panel=EVENTS)
app.add_typer(tenants.app, name="tenants", rich_help_panel=RESOURCES)
app.add_typer(endpoints.app, name="endpoints", rich_help_panel=RESOURCES)
app.add_typer(event_types.app, name="event-types", rich_help_panel=RESOURCES)


def _print_version(value: bool) -> None:  # noqa: FBT001 - typer calls it with the option's value
    if value:
        print(f"dispatcher {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Webhook delivery for the service mesh: a durable outbox, strict order per endpoint, through any crash."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: errors end as one paragraph on standard error and an exit code of `ExitCode`."""
    try:
        app(None if arguments is None else list(arguments), prog_name="dispatcher")
        code: int | str | None = ExitCode.OK
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        code = _reader_gone()
    except Exception as error:  # noqa: BLE001 - raised again unless it is a known one
        code = _report(error)
    sys.exit(code)


def _report(error: Exception) -> ExitCode:
    """Print a known error; anything else is a bug and keeps its traceback."""
    from dispatcher.cli.output import print_error

    known = _known(error)
    if known is None:
        raise error
    print_error(known)
    return known.code


def _known(error: Exception) -> CliError | None:
    if isinstance(error, CliError):
        return error
    from dispatcher.config import ConfigError

    if isinstance(error, ConfigError):
        return UsageError("the settings in the environment are wrong:", details=error.problems)
    return None


def _reader_gone() -> ExitCode:
    """Whoever read our output has closed it (`| head`): no error, but nothing more may be flushed into it."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.FAILED
