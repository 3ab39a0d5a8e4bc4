"""`dispatcher tenants pause, resume, on-failure, quota`: what holds for all endpoints of a tenant."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli import access as options
from dispatcher.cli import failure_options, resource
from dispatcher.cli.access import Access
from dispatcher.cli.arguments import given, tenant_name
from dispatcher.cli.endpoint_control import Reason
from dispatcher.cli.failure_options import RetryOptions
from dispatcher.cli.resource import Kind

TENANT = Kind("Tenant", "tenant", "tenants", (), "TenantService")
Name = Annotated[str, typer.Argument(metavar="TENANT", help="acme or tenants/acme.")]


def pause(
    name: Name,
    *,
    reason: Reason = None,
    etag: options.Etag = None,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Hold all endpoints of a tenant back: their events are kept, in order."""
    request = given(reason=reason, etag=etag)
    resource.act(TENANT, Access(target, timeout_s, as_json), "Pause", tenant_name(name), request)


def resume(
    name: Name,
    *,
    rate: failure_options.Rate = None,
    etag: options.Etag = None,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Let a paused tenant's endpoints go on, each at a rate if wanted."""
    request = given(maxPerSecond=rate, etag=etag)
    resource.act(TENANT, Access(target, timeout_s, as_json), "Resume", tenant_name(name), request)


def on_failure(
    name: Name,
    *,
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
    """Say when failed deliveries are tried again, for endpoints that say nothing else."""
    retries = RetryOptions(
        schedule, min_backoff, max_backoff, max_attempts, max_age, final_statuses, clear=clear_retries
    )
    fields = retries.fields("defaultRetryPolicy")
    access = Access(target, timeout_s, as_json)
    resource.update(TENANT, access, tenant_name(name), fields, etag=etag, validate_only=validate_only)


def quota(
    name: Name,
    *,
    events_per_second: Annotated[float | None, typer.Option("--events", min=0, help="Events per second.")] = None,
    bytes_per_second: Annotated[float | None, typer.Option("--bytes", min=0, help="Payload bytes per second.")] = None,
    etag: options.Etag = None,
    validate_only: options.ValidateOnly = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Bound what a tenant may publish. Both are replaced: one that is left out, or 0, is no bound."""
    bounds = given(eventsPerSecond=events_per_second, bytesPerSecond=bytes_per_second)
    fields = {"publishQuota": bounds} if bounds else {}
    access = Access(target, timeout_s, as_json)
    resource.update(TENANT, access, tenant_name(name), fields, etag=etag, validate_only=validate_only)
