"""Reads for the lanes: positions, configuration, rows and payloads, each for many endpoints in one statement."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from dispatcher.delivery.backoff import Backoff
from dispatcher.delivery.board import Board, OrderedKeys
from dispatcher.delivery.endpoint import EndpointRuntime
from dispatcher.delivery.lane import Lane, LoadResult
from dispatcher.errors import UnavailableError
from dispatcher.model import EndpointKey, OutboxRow, Payload
from dispatcher.store import backlog
from dispatcher.store.backlog import PayloadKey, RowsWanted
from dispatcher.store.database import Database

log = logging.getLogger(__name__)

LoadRuntimes = Callable[[Sequence[EndpointKey]], Awaitable[list[EndpointRuntime]]]


@dataclass(frozen=True, slots=True)
class FeederLimits:
    """`endpoints_max` per statement; a lane that has delivered nothing yet reads at most `first_rows_max`."""

    endpoints_max: int = 200
    first_rows_max: int = 32
    payloads_max: int = 1000
    retry_min_s: float = 0.05
    retry_max_s: float = 1.0


class Feeder:
    """`run` is the task; it waits for `Board.work`."""

    def __init__(
        self,
        database: Database,
        board: Board,
        load_runtimes: LoadRuntimes,
        limits: FeederLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._database = database
        self._board = board
        self._load_runtimes = load_runtimes
        self._limits = limits
        self._backoff = Backoff(limits.retry_min_s, limits.retry_max_s)
        self.failing_since: float | None = None
        """Since when (monotonic) every round of reading has failed; None while none fails, or nothing is wanted."""

    async def run(self) -> None:
        """Read for ever. While the database is away, what is wanted waits."""
        while True:
            await self._board.work.wait()
            self._board.work.clear()
            try:
                await self.read()
            except UnavailableError as error:
                if self.failing_since is None:
                    self.failing_since = self._clock()
                log.warning("reading for delivery waits for the database", extra={"error": str(error)})
                self._board.work.set()
                await asyncio.sleep(self._backoff.next_s())
            else:
                self.failing_since = None
                self._backoff.reset()

    async def read(self) -> None:
        """One round over all that is wanted. What is taken from a set goes back if its read fails."""
        board = self._board
        await self._round(board.unlocated, self._locate)
        await self._round(board.unconfigured, self._configure)
        await self._round(board.hungry, self._read_rows)
        await self._round(board.thirsty, self._read_payloads)
        if board.unlocated or board.unconfigured or board.hungry or board.thirsty:
            board.work.set()

    async def _round(self, wanted: OrderedKeys, read: Callable[[list[EndpointKey]], Awaitable[None]]) -> None:
        keys = [key for key, _ in zip(wanted, range(self._limits.endpoints_max), strict=False)]
        for key in keys:
            del wanted[key]
        if not keys:
            return
        try:
            await read(keys)
        except BaseException:
            wanted.update(dict.fromkeys(key for key in keys if self._board.delivers_for(key)))
            raise

    async def _locate(self, keys: list[EndpointKey]) -> None:
        for position in await backlog.load_positions(self._database, keys):
            self._board.locate(position)
        self._board.give_up(keys)

    async def _configure(self, keys: list[EndpointKey]) -> None:
        for runtime in await self._load_runtimes(keys):
            self._board.configure(runtime)

    async def _read_rows(self, keys: list[EndpointKey]) -> None:
        lanes = {key: lane for key in keys if (lane := self._board.lanes.get(key)) is not None}
        wants = {key: want for key, lane in lanes.items() if (want := self._want(lane)) is not None}
        rows: dict[EndpointKey, list[OutboxRow]] = {key: [] for key in wants}
        for row in await backlog.fetch_rows(self._database, list(wants.values())):
            rows[row.key].append(row)
        for key, want in wants.items():
            lane = lanes[key]
            if self._board.is_current(lane) and lane.tail == want.after_seq:
                self._loaded(lane, rows[key], reached_end=len(rows[key]) < want.limit)
            elif self._board.is_current(lane):
                self._board.feed(lane)  # it was handed rows meanwhile; what lies behind them is still wanted

    def _loaded(self, lane: Lane, rows: Sequence[OutboxRow], *, reached_end: bool) -> None:
        result = lane.loaded(rows, reached_end=reached_end)
        if result is LoadResult.GAP:
            self._board.misplace(lane)
        if result is not LoadResult.CONTIGUOUS:
            log.error(
                "an outbox is not as promised",
                extra={"endpoint": str(lane.key.endpoint_id), "found": result.value, "tail": lane.tail},
            )
        self._board.settled(lane)

    def _want(self, lane: Lane) -> RowsWanted | None:
        limit = lane.wanted()
        if not limit:
            return None
        if not self._board.has_progressed(lane):
            limit = min(limit, self._limits.first_rows_max)
        return RowsWanted(lane.key, lane.tail, lane.tail_time, limit, fresh=self._board.is_fresh(lane))

    def _attach(self, payload: Payload | None, wanting: Sequence[tuple[Lane, OutboxRow]]) -> None:
        for lane, row in wanting:
            if not self._board.is_current(lane):
                continue  # its account is closed: what it took now would never be given back to the budget
            if payload is not None:
                lane.attach(row, payload)
            else:
                self._board.set_aside(lane)

    async def _read_payloads(self, keys: list[EndpointKey]) -> None:
        """Payloads for the rows that may start first; one event is read once however many lanes want it."""
        wanted: dict[PayloadKey, list[tuple[Lane, OutboxRow]]] = {}
        lanes = [lane for key in keys if (lane := self._board.lanes.get(key)) is not None]
        for lane in lanes:
            if len(wanted) >= self._limits.payloads_max:
                self._board.thirsty[lane.key] = None
                continue
            for row in lane.wants_payloads(self._clock()):
                wanted.setdefault((row.key.tenant_id, row.event_id, row.event_time), []).append((lane, row))
        payloads = await backlog.fetch_payloads(self._database, list(wanted))
        if gone := [event_id for _, event_id, _ in wanted.keys() - payloads.keys()]:
            log.error("payloads of pending deliveries are gone", extra={"event_ids": gone})
        for payload_key, wanting in wanted.items():
            self._attach(payloads.get(payload_key), wanting)
        # A lane that had no room for any is asked again when an attempt of its own ends; to wake it here would spin.
        for lane in dict.fromkeys(lane for wanting in wanted.values() for lane, _ in wanting):
            if self._board.is_current(lane):
                self._board.wake(lane)
