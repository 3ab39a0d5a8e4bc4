"""`dispatcher tenants`: for whom webhooks are sent."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli import access as options
from dispatcher.cli import resource, tenant_control, tenant_status
from dispatcher.cli.access import Access
from dispatcher.cli.arguments import Fields, given, map_field, nested, tenant_name
from dispatcher.cli.resource import Kind, Page, cell, headed

app = typer.Typer(no_args_is_help=True, help="Create, list, read, change, hold and delete tenants.")

TENANT = Kind(
    noun="Tenant",
    field="tenant",
    plural="tenants",
    service="TenantService",
    columns=(
        cell("name"),
        headed("display name", cell("displayName")),
        cell("labels"),
        headed("registered types only", cell("requireRegisteredEventTypes", default="no")),
        headed("created", cell("createTime")),
    ),
)

Name = Annotated[str, typer.Argument(metavar="TENANT", help="acme or tenants/acme.")]
DisplayName = Annotated[str | None, typer.Option("--display-name", help="A name for people.")]
RequireRegistered = Annotated[
    bool | None,
    typer.Option(
        "--require-registered-event-types/--allow-any-event-type",
        help="Whether only registered event types may be published.",
    ),
]


def tenant_fields(
    display_name: str | None, labels: list[str] | None, *, clear_labels: bool, require_registered: bool | None
) -> Fields:
    """The fields of a tenant that were given."""
    return {
        **given(displayName=display_name, requireRegisteredEventTypes=require_registered),
        **map_field("labels", labels, "--label", clear=clear_labels),
    }


@app.command("create")
def create(
    tenant_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Its id; the service makes one if left out.")
    ] = None,
    *,
    display_name: DisplayName = None,
    labels: options.Labels = None,
    require_registered: RequireRegistered = None,
    validate_only: options.ValidateOnly = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Create a tenant."""
    fields = tenant_fields(display_name, labels, clear_labels=False, require_registered=require_registered)
    request = {**given(tenantId=tenant_id), "tenant": nested(fields)}
    resource.create(TENANT, Access(target, timeout_s, as_json), request, validate_only=validate_only)


@app.command("list")
def list_(
    *,
    filter_: options.Filter = None,
    page_size: options.PageSize = None,
    page_token: options.PageToken = None,
    all_pages: options.AllPages = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """List tenants in the order of their ids."""
    page = Page(filter_, page_size, page_token, all_pages)
    resource.list_resources(TENANT, Access(target, timeout_s, as_json), page)


@app.command("get")
def get(
    name: Name,
    *,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Read a tenant."""
    resource.get(TENANT, Access(target, timeout_s, as_json), tenant_name(name))


@app.command("update")
def update(
    name: Name,
    *,
    display_name: DisplayName = None,
    labels: options.Labels = None,
    clear_labels: options.ClearLabels = False,
    require_registered: RequireRegistered = None,
    etag: options.Etag = None,
    validate_only: options.ValidateOnly = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Change the fields that are given, no others."""
    fields = tenant_fields(display_name, labels, clear_labels=clear_labels, require_registered=require_registered)
    access = Access(target, timeout_s, as_json)
    resource.update(TENANT, access, tenant_name(name), fields, etag=etag, validate_only=validate_only)


@app.command("delete")
def delete(
    name: Name,
    *,
    etag: options.Etag = None,
    validate_only: options.ValidateOnly = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Delete a tenant that has no endpoints."""
    access = Access(target, timeout_s, as_json)
    resource.delete(TENANT, access, tenant_name(name), etag=etag, validate_only=validate_only)


app.command("status")(tenant_status.status)
app.command("pause")(tenant_control.pause)
app.command("resume")(tenant_control.resume)
app.command("on-failure")(tenant_control.on_failure)
app.command("quota")(tenant_control.quota)
