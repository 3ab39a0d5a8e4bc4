"""`dispatcher event-types`: a tenant's catalogue of what may be published."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli import access as options
from dispatcher.cli import resource
from dispatcher.cli.access import Access
from dispatcher.cli.arguments import Fields, child_name, given, map_field, nested, parent_of
from dispatcher.cli.resource import Kind, Page, cell, headed

app = typer.Typer(no_args_is_help=True, help="Register, list, read, change and delete event types.")

COLLECTION = "eventTypes"
EVENT_TYPE = Kind(
    noun="EventType",
    field="eventType",
    plural=COLLECTION,
    service="EventTypeService",
    columns=(
        cell("name"),
        cell("description"),
        cell("labels"),
        cell("archived", default="no"),
        headed("created", cell("createTime")),
    ),
)

Name = Annotated[
    str, typer.Argument(metavar="TYPE", help="order.paid with --tenant, or tenants/acme/eventTypes/order.paid.")
]
Description = Annotated[str | None, typer.Option("--description", help="What the event means, for people.")]
Archived = Annotated[bool | None, typer.Option("--archived/--not-archived", help="Whether it is no longer to be used.")]


def event_type_fields(
    description: str | None, labels: list[str] | None, *, clear_labels: bool, archived: bool | None
) -> Fields:
    """The fields of an event type that were given."""
    return {
        **given(description=description, archived=archived),
        **map_field("labels", labels, "--label", clear=clear_labels),
    }


@app.command("create")
def create(
    event_type_id: Annotated[str, typer.Argument(metavar="TYPE", help="The type itself, such as order.paid.")],
    *,
    tenant: options.Tenant = None,
    description: Description = None,
    labels: options.Labels = None,
    archived: Archived = None,
    validate_only: options.ValidateOnly = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Register an event type."""
    fields = event_type_fields(description, labels, clear_labels=False, archived=archived)
    request = {"parent": parent_of(tenant), "eventTypeId": event_type_id, "eventType": nested(fields)}
    resource.create(EVENT_TYPE, Access(target, timeout_s, as_json), request, validate_only=validate_only)


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
    """List a tenant's event types, archived ones included."""
    page = Page(filter_, page_size, page_token, all_pages)
    resource.list_resources(EVENT_TYPE, Access(target, timeout_s, as_json), page, parent=parent_of(tenant))


@app.command("get")
def get(
    name: Name,
    *,
    tenant: options.Tenant = None,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Read an event type."""
    resource.get(EVENT_TYPE, Access(target, timeout_s, as_json), child_name(name, tenant, COLLECTION))


@app.command("update")
def update(
    name: Name,
    *,
    tenant: options.Tenant = None,
    description: Description = None,
    labels: options.Labels = None,
    clear_labels: options.ClearLabels = False,
    archived: Archived = None,
    etag: options.Etag = None,
    validate_only: options.ValidateOnly = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Change the fields that are given, no others."""
    fields = event_type_fields(description, labels, clear_labels=clear_labels, archived=archived)
    full_name = child_name(name, tenant, COLLECTION)
    access = Access(target, timeout_s, as_json)
    resource.update(EVENT_TYPE, access, full_name, fields, etag=etag, validate_only=validate_only)


@app.command("delete")
def delete(
    name: Name,
    *,
    tenant: options.Tenant = None,
    etag: options.Etag = None,
    validate_only: options.ValidateOnly = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Delete an event type from the catalogue; events and subscriptions keep theirs."""
    full_name = child_name(name, tenant, COLLECTION)
    access = Access(target, timeout_s, as_json)
    resource.delete(EVENT_TYPE, access, full_name, etag=etag, validate_only=validate_only)
