"""Checkpoints: watermarks that moved, written every few seconds under the leases, never past what is durable."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from dispatcher.delivery.board import Board
from dispatcher.errors import UnavailableError
from dispatcher.store import cursors
from dispatcher.store.database import Database

log = logging.getLogger(__name__)

CURSORS_MAX = 5000
"""Cursors written in one transaction."""


class Checkpointer:
    """`run` is the task; `write` serves a release or a shutdown."""

    def __init__(self, database: Database, board: Board, interval_s: float) -> None:
        self._database = database
        self._board = board
        self._interval_s = interval_s

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.write()
            except UnavailableError as error:
                log.warning("a checkpoint waits for the database", extra={"error": str(error)})

    async def write(self, partitions: Iterable[int] | None = None) -> None:
        """Write all watermarks that moved (of these partitions); raises UnavailableError and loses none."""
        chosen = None if partitions is None else list(partitions)
        while moved := self._board.take_dirty(CURSORS_MAX, chosen):
            held, concerned = self._board.epochs, {cursor.key.partition for cursor in moved}
            epochs = {partition: held[partition] for partition in concerned}
            try:
                await cursors.advance(self._database, epochs, moved)
            except BaseException:
                self._board.mark_dirty(moved)
                raise
