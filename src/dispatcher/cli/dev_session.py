"""One run of `dispatcher dev`: what is started, in which order, what is published, and how it ends.

folder ─▶ PostgreSQL ─▶ migrations ─▶ receiver ─▶ service ─▶ tenant and endpoints ─▶ events … and back the same way
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import uuid_utils

from dispatcher.cli.client import Client, Publisher
from dispatcher.cli.dev_events import Acknowledgements, batch_events, event_batches, read_templates
from dispatcher.cli.dev_service import LocalService, local_settings, running_service
from dispatcher.cli.dev_shop import ENDPOINTS, TENANT, new_secret, owed_to, register
from dispatcher.cli.dev_table import REFRESHES_PER_S, Display, Places, Snapshot, how_to_go_on
from dispatcher.cli.failure import CliError, exit_code_of
from dispatcher.cli.feed import Feed
from dispatcher.cli.publishing import Listeners, Plan, Publishing
from dispatcher.config import Settings
from dispatcher.embedded import EVENTS_FILE
from dispatcher.embedded.folder import LocalFolder
from dispatcher.embedded.ledger import LedgerTotals, OrderLedger
from dispatcher.embedded.postgres import EmbeddedPostgres
from dispatcher.embedded.receiver import DemoReceiver
from dispatcher.store.database import DatabaseOptions
from dispatcher.store.migrate import migrate

CALL_TIMEOUT_S = 10.0
STALL_S = 15.0
"""A demo in which nothing is delivered for so long gives up."""
LAST_DELIVERIES_S = 1.0
"""After Ctrl-C, how long to wait for what has been published."""
POLL_S = 0.02
LATENCIES_MAX = 5_000
"""Latencies a run without end keeps: sorting them for each refresh must not be felt by the service beside it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for: `count` events or None for no end, `rate` in events per second or None for no limit."""

    count: int | None
    rate: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. Seconds are None before the first webhook; `deliveries_per_s` is None before the second."""

    totals: LedgerTotals
    is_interrupted: bool
    first_webhook_s: float | None
    deliveries_per_s: float | None


