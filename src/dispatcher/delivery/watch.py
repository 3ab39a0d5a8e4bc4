"""What an owner looks for by itself: rows that no hint told of, changed endpoints, operators' commands.

Hints (NOTIFY) only make it sooner. The sweep's look-back exceeds the longest publish transaction, so a row that commits
late is seen by a later sweep; a takeover probes every endpoint, so nothing older is left. Who publishes meanwhile still
tells the former owner, if anyone: a second sweep follows once all have seen the new one. A commit can still be held up
for longer (it waits for a standby while its client is gone, and no timeout covers that), so one partition after another
is probed again, slowly.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

from dispatcher.delivery.board import Board
from dispatcher.errors import UnavailableError
from dispatcher.model import EndpointKey
from dispatcher.store import backlog, listen, runtime
from dispatcher.store.database import Database

log = logging.getLogger(__name__)

K = TypeVar("K")


SECOND_SWEEP_S = 1.5
"""After a sweep that met a partition taken over: by then all have looked at the fleet (`LeaseSettings.poll_s`)."""
COMMAND_HINT = 0
"""A hint of this sequence, which no row has, says that a command waits; an older release takes it for an old hint."""


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """`look_back_s` exceeds the longest transaction that publishes or changes an endpoint."""

    sweep_interval_s: float
    poll_interval_s: float
    look_back_s: float


class Watch:
    """`run` is the task: the sweep, the poll for changed endpoints, and the poll for commands."""

    def __init__(
        self,
        database: Database,
        board: Board,
        execute_commands: Callable[[], Awaitable[None]],
        options: WatchOptions,
    ) -> None:
        self._database = database
        self._board = board
        self._execute_commands = execute_commands
        self._options = options
        self._swept: datetime | None = None
        self._swept_epochs: Mapping[int, int] = {}
        self._again_at = math.inf
        """By the loop's clock."""
        self._polled: datetime | None = None
        self._changed: Mapping[EndpointKey, datetime] = {}
        self._changed_tenants: Mapping[UUID, datetime] = {}
        self._sweep_now = asyncio.Event()
        self._poll_now = asyncio.Event()
        self._probed = -1

    def sweep_soon(self) -> None:
        """Hints may have been lost: sweep now."""
        self._sweep_now.set()

    def poll_soon(self) -> None:
        """There is a command to execute."""
        self._poll_now.set()

    def on_hints(self, payload: str) -> None:
        """A payload of NOTIFY; anyone with a connection may send one, so nonsense is only logged."""
        try:
            hints = listen.decode_hints(payload)
        except ValueError:
            log.warning("a malformed hint was ignored")
            return
        for key, seq in hints:
            if seq == COMMAND_HINT:
                self._poll_now.set()
            else:
                self._board.hint(key, seq)

    async def run(self) -> None:
        options = self._options
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self.sweep, self._sweep_pause_s, self._sweep_now), name="sweep")
            group.create_task(self._repeat(self.probe, lambda: options.sweep_interval_s, asyncio.Event()), name="probe")
            group.create_task(self._repeat(self.poll, lambda: options.poll_interval_s, self._poll_now), name="poll")

    def _sweep_pause_s(self) -> float:
        return max(0.0, min(self._options.sweep_interval_s, self._again_at - asyncio.get_running_loop().time()))

    async def _repeat(
        self, work: Callable[[], Awaitable[None]], pause_s: Callable[[], float], now: asyncio.Event
    ) -> None:
        while True:
            try:
                async with asyncio.timeout(pause_s()):
                    await now.wait()
            except TimeoutError:
                pass
            now.clear()
            try:
                await work()
            except UnavailableError as error:
                log.warning("looking for work waits for the database", extra={"error": str(error)})

    async def sweep(self) -> None:
        """Find endpoints with rows newer than the last sweep that worked, less the look-back."""
        epochs = self._board.epochs
        if not epochs:
            self._swept, self._again_at = None, math.inf  # a takeover finds what came until then
            return
        now = asyncio.get_running_loop().time()
        is_again = now >= self._again_at
        if is_again:
            self._again_at = now + SECOND_SWEEP_S  # should this one fail
        since = await self._since(self._swept)
        started, found = await backlog.sweep(self._database, since, list(epochs))
        if not epochs.items() <= self._swept_epochs.items():
            self._again_at = now + SECOND_SWEEP_S
        elif is_again:
            self._again_at = math.inf
        self._swept, self._swept_epochs = started, epochs
        for key, highest in found:
            self._board.hint(key, highest)

    async def probe(self) -> None:
        """Look at every endpoint of the next partition in turn."""
        partitions = sorted(self._board.epochs)
        if not partitions:
            return
        self._probed = next((partition for partition in partitions if partition > self._probed), partitions[0])
        for position in await backlog.load_partition(self._database, self._probed):
            self._board.locate(position)

    async def poll(self) -> None:
        """Take up changed endpoints and open commands."""
        partitions = list(self._board.epochs)
        if not partitions:
            self._polled = None
            return
        since = await self._since(self._polled)
        changes = await runtime.changes_since(self._database, partitions, since)
        self._polled = changes.start
        for key in _new(changes.endpoints, self._changed):
            self._board.forget_runtime(key)
        self._board.forget_tenants(_new(changes.tenants, self._changed_tenants))
        self._changed, self._changed_tenants = changes.endpoints, changes.tenants
        self._board.retry_unconfigured()
        self._board.retry_aside()
        await self._execute_commands()

    async def _since(self, last: datetime | None) -> datetime:
        start = last or await self._database.fetchval("SELECT clock_timestamp()")
        return start - timedelta(seconds=self._options.look_back_s)


def _new(changed: Mapping[K, datetime], known: Mapping[K, datetime]) -> set[K]:
    """Within the look-back each change is found again and again: what is not known yet, with its time."""
    return {key for key, time in changed.items() if known.get(key) != time}
