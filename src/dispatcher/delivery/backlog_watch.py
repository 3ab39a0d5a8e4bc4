"""Says when an endpoint's backlog is high: once, and again only after it was well below.

low ──above a bound──▶ high (told) ──below half of both bounds──▶ low
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from dispatcher.delivery.board import Board
from dispatcher.delivery.measure import backlog_of
from dispatcher.errors import UnavailableError
from dispatcher.model import EndpointKey
from dispatcher.store import operational
from dispatcher.store.database import Database
from dispatcher.store.operational import OperationalEvent, OperationalType

log = logging.getLogger(__name__)

TELL_MAX = 500
"""Endpoints told of in one round; the others in the next."""


@dataclass(frozen=True, slots=True)
class BacklogBounds:
    """A backlog is high from so many deliveries, or from an oldest one of such an age."""

    rows: int
    age_s: float


class HighBacklogs:
    """Which endpoints are high; pure. A restart, or another owner, may tell again of one that still is."""

    def __init__(self, bounds: BacklogBounds) -> None:
        self._bounds = bounds
        self._high: set[EndpointKey] = set()

    def turned_high(self, measured: dict[EndpointKey, tuple[int, float]]) -> list[EndpointKey]:
        """Given count and age (s) of each backlog: those to tell of, not yet noted as told."""
        rows, age_s = self._bounds.rows, self._bounds.age_s
        self._high = {
            key
            for key in self._high
            if (found := measured.get(key)) is not None and (found[0] > rows / 2 or found[1] > age_s / 2)
        }
        return [
            key for key, (count, age) in measured.items() if key not in self._high and (count >= rows or age >= age_s)
        ][:TELL_MAX]

    def told(self, keys: list[EndpointKey]) -> None:
        """These were told of."""
        self._high.update(keys)


class BacklogWatch:
    """`run` is the task. Paused and disabled endpoints count too: what waits there grows unseen."""

    def __init__(
        self,
        database: Database,
        board: Board,
        bounds: BacklogBounds,
        interval_s: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._board = board
        self._interval_s = interval_s
        self._wall_clock = wall_clock
        self._backlogs = HighBacklogs(bounds)

    async def run(self) -> None:
        """Look for ever; what could not be told for want of a database is told the next time."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.look()
            except UnavailableError as error:
                log.info("high backlogs are told of later", extra={"error": str(error)})

    async def look(self) -> None:
        """One round. Raises UnavailableError."""
        now = self._wall_clock()
        found = [backlog_of(lane, now) for lane in self._board.lanes.values()]
        measured = {backlog.lane.key: (backlog.count, backlog.age_s) for backlog in found if backlog is not None}
        turned = self._backlogs.turned_high(measured)
        events = [
            OperationalEvent(
                key,
                OperationalType.BACKLOG_HIGH,
                {"backlog_count": measured[key][0], "oldest_age_s": round(measured[key][1], 3)},
            )
            for key in turned
        ]
        await operational.record(self._database, events)
        self._backlogs.told(turned)
