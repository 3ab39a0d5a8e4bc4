"""`dispatcher replays`: sending deliveries of the past again."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from dispatcher.cli import access as options
from dispatcher.cli import resource
from dispatcher.cli.access import Access
from dispatcher.cli.arguments import child_name, flag, given, parent_of
from dispatcher.cli.resource import Kind, Page, cell, headed

app = typer.Typer(no_args_is_help=True, help="Send deliveries of the past again, or what was published before.")

COLLECTION = "replays"
REPLAY = Kind(
    noun="Replay",
    field="replay",
    plural=COLLECTION,
    service="ReplayService",
    columns=(
        cell("name"),
        cell("endpoint"),
        cell("state"),
        headed("appended", cell("appendedCount", default="0")),
        headed("of", cell("matchedCount", default="0")),
        headed("created", cell("createTime")),
    ),
)


class Selection(StrEnum):
    """Which deliveries."""

    ALL = "all"
    DELIVERED = "delivered"
    DEAD_LETTERED = "dead-lettered"


Name = Annotated[str, typer.Argument(metavar="REPLAY", help="An id with --tenant, or tenants/acme/replays/ID.")]
EndpointName = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The endpoint that receives it.")]
Since = Annotated[str, typer.Option("--since", metavar="TIME", help="From then on: 2030-01-31T12:00:00Z.")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before then; default: until now.")]
MaxPerSecond = Annotated[
    float | None, typer.Option("--rate", metavar="PER_SECOND", help="Deliveries appended per second; default 100.")
]
ReplayId = Annotated[
    str | None, typer.Option("--replay-id", help="Its id: then a command that is repeated starts no second one.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count what would be sent.")]


@app.command("create")
def create(
    endpoint: EndpointName,
    *,
    tenant: options.Tenant = None,
    since: Since,
    until: Until = None,
    event_types: Annotated[
        list[str] | None, typer.Option("--event-type", "-e", help="order.paid, order.*; may be repeated.")
    ] = None,
    selection: Annotated[Selection, typer.Option("--status", help="Which deliveries.")] = Selection.ALL,
    rate: MaxPerSecond = None,
    replay_id: ReplayId = None,
    dry_run: DryRun = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Send deliveries that an endpoint had before once more, marked webhook-replay: true."""
    source = {
        "startTime": since,
        **given(endTime=until, eventTypes=event_types or None),
        "selection": f"SELECTION_{selection.name}",
    }
    access = Access(target, timeout_s, as_json)
    _start(access, child_name(endpoint, tenant, "endpoints"), {"replayEvents": source}, rate, replay_id, dry=dry_run)


@app.command("backfill")
def backfill(
    endpoint: EndpointName,
    *,
    tenant: options.Tenant = None,
    since: Since,
    until: Until = None,
    rate: MaxPerSecond = None,
    replay_id: ReplayId = None,
    dry_run: DryRun = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Send an endpoint what was published before it was there, and nothing that it has had."""
    source = {"startTime": since, **given(endTime=until)}
    access = Access(target, timeout_s, as_json)
    name = child_name(endpoint, tenant, "endpoints")
    _start(access, name, {"backfillEndpoint": source}, rate, replay_id, dry=dry_run)


def _start(
    access: Access, endpoint: str, source: dict[str, Any], rate: float | None, replay_id: str | None, *, dry: bool
) -> None:
    request = {
        "parent": "/".join(endpoint.split("/")[:2]),
        "replay": {"endpoint": endpoint, **source, **given(maxPerSecond=rate)},
        **given(replayId=replay_id),
        **flag("dryRun", on=dry),
    }
    answer = access.call("ReplayService.CreateReplay", request)
    resource.show(access, answer, f"Would send to {endpoint}" if dry else f"Started {answer.get('name', '')}")


@app.command("list")
def list_(
    *,
    tenant: options.Tenant = None,
    filter_: options.Filter = None,
    page_size: options.PageSize = None,
    page_token: options.PageToken = None,
    all_pages: options.AllPages = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """List a tenant's replays in the order of their ids."""
    page = Page(filter_, page_size, page_token, all_pages)
    resource.list_resources(REPLAY, Access(target, timeout_s, as_json), page, parent=parent_of(tenant))


@app.command("get")
def get(
    name: Name,
    *,
    tenant: options.Tenant = None,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Tell how far a replay has come."""
    resource.get(REPLAY, Access(target, timeout_s, as_json), child_name(name, tenant, COLLECTION))


@app.command("cancel")
def cancel(
    name: Name,
    *,
    tenant: options.Tenant = None,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Stop a replay; what it has appended is still delivered."""
    full_name = child_name(name, tenant, COLLECTION)
    resource.act(REPLAY, Access(target, timeout_s, as_json), "Cancel", full_name, {})
