"""The end of the retention: what is undelivered then is dead-lettered, audibly, before its day is dropped.

It releases no halt: the halt stays on record, and what waits behind it goes on waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from dispatcher.delivery.board import Board
from dispatcher.delivery.endings import decided, letter
from dispatcher.delivery.sending import SendLoop
from dispatcher.model import Command, DeadLetter, DecisionKind, EndpointKey, OutboxRow
from dispatcher.store import backlog, commands, decisions, deliveries, parked
from dispatcher.store.backlog import RowsWanted
from dispatcher.store.database import Database
from dispatcher.telemetry import Instruments

log = logging.getLogger(__name__)

REASON = "EXPIRED"
EXPIRE_ROWS_MAX = 500
"""Deliveries dead-lettered in one transaction."""
EXPIRE_STEPS_MAX = 4
"""Transactions of one command in one poll."""


class Expiry:
    """Executes EXPIRE_BACKLOG: `before` is the time (ISO 8601) that deliveries must not be older than."""

    def __init__(self, database: Database, board: Board, sending: SendLoop, instruments: Instruments) -> None:
        self._database = database
        self._board = board
        self._sending = sending
        self._instruments = instruments

    async def expire(self, command: Command, epoch: int) -> bool:
        """Whether the command is done; if not, a later poll or the next owner goes on: each step is idempotent."""
        key, before = command.key, datetime.fromisoformat(str(command.arguments["before"]))
        lane = self._board.lanes.get(key)
        if lane is not None:
            lane.paused = True  # until it is located anew below
        if self._sending.is_sending_to(key) or (lane is not None and lane.has_unflushed):
            return False  # what was delivered must not be taken for undelivered
        try:
            is_done = await self._expire_backlog(key, epoch, before) and await self._expire_parked(key, epoch, before)
        finally:
            self._board.relocate(key)
        return is_done and await commands.finish(self._database, epoch, command, {"outcome": "DONE"})

    async def _expire_backlog(self, key: EndpointKey, epoch: int, before: datetime) -> bool:
        position = next(iter(await backlog.load_positions(self._database, [key])), None)
        if position is None:
            return True
        seq, time = position.cursor_seq, position.cursor_time
        for _ in range(EXPIRE_STEPS_MAX):
            rows = await backlog.fetch_rows(self._database, [RowsWanted(key, seq, time, EXPIRE_ROWS_MAX)])
            old = [row for row in rows if row.time < before]
            if not await self._dead_letter(epoch, [row for row in old if not row.settled and not row.parked]):
                return False
            if len(old) < EXPIRE_ROWS_MAX:
                return True
            seq, time = old[-1].seq, old[-1].time
        return False

    async def _expire_parked(self, key: EndpointKey, epoch: int, before: datetime) -> bool:
        for _ in range(EXPIRE_STEPS_MAX):
            rows = await parked.load_older(self._database, key, before, EXPIRE_ROWS_MAX)
            if not await self._dead_letter(epoch, [row for row in rows if not row.settled]):
                return False
            await parked.tidy(self._database, [(key, row.seq) for row in rows], [])
            if len(rows) < EXPIRE_ROWS_MAX:
                return True
        return False

    async def _dead_letter(self, epoch: int, rows: Sequence[OutboxRow]) -> bool:
        """False: the lease is gone."""
        if not rows:
            return True
        key = rows[0].key
        letters = [await self._letter(row) for row in rows]
        verdicts = [decided(row, DecisionKind.EXPIRY, REASON) for row in rows]
        held = await decisions.commit(self._database, {key.partition: epoch}, verdicts, letters)
        if not held:
            return False
        log.warning(
            "undelivered events are past the retention: they are dead-lettered",
            extra={"tenant": str(key.tenant_id), "endpoint": str(key.endpoint_id), "deliveries": len(rows)},
        )
        self._instruments.settled("dead_lettered", len(rows))
        return True

    async def _letter(self, row: OutboxRow) -> DeadLetter:
        found = await deliveries.find(self._database, row.key, row.seq) if row.attempts else None
        return letter(row, None if found is None else found.last_attempt)
