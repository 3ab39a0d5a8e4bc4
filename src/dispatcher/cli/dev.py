"""`dispatcher dev`: everything on this machine, with a demo that judges the service from outside."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli.failure import CliError, ExitCode, UsageError

if TYPE_CHECKING:
    from dispatcher.cli.dev_session import Outcome, Session, Wish
    from dispatcher.embedded.folder import LocalFolder
    from dispatcher.embedded.ledger import LedgerTotals

RUN_RATE = 50.0
DEMO_RATE = 200.0
NO_LIMIT = 0.0


def dev(
    *,
    demo: Annotated[
        int | None,
        typer.Option(
            "--demo",
            min=1,
            max=1_000_000,
            metavar="N",
            help="Publish N events, print one line of JSON, and exit: 1 where anything is missing, unverified or out "
            "of order. Listens on any free ports.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            min=NO_LIMIT,
            max=100_000,
            metavar="N",
            help=f"Events per second; 0 for as many as it takes. [default: {RUN_RATE:g}, with --demo {DEMO_RATE:g}]",
        ),
    ] = None,
    folder: Annotated[
        Path, typer.Option("--folder", metavar="FOLDER", help="What is kept between runs: database, keys, log.")
    ] = Path(".local"),
) -> None:
    """Run everything here: database, service, and a demo shop whose webhooks are verified and checked.

    Starts a PostgreSQL of its own, migrates it, serves, registers the tenant `demo` with endpoints, publishes a shop's
    events, and receives the webhooks: verified by a third party's library, checked for order against what the
    publisher was told, and answered with an error now and then. Until Ctrl-C.
    """
    started_s = time.monotonic()
    try:
        from dispatcher.cli.dev_session import Wish
        from dispatcher.embedded.folder import FolderInUseError, LocalFolder
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed", details=("pip install 'dispatcher[dev]'",)) from error

    chosen_rate = rate if rate is not None else (RUN_RATE if demo is None else DEMO_RATE)
    wish = Wish(demo, chosen_rate or None)
    try:
        with LocalFolder(folder) as local:
            outcome = _run(local, wish, started_s)
    except FolderInUseError as error:
        raise CliError(
            f"`dispatcher dev` already runs in this folder: {error}",
            code=ExitCode.CONFLICT,
            details=("Stop it first (Ctrl-C there), or give this one another --folder and other ports.",),
        ) from error
    except OSError as error:
        raise CliError(f"cannot use {folder}: {error.strerror or error}") from error
    if demo is not None:
        _conclude(outcome, demo)


def _run(folder: LocalFolder, wish: Wish, started_s: float) -> Outcome:
    import uvloop

    from dispatcher.cli import dev_service
    from dispatcher.cli.dev_session import Session
    from dispatcher.cli.dev_table import make_display
    from dispatcher.collecting import tune_collector
    from dispatcher.config import environment
    from dispatcher.embedded.binaries import EmbeddedPostgresError
    from dispatcher.errors import DispatcherError

    environ = environment()
    dev_service.refuse_other_database(environ)
    dev_service.refuse_authentication(environ)
    preferred = dev_service.preferences(any_port=wish.count is not None)
    dev_service.check_ports(dev_service.local_settings(environ, preferred=preferred))
    tune_collector()
    with make_display(sys.stdout if wish.count is None else sys.stderr) as display:
        session = Session(folder, environ, preferred, wish, display=display, started_s=started_s)
        try:
            return uvloop.run(_interruptible(session))
        except EmbeddedPostgresError as error:
            raise CliError(str(error)) from error
        except DispatcherError as error:
            raise CliError(error.message) from error


async def _interruptible(session: Session) -> Outcome:
    from dispatcher.signals import stop_on_signals

    stop_on_signals(session.stop)
    return await session.run()


def _conclude(outcome: Outcome, asked: int) -> None:
    """Print the result of a demo; exit unless all is well."""
    sys.stdout.write(json.dumps(result_of(outcome)) + "\n")
    sys.stdout.flush()
    if outcome.is_interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if problems := problems_of(outcome.totals, asked):
        raise CliError("the demo found faults", details=problems)


def result_of(outcome: Outcome) -> dict[str, Any]:
    """The line of JSON. `published`, `delivered` and `verified` count events, the others count requests."""
    totals = outcome.totals
    return {
        "published": totals.published,
        "delivered": totals.delivered,
        "verified": totals.verified,
        "out_of_order": totals.out_of_order,
        "duplicates": totals.duplicates,
        "retried": totals.retried,
        "p50_ms": _rounded(totals.p50_ms, 2),
        "p99_ms": _rounded(totals.p99_ms, 2),
        "deliveries": totals.deliveries,
        "deliveries_per_s": _rounded(outcome.deliveries_per_s, 1),
        "unverified": totals.unverified,
        "missing": totals.missing,
        "first_webhook_s": _rounded(outcome.first_webhook_s, 2),
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def problems_of(totals: LedgerTotals, asked: int) -> tuple[str, ...]:
    """What is wrong with a demo of `asked` events, a line each; empty where all is well."""
    found = (
        (totals.published != asked, f"{totals.published} of {asked} events were acknowledged"),
        (totals.missing > 0, f"{totals.missing} deliveries are missing"),
        (totals.delivered != totals.published, f"{totals.delivered} of {totals.published} events were delivered"),
        (totals.unverified > 0, f"{totals.unverified} webhooks had a signature that does not verify"),
        (totals.verified != totals.published, f"{totals.verified} of {totals.published} events were verified"),
        (totals.out_of_order > 0, f"{totals.out_of_order} webhooks came out of order"),
    )
    return tuple(sentence for is_wrong, sentence in found if is_wrong)
