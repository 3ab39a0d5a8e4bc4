"""What leaves a lane's straight line and comes back: parked deliveries, halts, and their records.

lane is tight ──to_park──▶ fenced record ──parked──▶ the window moves on
lane needs_held ──▶ parked and halts are read ──hold──▶ it may start
key's parked rows run low ──▶ the next are read ──cold_read──▶ they take their places
done, or failed again ──▶ records deleted, due times written, some seconds later
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from dispatcher.delivery.backoff import Backoff
from dispatcher.delivery.board import Board, OrderedKeys
from dispatcher.delivery.held import HeldHalt, HeldRow
from dispatcher.delivery.lane import Lane
from dispatcher.errors import UnavailableError
from dispatcher.model import EndpointKey, OutboxRow
from dispatcher.store import halts, parked
from dispatcher.store.database import Database
from dispatcher.store.fence import probing
from dispatcher.store.parked import ParkRequest, StoredParked

log = logging.getLogger(__name__)

LANES_MAX = 200
"""Lanes served in one round of each kind."""
PARK_ROWS_MAX = 5000
"""Rows parked in one transaction; a lane's are never divided."""
TIDY_ROWS_MAX = 5000


@dataclass(frozen=True, slots=True)
class AsideOptions:
    """`tidy_interval_s`: how long records of finished deliveries may stay. `cold_rows_max`: read at once of a key."""

    tidy_interval_s: float
    cold_rows_max: int = 64
    retry_min_s: float = 0.05
    retry_max_s: float = 1.0


class Aside:
    """`run` and `run_tidy` are the tasks; they wait for `Board.aside_work`."""

    def __init__(
        self,
        database: Database,
        board: Board,
        options: AsideOptions,
        *,
        on_parked: Callable[[Lane, Sequence[OutboxRow]], None] = lambda _lane, _rows: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_parked` is told of the rows that are on record as parked, before their lane is."""
        self._database = database
        self._board = board
        self._options = options
        self._on_parked = on_parked
        self._clock = clock
        self._backoff = Backoff(options.retry_min_s, options.retry_max_s)

    async def run(self) -> None:
        """Read and park for ever. While the database is away, what is wanted waits."""
        while True:
            await self._board.aside_work.wait()
            self._board.aside_work.clear()
            try:
                await self.work()
            except UnavailableError as error:
                log.warning("parking waits for the database", extra={"error": str(error)})
                self._board.aside_work.set()
                await asyncio.sleep(self._backoff.next_s())
            else:
                self._backoff.reset()

    async def run_tidy(self) -> None:
        """Keep the records of what is aside in step, every so often."""
        while True:
            await asyncio.sleep(self._options.tidy_interval_s)
            try:
                await self.tidy()
            except UnavailableError as error:
                log.warning("records of parked deliveries wait for the database", extra={"error": str(error)})

    async def work(self) -> None:
        """One round over all that is wanted; what fails stays wanted."""
        board = self._board
        await self._each(board.unheld, self._hold)
        await self._each(board.cold, self._read_cold)
        await self._park(board.take_lanes(board.tight, LANES_MAX))
        if board.unheld or board.cold or board.tight:
            board.aside_work.set()

    async def _each(self, wanted: OrderedKeys, work: Callable[[Lane], Awaitable[None]]) -> None:
        """Do it for each lane that is wanted; where it fails for one, that one and those behind it stay wanted."""
        lanes = self._board.take_lanes(wanted, LANES_MAX)
        for number, lane in enumerate(lanes):
            try:
                await work(lane)
            except BaseException:
                wanted.update(dict.fromkeys(waiting.key for waiting in lanes[number:]))
                raise

    async def _hold(self, lane: Lane) -> None:
        """Tell a fresh lane what is on record aside; one transaction, so that both are of a piece."""
        async with probing(self._database) as connection:
            halted = await halts.load(connection, lane.key)
            held = await parked.load(connection, lane.key)
        if not self._board.is_current(lane) or not lane.needs_held:
            return
        lane.hold(self._held_rows(held), [HeldHalt(halt.row, halt.mode) for halt in halted])
        self._board.settled(lane)

    async def _read_cold(self, lane: Lane) -> None:
        wanted = lane.cold_wanted()
        for number, (key, after_seq) in enumerate(wanted):
            try:
                # What lies in the window anyhow is passed over: a page of nothing else would be read for ever.
                limit = self._options.cold_rows_max + lane.doubtful_count
                held, more = await parked.load_cold(self._database, lane.key, key, after_seq, limit)
            except BaseException:
                for unread, _ in wanted[number:]:
                    lane.cold_unread(unread)
                raise
            if self._board.is_current(lane):
                lane.cold_read(key, self._held_rows(held), more=more)
                self._board.settled(lane)

    def _held_rows(self, stored: Sequence[StoredParked]) -> list[HeldRow]:
        now = self._clock()
        return [HeldRow(item.row, item.mode, now + item.delay_s, item.more) for item in stored]

    async def _park(self, lanes: Sequence[Lane]) -> None:
        """Park what can't start in tight windows, many lanes in one transaction."""
        chosen: list[tuple[Lane, list[HeldRow]]] = []
        count = 0
        for lane in lanes:
            if count >= PARK_ROWS_MAX:
                self._board.tight[lane.key] = None
                continue
            rows = lane.to_park()
            if rows:
                chosen.append((lane, rows))
                count += len(rows)
        if chosen:
            await self._record(chosen)

    async def _record(self, chosen: Sequence[tuple[Lane, list[HeldRow]]]) -> None:
        now = self._clock()
        requests = [ParkRequest(held.row, held.mode, max(0.0, held.due - now)) for _, rows in chosen for held in rows]
        epochs = {lane.key.partition: lane.epoch for lane, _ in chosen}
        try:
            held = await parked.park(self._database, epochs, requests)
        except BaseException:
            for lane, _ in chosen:
                lane.maybe_parked()
                self._board.tight[lane.key] = None
            raise
        for lane, rows in chosen:
            if lane.key.partition not in held or not self._board.is_current(lane):
                lane.not_parked()
                continue
            self._on_parked(lane, [held.row for held in rows])
            lane.parked([held.row.seq for held in rows])
            self._board.settled(lane)

    async def tidy(self) -> None:
        """Delete the records of what is done, and note when the others are due. Raises UnavailableError; loses none."""
        for lane in [lane for lane in self._board.lanes.values() if lane.has_records_to_tidy]:
            await self._tidy(lane)

    async def _tidy(self, lane: Lane) -> None:
        finished, rescheduled, now = lane.take_finished(), lane.take_rescheduled(), self._clock()
        seqs: list[tuple[EndpointKey, int]] = [(lane.key, seq) for seq in finished]
        delays = [(lane.key, seq, max(0.0, due - now)) for seq, due in rescheduled.items()]
        try:
            await parked.tidy(self._database, seqs, delays)
        except BaseException:
            lane.not_deleted()
            raise
        lane.deleted()
        if self._board.is_current(lane):
            self._board.settled(lane)
