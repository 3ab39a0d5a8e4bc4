"""Options that every command that talks to the service has, and the call behind them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli.credentials import Credentials
from dispatcher.cli.failure import UsageError, explain
from dispatcher.cli.status import ServiceError

if TYPE_CHECKING:
    from dispatcher.cli.client import Client

Target = Annotated[
    str | None,
    typer.Option("--target", metavar="HOST:PORT", help="Where the service is. Default: DISPATCHER_CLIENT_TARGET."),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        min=0.1,
        max=600,
        help="Longest wait for an answer. Default: DISPATCHER_CLIENT_TIMEOUT_S.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print proto JSON for machines.")]
Tenant = Annotated[
    str | None, typer.Option("--tenant", "-t", metavar="TENANT", help="The tenant: acme or tenants/acme.")
]
ValidateOnly = Annotated[bool, typer.Option("--validate-only", help="Only check the request; change nothing.")]
Etag = Annotated[str | None, typer.Option("--etag", help="Fail if the resource has changed since this etag was read.")]
Filter = Annotated[str | None, typer.Option("--filter", help="An AIP-160 filter, such as 'labels.stage = \"prod\"'.")]
PageSize = Annotated[int | None, typer.Option("--page-size", min=1, max=1000, help="Resources on one page.")]
PageToken = Annotated[str | None, typer.Option("--page-token", help="The next page, as the page before said.")]
AllPages = Annotated[bool, typer.Option("--all", help="All pages.")]
Labels = Annotated[
    list[str] | None, typer.Option("--label", "-l", metavar="KEY=VALUE", help="A label; may be repeated. Replaces all.")
]
ClearLabels = Annotated[bool, typer.Option("--clear-labels", help="Remove all labels.")]


@dataclass(frozen=True, slots=True)
class Access:
    """Where the service is and how to print its answers; None means what the settings say."""

    target: str | None = None
    timeout_s: float | None = None
    as_json: bool = False

    def resolved(self) -> tuple[str, float, Credentials]:
        """(host:port, seconds, who calls) from the options or else the settings; ConfigError where those are wrong."""
        from dispatcher.config import from_environment
        from dispatcher.config.groups import split_address

        settings = from_environment()
        target = self.target or settings.client_target
        try:
            split_address(target)
        except ValueError as error:
            raise UsageError(f"--target {error}") from error
        return target, self.timeout_s or settings.client_timeout_s, Credentials.of(settings)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A channel to the service; what the service refuses inside becomes a CliError."""
        from dispatcher.cli.client import Client

        with Client(*self.resolved()) as client:
            try:
                yield client
            except ServiceError as error:
                raise explain(error) from error

    def call(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """One call, such as `TenantService.GetTenant`, in proto JSON both ways."""
        with self.client() as client:
            return client.call(method, request)
