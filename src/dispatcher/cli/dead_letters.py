"""`dispatcher dead-letters`: what was given up, and sending it again."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli import access as options
from dispatcher.cli import resource
from dispatcher.cli.access import Access
from dispatcher.cli.arguments import child_name, given
from dispatcher.cli.deliveries import Endpoint, delivery_parent, full_name
from dispatcher.cli.failure import UsageError
from dispatcher.cli.replays import MaxPerSecond, ReplayId
from dispatcher.cli.resource import Kind, Page, cell, headed

app = typer.Typer(no_args_is_help=True, help="See what was given up, send it again, or discard it.")

COLLECTION = "deadLetters"
LETTER = Kind(
    noun="DeadLetter",
    field="deadLetter",
    plural=COLLECTION,
    service="DeadLetterService",
    columns=(
        cell("name"),
        headed("event type", cell("eventType")),
        cell("event"),
        cell("state"),
        cell("decision", "reason"),
        headed("attempts", cell("attemptCount", default="0")),
        headed("last status", cell("lastStatusCode")),
        headed("given up", cell("createTime")),
    ),
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="tenants/TENANT/endpoints/ENDPOINT/deadLetters/SEQUENCE")]


@app.command("list")
def list_(
    *,
    tenant: options.Tenant = None,
    endpoint: Endpoint = None,
    filter_: options.Filter = None,
    page_size: options.PageSize = None,
    page_token: options.PageToken = None,
    all_pages: options.AllPages = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """List dead letters, newest first, such as --filter 'state = OPEN'."""
    page = Page(filter_, page_size, page_token, all_pages)
    access = Access(target, timeout_s, as_json)
    resource.list_resources(LETTER, access, page, parent=delivery_parent(endpoint, tenant))


@app.command("get")
def get(
    name: Name,
    *,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Read a dead letter with its payload."""
    resource.get(LETTER, Access(target, timeout_s, as_json), full_name(name, COLLECTION))


@app.command("redrive")
def redrive(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One; or else --endpoint.")] = None,
    *,
    tenant: options.Tenant = None,
    endpoint: Endpoint = None,
    filter_: options.Filter = None,
    rate: MaxPerSecond = None,
    replay_id: ReplayId = None,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Send one again, or all open ones of an endpoint that match a filter, lowest first: a replay."""
    access = Access(target, timeout_s, as_json)
    if (name is None) == (endpoint is None):
        raise UsageError("give the name of one dead letter, or --endpoint for all of them")
    if name is not None:
        if filter_ is not None or rate is not None or replay_id is not None:
            raise UsageError("--filter, --rate and --replay-id are for --endpoint")
        resource.act(LETTER, access, "Redrive", full_name(name, COLLECTION), {})
        return
    parent = child_name(endpoint or "", tenant, "endpoints")
    request = {"parent": parent, **given(filter=filter_, maxPerSecond=rate, replayId=replay_id)}
    answer = access.call("DeadLetterService.RedriveDeadLetters", request)
    resource.show(access, answer, f"Started {answer.get('name', '')}")


@app.command("discard")
def discard(
    name: Name,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stays on record.")],
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Close a dead letter for good and delete its payload."""
    access = Access(target, timeout_s, as_json)
    resource.act(LETTER, access, "Discard", full_name(name, COLLECTION), {"reason": reason})
