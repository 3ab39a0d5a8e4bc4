"""Executes operators' commands as the owner of the partition: they are appended by any instance, done by one.

Each step is fenced and idempotent, so a command that an owner leaves half done is done to the end by the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import assert_never

from dispatcher.delivery.board import Board
from dispatcher.delivery.expiry import Expiry
from dispatcher.delivery.sending import SendLoop
from dispatcher.delivery.single import DeliveryCommands
from dispatcher.model import Command, CommandKind, Cursor
from dispatcher.store import backlog, commands, cursors, decisions
from dispatcher.store.database import Database
from dispatcher.telemetry import Instruments

log = logging.getLogger(__name__)

SKIP_ROWS_MAX = 5000
"""Rows skipped in one transaction."""
SKIP_STEPS_MAX = 4
"""Transactions of one command in one poll: others' commands and changes wait for no backlog of millions."""


class CommandExecutor:
    """`execute_open` is called every so often, and when somebody says that there is something to do."""

    def __init__(
        self,
        database: Database,
        board: Board,
        sending: SendLoop,
        instruments: Instruments,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._single = DeliveryCommands(database, board, instruments, clock)
        self._expiry = Expiry(database, board, sending, instruments)
        self._database = database
        self._board = board
        self._sending = sending
        self._instruments = instruments

    async def execute_open(self) -> None:
        """Do all open commands of the partitions delivered for. Raises UnavailableError."""
        for command in await commands.open_commands(self._database, list(self._board.epochs)):
            epoch = self._board.epoch_of(command.key.partition)
            if epoch is not None and await self._execute(command, epoch):
                log.info(
                    "a command was executed",
                    extra={
                        "command": command.kind.value,
                        "actor": command.actor,
                        "tenant": str(command.key.tenant_id),
                        "endpoint": str(command.key.endpoint_id),
                    },
                )

    async def _execute(self, command: Command, epoch: int) -> bool:
        match command.kind:
            case CommandKind.SKIP_BACKLOG:
                return await self._skip_backlog(command, epoch)
            case CommandKind.SKIP_DELIVERY:
                return await self._single.skip(command, epoch)
            case CommandKind.RETRY_DELIVERY:
                return await self._single.retry(command, epoch)
            case CommandKind.EXPIRE_BACKLOG:
                return await self._expiry.expire(command, epoch)
            case _:
                assert_never(command.kind)

    async def _skip_backlog(self, command: Command, epoch: int) -> bool:
        """Skip all that a deleted endpoint still has, then move its cursor behind it."""
        key = command.key
        self._board.retire(key)
        if self._sending.is_sending_to(key):
            return False  # the next poll goes on; waiting here would keep all others from their commands
        position = next(iter(await backlog.load_positions(self._database, [key])), None)
        if position is None:
            return await commands.finish(self._database, epoch, command, {"through_seq": 0})
        reason = str(command.arguments.get("reason", "ENDPOINT_DELETED"))
        for _ in range(SKIP_STEPS_MAX):
            parked = await decisions.skip_parked(self._database, epoch, key, SKIP_ROWS_MAX, reason, command.actor)
            if not parked.held:
                return False
            self._instruments.settled("skipped", parked.skipped)
            if parked.through_seq < SKIP_ROWS_MAX:
                break
        else:
            return False  # the next poll goes on
        through = position.cursor_seq
        for _ in range(SKIP_STEPS_MAX):
            if through >= position.highest_seq:
                break
            progress = await decisions.skip_range(
                self._database, epoch, key, through + 1, position.highest_seq, SKIP_ROWS_MAX, reason, command.actor
            )
            if not progress.held:
                return False
            self._instruments.settled("skipped", progress.skipped)
            through = progress.through_seq
        cursor = Cursor(key, through, position.cursor_time)
        await cursors.advance(self._database, {key.partition: epoch}, [cursor])
        if through < position.highest_seq:
            return False  # the next poll goes on from the cursor
        return await commands.finish(self._database, epoch, command, {"through_seq": through})
