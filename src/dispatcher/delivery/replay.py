"""Runs replays as the owner of their endpoints: step by step, at their rate, and never far ahead of what is delivered.

RUNNING ──read the next events──▶ append + progress, one transaction ──▶ hint to the lane ──▶ …
   └── the endpoint has much to deliver yet, or the rate is used up: later
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from dispatcher.bucket import TokenBucket
from dispatcher.delivery.board import Board
from dispatcher.errors import UnavailableError
from dispatcher.routing.patterns import matches
from dispatcher.store import replay_sources, replays
from dispatcher.store.appending import EndpointGoneError
from dispatcher.store.database import Database
from dispatcher.store.replays import Replay

log = logging.getLogger(__name__)

STEP_ROWS_MAX = 100
"""Deliveries appended in one transaction; publishers of the endpoint wait for it."""
STEPS_MAX = 10
"""Transactions of one replay before the next one has its turn."""
FIRST = UUID(int=0)
SELECT_NOW = "SELECT clock_timestamp()"


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """`look_back_s` exceeds the longest publish; `ahead_rows_max` bounds what of a replay may wait before live rows."""

    interval_s: float
    ahead_rows_max: int
    look_back_s: float


class ReplayRunner:
    """`run` is the task."""

    def __init__(
        self,
        database: Database,
        board: Board,
        options: ReplayOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._board = board
        self._options = options
        self._clock = clock
        self._buckets: dict[UUID, TokenBucket] = {}
        self._after = FIRST
        self._seen: set[UUID] = set()

    async def run(self) -> None:
        """Run for ever. While the database is away, everything waits."""
        while True:
            await asyncio.sleep(self._options.interval_s)
            try:
                await self.work()
            except UnavailableError as error:
                log.warning("replays wait for the database", extra={"error": str(error)})

    async def work(self) -> None:
        """One turn for the next of the running replays of the partitions delivered for. Raises UnavailableError."""
        found = await replays.running(self._database, list(self._board.epochs), self._after)
        self._go_round(found)
        if not found:
            return
        now: datetime = await self._database.fetchval(SELECT_NOW)
        settled_before = now - timedelta(seconds=self._options.look_back_s)
        for replay in found:
            try:
                await self._turn(replay, settled_before)
            except EndpointGoneError:
                await replays.fail(self._database, replay, "the endpoint has been deleted")

    def _go_round(self, found: Sequence[Replay]) -> None:
        """Where the next look begins. Once all have been seen, what those that have ended left behind goes."""
        self._seen.update(replay.replay_id for replay in found)
        if len(found) == replays.RUNNING_MAX:
            self._after = found[-1].replay_id
            return
        self._buckets = {replay_id: bucket for replay_id, bucket in self._buckets.items() if replay_id in self._seen}
        self._after, self._seen = FIRST, set()

    async def _turn(self, replay: Replay, settled_before: datetime) -> None:
        for _ in range(STEPS_MAX):
            moved = await self._step(replay, settled_before)
            if moved is None:
                return
            replay = moved

    async def _step(self, replay: Replay, settled_before: datetime) -> Replay | None:
        """The replay after one step; None where it has ended or has to wait."""
        epoch = self._board.epoch_of(replay.key.partition)
        limit = self._room(replay)
        if epoch is None or limit < 1:
            return None
        step = await replay_sources.next_step(
            self._database, replay, _matcher(replay), min(limit, STEP_ROWS_MAX), settled_before
        )
        if step is None:
            return None
        advanced = await replays.advance(self._database, epoch, replay, step)
        if advanced is None:
            return None
        bucket = self._buckets[replay.replay_id]
        for _ in range(advanced.appended):
            bucket.take(self._clock())
        if advanced.highest_seq:
            self._board.hint(replay.key, advanced.highest_seq)
        if step.is_end:
            log.info("a replay is complete", extra={"replay": replay.name, "endpoint": replay.endpoint_name})
            return None
        return replace(replay, position=dict(step.position))

    def _room(self, replay: Replay) -> int:
        """How many deliveries may be appended now, by the replay's rate and by what its endpoint still has to do."""
        now = self._clock()
        bucket = self._buckets.get(replay.replay_id)
        if bucket is None:
            bucket = TokenBucket(replay.rate_per_s, max(1.0, replay.rate_per_s * self._options.interval_s * 2), now)
            self._buckets[replay.replay_id] = bucket
        lane = self._board.lanes.get(replay.key)
        ahead = 0 if lane is None else lane.unsettled
        return min(bucket.available(now), self._options.ahead_rows_max - ahead)


def _matcher(replay: Replay) -> Callable[[str], bool]:
    patterns = tuple(replay.arguments.get("event_types") or ())
    if not patterns:
        return lambda _type: True
    return lambda event_type: any(matches(pattern, event_type) for pattern in patterns)
