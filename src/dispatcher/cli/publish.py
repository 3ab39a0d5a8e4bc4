"""`dispatcher publish`: a file of events, sent in order and safe to repeat."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli import access as options
from dispatcher.cli.access import Access
from dispatcher.cli.arguments import tenant_name
from dispatcher.cli.failure import CliError, ExitCode, UsageError, exit_code_of

if TYPE_CHECKING:
    from dispatcher.cli.client import Publisher
    from dispatcher.cli.credentials import Credentials
    from dispatcher.cli.publish_report import Report
    from dispatcher.cli.publishing import Plan, Tally

STDIN = "-"
STDIN_FD = 0
BATCH_EVENTS = 100


def publish(
    *,
    file: Annotated[
        str, typer.Option("--file", "-f", metavar="FILE", help="JSON Lines, an event per line; - for standard input.")
    ],
    tenant: Annotated[
        str | None, typer.Option("--tenant", "-t", help="acme or tenants/acme. Default: the only tenant there is.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.1, metavar="N", help="At most N events per second.")
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=1000, help="Events sent, and committed, together.")
    ] = BATCH_EVENTS,
    start_line: Annotated[int, typer.Option("--start-line", min=1, help="Skip the lines before this one.")] = 1,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Pass over what is refused instead of stopping there.")
    ] = False,
    retries: Annotated[int, typer.Option("--retries", min=0, max=1000, help="Retries in a row before giving up.")] = 10,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Publish events from a JSON Lines file, in the order of its lines.

    A line: {"type": "order.paid", "data": {…}}, with `data_text` or `data_base64` in place of `data`, and as wanted
    `id`, `data_content_type`, `ordering_key`, `attributes`, `source`, `subject`, `time`.

    Events without an id get one, so that whatever is sent again after a broken connection is stored once. The first
    line that is refused ends the run: all before it is published, nothing after it.
    """
    from dispatcher.cli.publish_report import Report
    from dispatcher.cli.publishing import Plan
    from dispatcher.cli.window import RetryPolicy

    access = Access(target, timeout_s)
    address, answer_timeout_s, credentials = access.resolved()
    with _opened(file) as (read, size):
        plan = Plan(
            parent=tenant_name(tenant) if tenant else only_tenant(access),
            answer_timeout_s=answer_timeout_s,
            rate=rate,
            keep_going=keep_going,
            retry=RetryPolicy(retries_max=retries),
        )
        events_max = batch if rate is None else max(1, min(batch, int(rate / 10)))
        started = time.monotonic()
        with Report(size) as report:
            tally, interrupted = _run(
                partial(_publisher, address, credentials), plan, read, events_max, start_line, report
            )
    report.print_summary(tally, time.monotonic() - started, as_json=as_json)
    if interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if tally.last_failure is not None:
        raise typer.Exit(max(ExitCode.FAILED, exit_code_of(tally.last_failure.code)))


def only_tenant(access: Access) -> str:
    """The name of the only tenant; UsageError where there is none or a choice."""
    tenants = access.call("TenantService.ListTenants", {"pageSize": 2}).get("tenants", [])
    match tenants:
        case [{"name": str() as name}]:
            return name
        case []:
            raise UsageError("there is no tenant yet: dispatcher tenants create ID")
        case _:
            raise UsageError("there are several tenants: --tenant is needed")


def _publisher(address: str, credentials: Credentials) -> Publisher:
    from dispatcher.cli.client import Publisher

    return Publisher(address, credentials)


def _run(
    connect: Callable[[], Publisher],
    plan: Plan,
    read: Callable[[int], bytes | None],
    events_max: int,
    start_line: int,
    report: Report,
) -> tuple[Tally, bool]:
    """Publish; returns the tally and whether Ctrl-C ended it."""
    import asyncio

    from dispatcher.cli.feed import Feed
    from dispatcher.cli.publishing import Publishing, Tally
    from dispatcher.cli.records import read_items

    runs: list[Publishing] = []

    async def run() -> None:
        items = read_items(read, events_max=events_max, new_id=new_event_id, start_line=start_line)
        feed = Feed(items)
        publisher = connect()
        try:
            runs.append(Publishing(publisher.open_stream, feed, plan, report.listeners))
            await runs[0].run()
        finally:
            feed.close()
            await publisher.close()

    interrupted = False
    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        interrupted = True
    except OSError as error:
        raise CliError(f"reading the file failed: {error.strerror or error}") from error
    return (runs[0].tally if runs else Tally()), interrupted


def new_event_id() -> str:
    """An id for an event that has none: a UUIDv7 (RFC 9562 section 5.7), ordered by time."""
    import uuid_utils

    return str(uuid_utils.uuid7())


@contextmanager
def _opened(file: str) -> Iterator[tuple[Callable[[int], bytes | None], int | None]]:
    """How to read the file, and its size in bytes; None where it is a pipe. Unbuffered: a pipe is read as it comes."""
    standard = file == STDIN
    try:
        source = io.FileIO(STDIN_FD if standard else file, closefd=not standard)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error
    with source:
        os.set_blocking(source.fileno(), True)  # a read that finds nothing yet must not look like the end
        yield source.read, os.fstat(source.fileno()).st_size or None
