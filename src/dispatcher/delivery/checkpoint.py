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
        """Write all watermarks that have moved (of these partitions); raises UnavailableError and loses none.

        What moves meanwhile waits for the next time: under load something always does.
        """
        moved = self._board.take_dirty(partitions)
        for start in range(0, len(moved), CURSORS_MAX):
            part = moved[start : start + CURSORS_MAX]
            concerned, epochs = {cursor.key.partition for cursor in part}, self._board.epochs
            try:
                await cursors.advance(self._database, {p: epochs[p] for p in concerned & epochs.keys()}, part)
            except BaseException:
                self._board.mark_dirty(moved[start:])
                raise
