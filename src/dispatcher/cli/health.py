"""What a container's probes and hooks run: an image without a shell has neither `sleep` nor a health prober."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from dispatcher.cli.access import Access, Target, Timeout
from dispatcher.cli.failure import CliError, ExitCode

SERVING = "SERVING"


def health(
    *,
    service: Annotated[
        str, typer.Option("--service", metavar="NAME", help="One gRPC service, such as webhooks.v1.PublisherService.")
    ] = "",
    target: Target = None,
    timeout: Timeout = None,
) -> None:
    """Ask grpc.health.v1 whether the service takes calls. Exit code 0 where it does, 3 where it does not or is not
    there, 4 for a service that it does not have."""
    with Access(target, timeout).client() as client:
        status = client.health(service)
    print(status)
    if status != SERVING:
        raise CliError(f"{service or 'the service'} is {status}", code=ExitCode.UNAVAILABLE)


def prestop(
    *,
    sleep_s: Annotated[
        float, typer.Option("--sleep-s", metavar="SECONDS", min=0, max=300, help="How long to wait.")
    ] = 10.0,
) -> None:
    """Wait, as a container's preStop hook: the mesh stops sending new calls here meanwhile, and SIGTERM comes after."""
    time.sleep(sleep_s)
