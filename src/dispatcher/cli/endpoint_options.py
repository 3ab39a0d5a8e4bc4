"""The options that set fields of an endpoint, and the fields they make. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dispatcher.cli.arguments import Fields, duration, given, map_field
from dispatcher.cli.failure import UsageError

SECRET_BYTES_MAX = 4096


class State(StrEnum):
    """Whether deliveries are made."""

    ACTIVE = "active"
    PAUSED = "paused"
    DISABLED = "disabled"


class Ordering(StrEnum):
    """Which deliveries wait for which."""

    ORDERED = "ordered"
    ORDERED_BY_KEY = "ordered-by-key"
    UNORDERED = "unordered"


class Trace(StrEnum):
    """What a webhook tells of its trace."""

    NONE = "none"
    NEW_ROOT = "new-root"
    CONTINUE = "continue"


DELIVERY = "How webhooks are sent"
Name = Annotated[str, typer.Argument(metavar="ENDPOINT", help="An id with --tenant, or tenants/acme/endpoints/ID.")]
Url = Annotated[str | None, typer.Option("--url", help="Where the webhooks go: https://… or http://….")]
EventTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--event-type", "-e", help="What it receives: order.paid, order.* or *; may be repeated. Replaces all."
    ),
]
Description = Annotated[str | None, typer.Option("--description", help="What the endpoint is for.")]
StateOption = Annotated[State | None, typer.Option("--state", help="Whether deliveries are made.")]
StateReason = Annotated[str | None, typer.Option("--state-reason", help="Why it is in this state, for people.")]
AttemptTimeout = Annotated[
    str | None,
    typer.Option(
        "--attempt-timeout", metavar="DURATION", help="Longest attempt, such as 10s.", rich_help_panel=DELIVERY
    ),
]
Headers = Annotated[
    list[str] | None,
    typer.Option(
        "--header",
        "-H",
        metavar="NAME:VALUE",
        help="A header to add; may be repeated. Replaces all.",
        rich_help_panel=DELIVERY,
    ),
]
ClearHeaders = Annotated[bool, typer.Option("--clear-headers", help="Remove all headers.", rich_help_panel=DELIVERY)]
MaxInFlight = Annotated[
    int | None, typer.Option("--max-in-flight", min=1, help="Most requests at a time.", rich_help_panel=DELIVERY)
]
OrderingOption = Annotated[
    Ordering | None, typer.Option("--ordering", help="Which deliveries wait for which.", rich_help_panel=DELIVERY)
]
TraceOption = Annotated[
    Trace | None, typer.Option("--trace", help="What the traceparent header tells.", rich_help_panel=DELIVERY)
]
SecretFile = Annotated[
    Path | None,
    typer.Option(
        "--signing-secret-file",
        metavar="FILE",
        help="Bring a secret (whsec_…) in a file: a command line can be read by others.",
    ),
]


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """What was given; None or False where it was not."""

    url: str | None = None
    event_types: list[str] | None = None
    description: str | None = None
    state: State | None = None
    state_reason: str | None = None
    labels: list[str] | None = None
    clear_labels: bool = False
    attempt_timeout: str | None = None
    headers: list[str] | None = None
    clear_headers: bool = False
    max_in_flight: int | None = None
    ordering: Ordering | None = None
    trace: Trace | None = None

    def fields(self) -> Fields:
        """The fields of an endpoint that were given, by their path."""
        plain = given(
            description=self.description,
            eventTypes=self.event_types or None,
            state=_enum("STATE", self.state),
            stateReason=self.state_reason,
        )
        dotted = {
            "http.url": self.url,
            "deliverySettings.timeout": self.attempt_timeout and duration(self.attempt_timeout, "--attempt-timeout"),
            "deliverySettings.maxInFlight": self.max_in_flight,
            "deliverySettings.orderingMode": _enum("ORDERING_MODE", self.ordering),
            "deliverySettings.tracePropagation": _enum("TRACE_PROPAGATION", self.trace),
        }
        return {
            **given(**dotted),
            **plain,
            **map_field("labels", self.labels, "--label", clear=self.clear_labels),
            **map_field("deliverySettings.headers", self.headers, "--header", clear=self.clear_headers, separator=":"),
        }


def _enum(prefix: str, value: StrEnum | None) -> str | None:
    return None if value is None else f"{prefix}_{value.replace('-', '_').upper()}"


def read_secret(path: Path | None) -> str | None:
    """The secret in a file, `/dev/stdin` included; None without one. It is never shown."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            secret = file.read(SECRET_BYTES_MAX + 1).decode("ascii").strip()
    except OSError as error:
        raise UsageError(f"--signing-secret-file: cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise UsageError(f"--signing-secret-file: {path} does not hold a secret such as whsec_…") from None
    if not secret or len(secret) > SECRET_BYTES_MAX:
        raise UsageError(f"--signing-secret-file: {path} does not hold a secret such as whsec_…")
    return secret
