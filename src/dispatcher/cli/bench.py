"""`dispatcher bench`: a load on a running deployment, with a receiver of its own, and what became of every event."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from dispatcher.cli import access as options
from dispatcher.cli.access import Access
from dispatcher.cli.failure import ExitCode, UsageError
from dispatcher.cli.output import print_json, print_note, print_resource
from dispatcher.cli.status import Code, ServiceError

if TYPE_CHECKING:
    from dispatcher.cli.client import Client
    from dispatcher.cli.load import Load, Published, Verdict

SATURATION = "max"
EVENT_TYPE = "bench.load"
ENDPOINTS_MAX = 256
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - to refuse them
DELETE_ENDPOINT = "EndpointService.DeleteEndpoint"


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
    (DISPATCHER_EGRESS_ALLOWED_NETWORKS). A load ends after a million calls at the latest. Exit code 1 where something
    was lost or out of order, or could not be removed; killed, the command leaves its tenant behind.
    """
    from dispatcher.cli.load import Load

    try:
        load = Load(endpoints, None if rate == SATURATION else _positive(rate), seconds, settle_s)
    except ValueError as error:
        raise UsageError(f"--rate: {error}") from error
    access = Access(target, timeout_s)
    with access.client() as client, LoadTenant(client, keep=keep) as tenant:
        verdict = asyncio.run(_run(access, tenant, load, _address(listen, url), url))
    if as_json:
        print_json(asdict(verdict))
    else:
        print_resource("The load, and what became of it", {name: _shown(v) for name, v in asdict(verdict).items()})
    if tenant.is_left or not verdict.is_kept:
        raise typer.Exit(ExitCode.FAILED)


def _address(listen: str, url: str | None) -> tuple[str, int]:
    from dispatcher.config.groups import split_address

    try:
        host, port = split_address(listen)
    except ValueError as error:
        raise UsageError(f"--listen: {error}") from error
    if url is None and host in EVERYWHERE:
        raise UsageError(
            f"--url is needed: {listen} stands for all addresses of this host, and the service must be told one"
        )
    return host, port


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


async def _run(access: Access, tenant: LoadTenant, load: Load, listen: tuple[str, int], url: str | None) -> Verdict:
    from dispatcher.cli.load import judge, publish_all, settle
    from dispatcher.embedded.load_receiver import LoadReceiver

    async with contextlib.AsyncExitStack() as stack:
        try:
            receiver = await stack.enter_async_context(LoadReceiver(*listen))
        except OSError as error:
            raise UsageError(f"--listen: cannot listen on {listen[0]}, port {listen[1]}: {error.strerror}") from error

        async def count() -> int:
            return receiver.distinct

        host = f"[{listen[0]}]" if ":" in listen[0] else listen[0]
        tenant.make((url or f"http://{host}:{receiver.port}").rstrip("/"), load.endpoints)
        published = await _published(access, tenant.name, load, publish_all)
        await settle(count, published.expected, load.settle_s)
    for text in published.errors:
        print_note(f"refused: {text}")
    return judge(load, published, receiver.receipts)


async def _published(access: Access, tenant: str, load: Load, publish_all: Any) -> Published:
    """On a channel of its own: closed, it ends the calls that are on their way, and their threads with them."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(load.endpoints) as threads, access.client() as client:

        async def publish(endpoint: int, data: Mapping[str, Any]) -> None:
            event = {"type": f"{EVENT_TYPE}{endpoint}", "dataText": json.dumps(data)}
            request = {"parent": tenant, "events": [event]}
            await loop.run_in_executor(threads, client.call, "PublisherService.Publish", request)

        published: Published = await publish_all(publish, load, (ServiceError,))
        return published


class LoadTenant:
    """A tenant for one run with an endpoint and an event type for each publisher; a context manager, which removes all.

    What can't be removed is told by name, and `is_left` says so. A process that is killed leaves its tenant behind.
    """

    def __init__(self, client: Client, *, keep: bool) -> None:
        self._client, self._keep = client, keep
        self._id = f"bench-{secrets.token_hex(4)}"
        self._asked: list[str] = []
        self.name = f"tenants/{self._id}"
        self.is_left = False

    def make(self, base: str, endpoints: int) -> None:
        """Tenant and endpoints; what was asked for may be there, whatever was answered."""
        self._asked.append(self.name)
        tenant = {"displayName": "dispatcher bench"}
        self._client.call("TenantService.CreateTenant", {"tenantId": self._id, "tenant": tenant})
        for number in range(endpoints):
            self._asked.append(f"{self.name}/endpoints/e{number}")
            endpoint = {"http": {"url": f"{base}/e/{number}"}, "eventTypes": [f"{EVENT_TYPE}{number}"]}
            request = {"parent": self.name, "endpointId": f"e{number}", "endpoint": endpoint}
            self._client.call("EndpointService.CreateEndpoint", request)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._keep:
            return
        try:
            for name in reversed(self._asked):
                self._remove(name)
        except KeyboardInterrupt:
            print_note(f"left behind: {self.name}")
            raise

    def _remove(self, name: str) -> None:
        method, more = ("TenantService.DeleteTenant", {}) if name == self.name else (DELETE_ENDPOINT, {"force": True})
        try:
            self._client.call(method, {"name": name, **more})
        except ServiceError as error:
            if error.status.code is not Code.NOT_FOUND:
                self.is_left = True
                print_note(f"left behind: {name}: {error}")
