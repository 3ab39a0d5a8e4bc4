"""`dispatcher bench`: a load on a running deployment, with a receiver of its own, and what became of every event."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli import access as options
from dispatcher.cli.access import Access
from dispatcher.cli.failure import ExitCode, UsageError
from dispatcher.cli.output import print_json, print_note, print_resource
from dispatcher.cli.status import ServiceError

if TYPE_CHECKING:
    from dispatcher.cli.client import Client
    from dispatcher.cli.load import Load, Verdict

SATURATION = "max"
EVENT_TYPE = "bench.load"
ENDPOINTS_MAX = 256


def bench(
    *,
    rate: Annotated[
        str, typer.Option("--rate", metavar="N", help="Events a second in all; max: as fast as answers come.")
    ] = "100",
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=3600, help="How long events are published.")] = 10,
    endpoints: Annotated[
        int, typer.Option("--endpoints", min=1, max=ENDPOINTS_MAX, help="Endpoints, each with a publisher.")
    ] = 10,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where the receiver listens; port 0: any.")
    ] = "127.0.0.1:0",
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="How the service reaches the receiver. Default: where it listens."),
    ] = None,
    settle_s: Annotated[
        float, typer.Option("--settle", min=0.1, max=3600, help="So many seconds without a webhook is the end.")
    ] = 30.0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave tenant and endpoints to be looked at.")] = False,
    target: options.Target = None,
    timeout_s: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Put a load on a running service and tell what was lost, doubled or out of order, and how long it took.

    Makes a tenant of its own (bench-…) with one endpoint for each publisher, all of which call a receiver that this
    command is; removes them in the end. The service must be allowed to reach the receiver
    (DISPATCHER_EGRESS_ALLOWED_NETWORKS). Exit code 1 where something was lost or out of order.
    """
    from dispatcher.cli.load import Load
    from dispatcher.config.groups import split_address

    try:
        host, port = split_address(listen)
        load = Load(endpoints, None if rate == SATURATION else _positive(rate), seconds, settle_s)
    except ValueError as error:
        raise UsageError(f"--listen, --rate: {error}") from error
    with Access(target, timeout_s).client() as client:
        verdict = asyncio.run(_run(client, load, (host, port), url, keep=keep))
    if as_json:
        print_json(asdict(verdict))
    else:
        print_resource("The load, and what became of it", {name: _shown(v) for name, v in asdict(verdict).items()})
    if not verdict.is_kept:
        raise typer.Exit(ExitCode.FAILED)


def _positive(text: str) -> float:
    if not 0 < (value := float(text)) <= 1e6:
        raise ValueError(f"{text} is not between 0 and 1,000,000")
    return value


def _shown(value: float | int | None) -> str:  # noqa: PYI041 - a count is shown as one
    match value:
        case None:
            return "-"
        case int():
            return f"{value:,}"
        case _:
            return f"{value:,.2f}"


async def _run(client: Client, load: Load, listen: tuple[str, int], url: str | None, *, keep: bool) -> Verdict:
    from dispatcher.cli.load import judge, publish_all, settled
    from dispatcher.embedded.load_receiver import LoadReceiver

    async with LoadReceiver(*listen) as receiver:
        base = (url or f"http://{listen[0]}:{receiver.port}").rstrip("/")

        async def count() -> int:
            return receiver.distinct

        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(load.endpoints) as threads, _tenant(client, load.endpoints, base, keep=keep) as tenant:

            async def publish(endpoint: int, data: Mapping[str, Any]) -> None:
                await loop.run_in_executor(threads, partial(_publish, client, tenant, endpoint, data))

            begun_s = time.monotonic()
            published = await publish_all(publish, load, (ServiceError,))
            received_s = await settled(count, published.count, load.settle_s) - begun_s
        for error in published.errors:
            print_note(f"refused: {error}")
        return judge(load, published, receiver.receipts, received_s)


def _publish(client: Client, tenant: str, endpoint: int, data: Mapping[str, Any]) -> None:
    event = {"type": f"{EVENT_TYPE}{endpoint}", "dataText": json.dumps(data)}
    client.call("PublisherService.Publish", {"parent": tenant, "events": [event]})


@contextlib.contextmanager
def _tenant(client: Client, endpoints: int, base: str, *, keep: bool) -> Iterator[str]:
    """A tenant of this run, with an endpoint and an event type for each publisher."""
    name = f"bench-{secrets.token_hex(4)}"
    tenant = f"tenants/{name}"
    made: list[str] = []
    client.call("TenantService.CreateTenant", {"tenantId": name, "tenant": {"displayName": "dispatcher bench"}})
    try:
        for number in range(endpoints):
            endpoint = {"http": {"url": f"{base}/e/{number}"}, "eventTypes": [f"{EVENT_TYPE}{number}"]}
            request = {"parent": tenant, "endpointId": f"e{number}", "endpoint": endpoint}
            client.call("EndpointService.CreateEndpoint", request)
            made.append(f"{tenant}/endpoints/e{number}")
        yield tenant
    finally:
        if not keep:
            for endpoint_name in made:
                client.call("EndpointService.DeleteEndpoint", {"name": endpoint_name, "force": True})
            client.call("TenantService.DeleteTenant", {"name": tenant})