class Session:
    """Run it once. `started_s` is when the command began, on the monotonic clock."""

    def __init__(
        self, folder: LocalFolder, environ: Mapping[str, str], preferred: Mapping[str, str], wish: Wish, *,
        display: Display, started_s: float,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._environ = environ
        self._preferred = preferred
        self._wish = wish
        self._display = display
        self._started_s = started_s
        self._phase = "starting"
        self._stop = asyncio.Event()
        self._ledger = OrderLedger() if wish.count is not None else OrderLedger(latencies_max=LATENCIES_MAX)
        self._acknowledgements = Acknowledgements(self._ledger, owed_to)

    def stop(self) -> None:
        """End the run in good order."""
        self._stop.set()

    async def run(self) -> Outcome:
        """Start everything, publish, stop everything."""
        showing = asyncio.create_task(self._show(), name="display")
        try:
            with self._folder.open_log() as log:
                await self._run(log)
        finally:
            showing.cancel()
            await asyncio.wait({showing})
        self._phase = "stopped"
        self._display.update(self._snapshot())
        return self._outcome()

    async def _run(self, log: TextIO) -> None:
        async with EmbeddedPostgres(self._folder.postgres) as postgres:
            await migrate(DatabaseOptions(postgres.dsn))
            made = {"database_url": postgres.dsn, "secret_keys": self._folder.secret_keys()}
            settings = local_settings(self._environ, preferred=self._preferred, **made)
            async with DemoReceiver(self._ledger) as receiver, running_service(settings, log) as service:
                await self._set_up_shop(receiver, f"127.0.0.1:{service.ports.grpc}")
                if self._wish.count is None:
                    self._display.announce(how_to_go_on(_places(settings, service, self._folder)))
                await self._publish_until_over(service, postgres)

    async def _set_up_shop(self, receiver: DemoReceiver, target: str) -> None:
        secret_of = {endpoint.name: new_secret() for endpoint in ENDPOINTS}
        for endpoint in ENDPOINTS:
            receiver.register(endpoint.name, secret_of[endpoint.name], endpoint.mode)

        def call() -> None:
            with Client(target, CALL_TIMEOUT_S) as client:
                register(client, receiver.url, secret_of)

        await asyncio.to_thread(call)

    async def _publish_until_over(self, service: LocalService, postgres: EmbeddedPostgres) -> None:
        """Publish and wait for the deliveries, until all is done, someone says stop, or a part of us dies."""
        self._phase = "publishing"
        publishing = asyncio.create_task(self._publish(f"127.0.0.1:{service.ports.grpc}"), name="publish")
        stopped = asyncio.create_task(self._stop.wait(), name="stop")
        database_gone = asyncio.create_task(postgres.wait_stopped(), name="database")
        ours: list[asyncio.Task[Any]] = [publishing, stopped, database_gone]
        try:
            await asyncio.wait([*ours, service.task], return_when=asyncio.FIRST_COMPLETED)
            self._phase = "stopping"
            if database_gone.done():
                raise CliError(
                    "the local PostgreSQL has ended", details=(f"see {self._folder.postgres / 'postgres.log'}",)
                )
            if publishing.done():
                publishing.result()
            elif stopped.done():
                await _ended(publishing)
                await self._settled(LAST_DELIVERIES_S)
        finally:
            for task in ours:
                await _ended(task)

    async def _publish(self, target: str) -> None:
        templates = read_templates(EVENTS_FILE)
        events_max = batch_events(self._wish.rate)
        batches = event_batches(
            templates, lambda: str(uuid_utils.uuid7()), events_max=events_max, count=self._wish.count
        )
        feed, publisher = Feed(batches), Publisher(target)
        plan = Plan(parent=TENANT, answer_timeout_s=CALL_TIMEOUT_S, rate=self._wish.rate)
        listeners = Listeners(lambda _: None, lambda _: None, lambda _, __: None)
        publishing = Publishing(lambda: self._acknowledgements.watch(publisher.open_stream()), feed, plan, listeners)
        try:
            await publishing.run()
        finally:
            feed.close()
            await publisher.close()
        if (failure := publishing.tally.last_failure) is not None:
            raise CliError(
                f"publishing failed: {failure.problem}", code=exit_code_of(failure.code), details=failure.details
            )
        self._phase = "waiting for the last deliveries"
        await self._settled(STALL_S)

    async def _settled(self, stall_s: float) -> None:
        """Return once nothing is missing, or nothing has come for `stall_s`."""
        seen, since_s = self._ledger.deliveries, time.monotonic()
        while self._ledger.missing and time.monotonic() - since_s < stall_s:
            await asyncio.sleep(POLL_S)
            if self._ledger.deliveries != seen:
                seen, since_s = self._ledger.deliveries, time.monotonic()

    async def _show(self) -> None:
        while True:
            self._display.update(self._snapshot())
            await asyncio.sleep(1 / REFRESHES_PER_S)

    def _snapshot(self) -> Snapshot:
        elapsed_s = time.monotonic() - self._started_s
        return Snapshot(self._phase, elapsed_s, self._first_webhook_s(), self._ledger.totals())

    def _first_webhook_s(self) -> float | None:
        first_s = self._ledger.first_accepted_s
        return None if first_s is None else first_s - self._started_s

    def _outcome(self) -> Outcome:
        totals = self._ledger.totals()
        begin_s, end_s = self._acknowledgements.first_sent_s, self._ledger.last_accepted_s
        rate = totals.deliveries / (end_s - begin_s) if begin_s is not None and end_s and end_s > begin_s else None
        return Outcome(totals, self._stop.is_set(), self._first_webhook_s(), rate)


def _places(settings: Settings, service: LocalService, folder: LocalFolder) -> Places:
    def address(listen: str, port: int) -> str:
        return f"{listen.rpartition(':')[0]}:{port}"

    ports = service.ports
    return Places(
        grpc=address(settings.grpc_listen, ports.grpc),
        admin=address(settings.admin_listen, ports.admin),
        ops=address(settings.ops_listen, ports.ops),
        folder=folder.path,
        log_file=folder.log_file,
    )


async def _ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is over; what it had to say is for whoever asks for its result."""
    task.cancel()
    await asyncio.wait({task})
