"""`dispatcher endpoints`: where webhooks go, which events they carry, how they are sent and signed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dispatcher.cli import access as options
from dispatcher.cli import endpoint_control, resource
from dispatcher.cli import endpoint_options as given_options
from dispatcher.cli.access import Access
from dispatcher.cli.arguments import child_name, duration, given, nested, parent_of
from dispatcher.cli.endpoint_options import EndpointOptions, read_secret
from dispatcher.cli.failure import CliError
from dispatcher.cli.output import print_note
from dispatcher.cli.resource import Kind, Page, cell, headed

app = typer.Typer(
    no_args_is_help=True, help="Create, change, test, hold, delete endpoints; rotate keys; see what they wait for."
)

COLLECTION = "endpoints"
ENDPOINT = Kind(
    noun="Endpoint",
    field="endpoint",
    plural=COLLECTION,
    service="EndpointService",
    columns=(
        cell("name"),
        cell("http", "url"),
        headed("event types", cell("eventTypes")),
        cell("state"),
        headed("ordering", cell("deliverySettings", "orderingMode")),
        cell("labels"),
    ),
)
SHOWN_ONCE = "The signing secret is shown only this once: give it to the receiver and keep it safe."
SUCCEEDED = "ATTEMPT_OUTCOME_SUCCEEDED"


@app.command("create")
def create(
    endpoint_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Its id; the service makes one if left out.")
    ] = None,
    *,
    tenant: options.Tenant = None,
    url: Annotated[str, typer.Option("--url", help="Where the webhooks go: https://… or http://….")],
    event_types: given_options.EventTypes = None,
    description: given_options.Description = None,
    state: given_options.StateOption = None,
    state_reason: given_options.StateReason = None,
    labels: options.Labels = None,
    attempt_timeout: given_options.AttemptTimeout = None,
    headers: given_options.Headers = None,
    max_in_flight: given_options.MaxInFlight = None,
    ordering: given_options.OrderingOption = None,
    trace: given_options.TraceOption = None,
    secret_file: given_options.SecretFile = None,
    validate_only: options.ValidateOnly = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Create an endpoint and show its signing secret, once. Without --event-type it receives all events."""
    fields = EndpointOptions(
        url=url,
        event_types=event_types or ["*"],
        description=description,
        state=state,
        state_reason=state_reason,
        labels=labels,
        attempt_timeout=attempt_timeout,
        headers=headers,
        max_in_flight=max_in_flight,
        ordering=ordering,
        trace=trace,
    ).fields()
    request = {
        "parent": parent_of(tenant),
        "endpoint": nested(fields),
        **given(endpointId=endpoint_id, signingSecret=read_secret(secret_file)),
    }
    resource.create(ENDPOINT, Access(target, timeout_s, as_json), request, validate_only=validate_only)
    if not validate_only:
        print_note(SHOWN_ONCE)


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
    """List a tenant's endpoints in the order of their ids."""
    page = Page(filter_, page_size, page_token, all_pages)
    resource.list_resources(ENDPOINT, Access(target, timeout_s, as_json), page, parent=parent_of(tenant))


@app.command("get")
def get(
    name: given_options.Name,
    *,
    tenant: options.Tenant = None,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Read an endpoint, without secrets."""
    resource.get(ENDPOINT, Access(target, timeout_s, as_json), child_name(name, tenant, COLLECTION))


@app.command("status")
def status(
    name: given_options.Name,
    *,
    tenant: options.Tenant = None,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Tell how far an endpoint has come and what it waits for."""
    access = Access(target, timeout_s, as_json)
    full_name = f"{child_name(name, tenant, COLLECTION)}/status"
    resource.show(access, access.call("DeliveryService.GetEndpointStatus", {"name": full_name}), full_name)


@app.command("update")
def update(
    name: given_options.Name,
    *,
    tenant: options.Tenant = None,
    url: given_options.Url = None,
    event_types: given_options.EventTypes = None,
    description: given_options.Description = None,
    state: given_options.StateOption = None,
    state_reason: given_options.StateReason = None,
    labels: options.Labels = None,
    clear_labels: options.ClearLabels = False,
    attempt_timeout: given_options.AttemptTimeout = None,
    headers: given_options.Headers = None,
    clear_headers: given_options.ClearHeaders = False,
    max_in_flight: given_options.MaxInFlight = None,
    ordering: given_options.OrderingOption = None,
    trace: given_options.TraceOption = None,
    etag: options.Etag = None,
    validate_only: options.ValidateOnly = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Change the fields that are given, no others. Pausing holds deliveries back and discards none."""
    fields = EndpointOptions(
        url=url,
        event_types=event_types,
        description=description,
        state=state,
        state_reason=state_reason,
        labels=labels,
        clear_labels=clear_labels,
        attempt_timeout=attempt_timeout,
        headers=headers,
        clear_headers=clear_headers,
        max_in_flight=max_in_flight,
        ordering=ordering,
        trace=trace,
    ).fields()
    full_name = child_name(name, tenant, COLLECTION)
    access = Access(target, timeout_s, as_json)
    resource.update(ENDPOINT, access, full_name, fields, etag=etag, validate_only=validate_only)


@app.command("delete")
def delete(
    name: given_options.Name,
    *,
    tenant: options.Tenant = None,
    force: Annotated[bool, typer.Option("--force", help="Even with deliveries pending: they are skipped.")] = False,
    etag: options.Etag = None,
    validate_only: options.ValidateOnly = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Delete an endpoint for good: its id can't be used again."""
    full_name = child_name(name, tenant, COLLECTION)
    access = Access(target, timeout_s, as_json)
    resource.delete(ENDPOINT, access, full_name, etag=etag, validate_only=validate_only, force=force)


@app.command("rotate-key")
def rotate_key(
    name: given_options.Name,
    *,
    tenant: options.Tenant = None,
    overlap: Annotated[
        str | None,
        typer.Option("--overlap", metavar="DURATION", help="How long the old keys sign as well, such as 24h."),
    ] = None,
    secret_file: given_options.SecretFile = None,
    etag: options.Etag = None,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Give an endpoint a new signing key and show its secret, once."""
    full_name = child_name(name, tenant, COLLECTION)
    request = {
        "name": full_name,
        **given(
            overlap=None if overlap is None else duration(overlap, "--overlap"),
            signingSecret=read_secret(secret_file),
            etag=etag,
        ),
    }
    access = Access(target, timeout_s, as_json)
    answer = access.call("EndpointService.RotateSigningKey", request)
    resource.show(access, answer if as_json else answer.get("signingKey", {}), f"New signing key of {full_name}")
    print_note(SHOWN_ONCE)


@app.command("test")
def ping(
    name: given_options.Name,
    *,
    tenant: options.Tenant = None,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Send a signed ping now and tell how it went; exit code 1 where the receiver did not answer 2xx."""
    full_name = child_name(name, tenant, COLLECTION)
    access = Access(target, timeout_s, as_json)
    answer = access.call("EndpointService.TestEndpoint", {"name": full_name})
    resource.show(access, answer if as_json else _readable(answer), f"Ping to {full_name}")
    if answer.get("outcome") != SUCCEEDED:
        raise CliError(f"the ping to {full_name} was not accepted")


app.command("pause")(endpoint_control.pause)
app.command("resume")(endpoint_control.resume)
app.command("enable")(endpoint_control.enable)
app.command("on-failure")(endpoint_control.on_failure)


def _readable(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer of a ping with the receiver's bytes as text."""
    import base64

    excerpt = base64.b64decode(answer.get("responseExcerpt", ""))
    return {**answer, "responseExcerpt": excerpt.decode(errors="replace")}
