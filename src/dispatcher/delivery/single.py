"""Commands on one delivery, executed by the owner of its endpoint: skip it, or try it now."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
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

PutOnRecord = Callable[[Database, int, Command], Awaitable[CommandOutcome | None]]


@dataclass(frozen=True, slots=True)
class _Done:
    """What is on record now. `lane` is None where there is none to tell; `is_ours`: the row was claimed in it."""

    outcome: CommandOutcome
    lane: Lane | None
    is_ours: bool


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
        done = await self._execute(command, epoch, delivery_commands.skip)
        if done is None:
            return False
        if done.lane is not None:
            self._tell(done.lane, int(command.arguments["seq"]), done.outcome, is_ours=done.is_ours)
        else:
            self._board.relocate(command.key)  # whatever has been read meanwhile may be older
        if done.outcome is CommandOutcome.DONE:
            self._instruments.settled("skipped")
        return True

    async def _execute(self, command: Command, epoch: int, put_on_record: PutOnRecord) -> _Done | None:
        """None: not yet. The row is claimed meanwhile."""
        seq = int(command.arguments["seq"])
        lane = self._board.lanes.get(command.key)
        if lane is not None and self._must_wait(lane, seq):
            return None
        is_ours = lane is not None and lane.claim(seq)
        try:
            outcome = await put_on_record(self._database, epoch, command)
        except UnavailableError:
            self._board.relocate(command.key)  # what is on record is not known
            raise
        if outcome is None:
            return None
        return _Done(outcome, lane if lane is not None and self._board.is_current(lane) else None, is_ours)

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
        done = await self._execute(command, epoch, delivery_commands.retry)
        if done is None:
            return False
        if done.lane is not None and done.is_ours and done.outcome is CommandOutcome.DONE:
            self._retry_now(done.lane, int(command.arguments["seq"]))
        elif done.lane is None or done.is_ours or done.outcome is CommandOutcome.DONE:
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
