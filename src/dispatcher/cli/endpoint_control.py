"""`dispatcher endpoints pause, resume, enable, on-failure`: what an operator does to an endpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli import access as options
from dispatcher.cli import endpoint_options, failure_options, resource
from dispatcher.cli.access import Access
from dispatcher.cli.arguments import child_name, given
from dispatcher.cli.failure_options import EndpointFailureOptions, RetryOptions
from dispatcher.cli.resource import Kind

COLLECTION = "endpoints"
ENDPOINT = Kind("Endpoint", "endpoint", COLLECTION, (), "EndpointService")
Reason = Annotated[str | None, typer.Option("--reason", help="Why, for people.")]


def pause(
    name: endpoint_options.Name,
    *,
    tenant: options.Tenant = None,
    reason: Reason = None,
    etag: options.Etag = None,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Hold an endpoint back: its events are kept, in order, and publishing goes on."""
    full_name = child_name(name, tenant, COLLECTION)
    resource.act(ENDPOINT, Access(target, timeout_s, as_json), "Pause", full_name, given(reason=reason, etag=etag))


def resume(
    name: endpoint_options.Name,
    *,
    tenant: options.Tenant = None,
    rate: failure_options.Rate = None,
    etag: options.Etag = None,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Let a paused endpoint go on, at a rate if wanted."""
    full_name = child_name(name, tenant, COLLECTION)
    request = given(maxPerSecond=rate, etag=etag)
    resource.act(ENDPOINT, Access(target, timeout_s, as_json), "Resume", full_name, request)


def enable(
    name: endpoint_options.Name,
    *,
    tenant: options.Tenant = None,
    rate: failure_options.Rate = None,
    etag: options.Etag = None,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Let a disabled endpoint go on, at a rate if wanted."""
    full_name = child_name(name, tenant, COLLECTION)
    request = given(maxPerSecond=rate, etag=etag)
    resource.act(ENDPOINT, Access(target, timeout_s, as_json), "Enable", full_name, request)


def on_failure(
    name: endpoint_options.Name,
    *,
    tenant: options.Tenant = None,
    on_exhaustion: Annotated[
        failure_options.Exhaustion | None, typer.Option("--then", help="What follows the last attempt.")
    ] = None,
    fallback_urls: Annotated[
        list[str] | None, typer.Option("--fallback-url", help="Used in turn; may be repeated. Replaces all.")
    ] = None,
    rate_limit: Annotated[
        float | None, typer.Option("--rate-limit", min=0, help="Attempts per second; 0 takes the limit away.")
    ] = None,
    burst: Annotated[int | None, typer.Option("--burst", min=1, help="Attempts at once after a quiet time.")] = None,
    circuit: Annotated[
        bool | None, typer.Option("--circuit/--no-circuit", help="Whether attempts stop while most fail.")
    ] = None,
    auto_disable: Annotated[
        bool | None, typer.Option("--auto-disable/--no-auto-disable", help="Whether it is disabled by itself.")
    ] = None,
    schedule: failure_options.Schedule = None,
    min_backoff: failure_options.MinBackoff = None,
    max_backoff: failure_options.MaxBackoff = None,
    max_attempts: failure_options.MaxAttempts = None,
    max_age: failure_options.MaxAge = None,
    final_statuses: failure_options.FinalStatuses = None,
    clear_retries: failure_options.ClearRetries = False,
    etag: options.Etag = None,
    validate_only: options.ValidateOnly = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Say what happens when an endpoint fails: retries, dead letters or halts, fallbacks, rates."""
    retries = RetryOptions(
        schedule, min_backoff, max_backoff, max_attempts, max_age, final_statuses, clear=clear_retries
    )
    said = EndpointFailureOptions(on_exhaustion, fallback_urls, rate_limit, burst, circuit, auto_disable)
    fields = {**said.fields(), **retries.fields("deliverySettings.retryPolicy")}
    access = Access(target, timeout_s, as_json)
    full_name = child_name(name, tenant, COLLECTION)
    resource.update(ENDPOINT, access, full_name, fields, etag=etag, validate_only=validate_only)
