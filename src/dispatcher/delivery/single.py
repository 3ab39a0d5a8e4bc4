"""Commands on one delivery, executed by the owner of its endpoint: skip it, or try it now."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import assert_never

from dispatcher.delivery.board import Board
from dispatcher.delivery.lane import Lane
from dispatcher.delivery.slots import ACKNOWLEDGED, DECIDING, IN_FLIGHT
from dispatcher.errors import UnavailableError
from dispatcher.model import Command
from dispatcher.store import delivery_commands
from dispatcher.store.database import Database
from dispatcher.store.delivery_commands import CommandOutcome
from dispatcher.telemetry import Instruments


class DeliveryCommands:
    """Each method returns whether the command is done; if not, a later poll, or the next owner, goes on."""

    def __init__(
        self,
        database: Database,
        board: Board,
        instruments: Instruments,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._board = board
        self._instruments = instruments
        self._clock = clock

    async def skip(self, command: Command, epoch: int) -> bool:
        """Pass over a delivery. An attempt in flight is waited for: what it comes to decides."""
        seq = int(command.arguments["seq"])
        lane = self._board.lanes.get(command.key)
        if lane is not None and self._must_wait(lane, seq):
            return False
        is_ours = lane is not None and lane.claim(seq)
        try:
            outcome = await delivery_commands.skip(self._database, epoch, command)
        except UnavailableError:
            self._board.relocate(command.key)  # what is on record is not known
            raise
        if outcome is None:
            return False
        if lane is not None and self._board.is_current(lane):
            self._tell(lane, seq, outcome, is_ours=is_ours)
        else:
            self._board.relocate(command.key)  # whatever has been read meanwhile may be older
        if outcome is CommandOutcome.DONE:
            self._instruments.settled("skipped")
        return True

    def _tell(self, lane: Lane, seq: int, outcome: CommandOutcome, *, is_ours: bool) -> None:
        match outcome:
            case CommandOutcome.DONE if is_ours:
                lane.decided(seq)
                self._board.settled(lane)
            case CommandOutcome.LIFTED if not is_ours:
                lane.lift_halt(seq)
                self._board.settled(lane)
            case CommandOutcome.DONE | CommandOutcome.LIFTED:
                self._board.relocate(lane.key)  # it is being read just now, or differs from what is on record
            case CommandOutcome.SETTLED:
                if is_ours:
                    self._board.relocate(lane.key)
            case _:
                assert_never(outcome)

    async def retry(self, command: Command, epoch: int) -> bool:
        """Make the next attempt due now, and end a halt for it.

        The row is claimed meanwhile: an attempt of its own could be exhausted, and halted anew, while that halt is
        being taken off the record.
        """
        seq = int(command.arguments["seq"])
        lane = self._board.lanes.get(command.key)
        if lane is not None and self._must_wait(lane, seq):
            return False
        is_ours = lane is not None and lane.claim(seq)
        try:
            outcome = await delivery_commands.retry(self._database, epoch, command)
        except UnavailableError:
            self._board.relocate(command.key)  # what is on record is not known
            raise
        if outcome is None:
            return False
        is_told = lane is not None and self._board.is_current(lane)
        if lane is not None and is_told and is_ours and outcome is CommandOutcome.DONE:
            self._retry_now(lane, seq)
        elif not is_told or is_ours or outcome is CommandOutcome.DONE:
            self._board.relocate(command.key)  # it is not in memory, or differs from what is on record
        return True

    def _retry_now(self, lane: Lane, seq: int) -> None:
        now = self._clock()
        lane.retry_now(seq, now)
        standing = self._board.admissions.get(lane.key)
        if standing is not None:
            standing.admission.try_now(now)
        self._board.feed(lane)
        self._board.wake(lane)

    @staticmethod
    def _must_wait(lane: Lane, seq: int) -> bool:
        """What is held is not known yet, or what an attempt comes to is not on record: that decides."""
        return lane.needs_held or lane.state_of(seq) in (IN_FLIGHT, DECIDING, ACKNOWLEDGED)
