"""`dispatcher deliveries`: what became of events on their way to endpoints."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli import access as options
from dispatcher.cli import resource
from dispatcher.cli.access import Access
from dispatcher.cli.arguments import child_name, parent_of
from dispatcher.cli.failure import UsageError
from dispatcher.cli.resource import Kind, Page, cell, headed

app = typer.Typer(no_args_is_help=True, help="See what became of events on their way to endpoints; retry, skip.")

COLLECTION = "deliveries"
DELIVERY = Kind(
    noun="Delivery",
    field="delivery",
    plural=COLLECTION,
    service="DeliveryService",
    columns=(
        cell("name"),
        headed("event type", cell("eventType")),
        cell("event"),
        cell("state"),
        headed("attempts", cell("attemptCount", default="0")),
        headed("published", cell("createTime")),
        headed("delivered", cell("deliverTime")),
        headed("last error", cell("lastAttempt", "error")),
    ),
)
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint", "-e", help="An id with --tenant, or a full name. Default: all; then --filter must name an event."
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="tenants/TENANT/endpoints/ENDPOINT/deliveries/SEQUENCE")]
ALL = "-"


def delivery_parent(endpoint: str | None, tenant: str | None) -> str:
    """The parent to list deliveries of: one endpoint, or all of a tenant."""
    return child_name(endpoint, tenant, "endpoints") if endpoint else f"{parent_of(tenant)}/endpoints/{ALL}"


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
    """List deliveries, newest first."""
    page = Page(filter_, page_size, page_token, all_pages)
    access = Access(target, timeout_s, as_json)
    resource.list_resources(DELIVERY, access, page, parent=delivery_parent(endpoint, tenant))


def full_name(name: str, collection: str) -> str:
    """A name as it was given, if it is one of such a collection below an endpoint."""
    parts = name.split("/")
    if len(parts) != 6 or parts[::2] != ["tenants", "endpoints", collection]:
        raise UsageError(f"{name!r} is not a name such as tenants/acme/endpoints/e1/{collection}/17")
    return name


@app.command("get")
def get(
    name: Name,
    *,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Read a delivery with its last attempt."""
    resource.get(DELIVERY, Access(target, timeout_s, as_json), full_name(name, COLLECTION))


@app.command("skip")
def skip(
    name: Name,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stays on record.")],
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Pass over a pending delivery, halted or not; what waits behind it goes on."""
    access = Access(target, timeout_s, as_json)
    resource.act(DELIVERY, access, "Skip", full_name(name, COLLECTION), {"reason": reason})


@app.command("retry")
def retry(
    name: Name,
    *,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Try a pending delivery now, halted or not."""
    resource.act(DELIVERY, Access(target, timeout_s, as_json), "Retry", full_name(name, COLLECTION), {})
