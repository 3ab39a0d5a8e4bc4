"""From lease to lanes and back.

acquired ──probe every endpoint once──> delivering ──release wanted──> nothing starts ──in flight done, decided,
    ^                                       │                                  flushed, checkpointed──> released
    │                                       ├── lease lost ──> lanes forgotten at once
    └──────────── fresh start ── reset <────┘   (the database lost commits: acknowledgements forgotten too)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from dispatcher.delivery.backoff import Backoff
from dispatcher.delivery.board import Board
from dispatcher.delivery.checkpoint import Checkpointer
from dispatcher.delivery.decide import DecisionWriter
from dispatcher.delivery.flush import Flusher
from dispatcher.delivery.sending import SendLoop
from dispatcher.errors import UnavailableError
from dispatcher.store import backlog
from dispatcher.store.database import Database

log = logging.getLogger(__name__)

TAKEOVERS_MAX = 4
"""Partitions probed at the same time."""


class Ownership:
    """The lease keeper's listener. `run` takes partitions over in the background."""

    def __init__(
        self,
        database: Database,
        board: Board,
        sending: SendLoop,
        flusher: Flusher,
        decisions: DecisionWriter,
        checkpointer: Checkpointer,
        held: Callable[[int], int | None],
        *,
        on_taken_over: Callable[[], None],
        drain_s: float,
    ) -> None:
        """`on_taken_over`: rows that were committed between a probe and its end are still to be looked for."""
        self._database = database
        self._board = board
        self._sending = sending
        self._flusher = flusher
        self._decisions = decisions
        self._checkpointer = checkpointer
        self._held = held
        self._on_taken_over = on_taken_over
        self._drain_s = drain_s
        self._acquired: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        self._turns = asyncio.Lock()

    def on_acquired(self, partition: int, epoch: int) -> None:
        self._acquired.put_nowait((partition, epoch))

    def on_lost(self, partition: int) -> None:
        log.warning("a lease was lost", extra={"partition": partition})
        self._board.close(partition)

    def on_reset(self) -> None:
        """The database is not the one we knew: nothing in memory counts any more."""
        log.error("the database lost commits; all deliveries start afresh from what it has")
        for partition in self._board.epochs:
            self._board.close(partition)
        self._flusher.reset()
        self._decisions.reset()

    async def on_release(self, partition: int) -> None:
        """Bring a partition to rest before its lease is released: the next owner then repeats nothing.

        Within `drain_s` for what is in flight, and as much again to write what has ended. What a bound cuts off, the
        next owner sends again; a decision that is not committed by then is void by its epoch.
        """
        self._board.stop_starting(partition)
        await self._bounded(partition, self._at_rest(partition))
        await self._bounded(partition, self._put_on_record(partition))
        await self._turn()
        self._board.close(partition)

    async def _at_rest(self, partition: int) -> None:
        await self._turn()
        await self._sending.quiesced(lambda key: key.partition == partition)

    async def _put_on_record(self, partition: int) -> None:
        """The acknowledgements first: a cursor never passes over one that is not durable."""
        await self._flusher.flushed()
        await self._turn()
        await self._checkpointer.write([partition])

    async def _turn(self) -> None:
        """Before a step over all endpoints of a partition: all that a drain makes due in the same moment would else
        run in one go, and hold up renewals, calls and probes of health."""
        async with self._turns:
            await asyncio.sleep(0)

    async def _bounded(self, partition: int, step: Coroutine[Any, Any, None]) -> None:
        """One step of a release, which goes on however it ends: an attempt that hangs keeps nothing else off record."""
        try:
            async with asyncio.timeout(self._drain_s):
                await step
        except (TimeoutError, UnavailableError) as error:
            log.warning("a partition is released unclean", extra={"partition": partition, "error": repr(error)})

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(TAKEOVERS_MAX):
                group.create_task(self._take_over_all(), name=f"takeover-{number}")

    async def _take_over_all(self) -> None:
        while True:
            partition, epoch = await self._acquired.get()
            await self._take_over(partition, epoch)
            if self._acquired.empty():
                self._on_taken_over()

    async def _take_over(self, partition: int, epoch: int) -> None:
        """Probe every endpoint of the partition once: hints that were lost before this are found here."""
        backoff = Backoff(0.05, 1.0)
        while self._held(partition) == epoch:
            try:
                positions = await backlog.load_partition(self._database, partition)
            except UnavailableError:
                await asyncio.sleep(backoff.next_s())
                continue
            if self._held(partition) == epoch:
                self._board.close(partition)
                self._board.open(partition, epoch, positions)
            return
