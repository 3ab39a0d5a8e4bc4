"""A release: what is at rest is put on record, whatever hangs beside it, and the partition goes only then."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

from dispatcher.delivery.board import Board
from dispatcher.delivery.lane import LaneLimits
from dispatcher.delivery.ownership import Ownership
from dispatcher.delivery.scheduler import SchedulerLimits
from dispatcher.errors import UnavailableError
from dispatcher.store.backlog import EndpointPosition
from tests.support.deliveries import row_of

KEY = row_of().key
NOT_CUT_S = 60.0


class Parts:
    """Sending, flusher and checkpointer of one partition, which tell in what order they were asked; `hangs` names those
    that never end."""

    def __init__(self, drain_s: float, *hangs: str) -> None:
        self.told: list[str] = []
        self.is_away = False
        self._hangs = hangs
        limits = SchedulerLimits(10, 10, 10, 2.0)
        self.board = Board(LaneLimits(64, 10_000), limits, 1_000_000)
        self.board.open(KEY.partition, 1, [EndpointPosition(KEY, 0, datetime.now(UTC), 0)])
        never: Any = None
        parts: Any = self
        self.ownership = Ownership(
            never, self.board, parts, parts, never, parts, never, on_taken_over=never, drain_s=drain_s
        )

    async def quiesced(self, concerns: Any) -> None:
        assert concerns(KEY)
        assert not self.board.delivers_for(KEY), "nothing may start any more"
        await self._asked("quiesced")

    async def flushed(self) -> None:
        await self._asked("flushed")

    async def write(self, partitions: Iterable[int]) -> None:
        assert list(partitions) == [KEY.partition]
        assert self.board.epoch_of(KEY.partition) == 1, "it is written under the lease"
        if self.is_away:
            raise UnavailableError("the database is away")
        await self._asked("checkpoint")

    async def _asked(self, what: str) -> None:
        self.told.append(what)
        if what in self._hangs:
            await asyncio.Event().wait()


async def test_all_is_on_record_before_a_partition_goes():
    parts = Parts(NOT_CUT_S)
    await parts.ownership.on_release(KEY.partition)
    assert parts.told == ["quiesced", "flushed", "checkpoint"]
    assert parts.board.epochs == {}


async def test_an_attempt_that_hangs_keeps_nothing_else_off_record():
    parts = Parts(0.02, "quiesced")
    await parts.ownership.on_release(KEY.partition)
    assert parts.told == ["quiesced", "flushed", "checkpoint"]
    assert parts.board.epochs == {}


async def test_no_cursor_moves_over_what_could_not_be_flushed():
    parts = Parts(0.02, "flushed")
    await parts.ownership.on_release(KEY.partition)
    assert parts.told == ["quiesced", "flushed"]
    assert parts.board.epochs == {}


async def test_a_partition_goes_though_the_database_is_away():
    parts = Parts(NOT_CUT_S)
    parts.is_away = True
    await parts.ownership.on_release(KEY.partition)
    assert parts.board.epochs == {}


async def test_a_drain_lets_others_run_between_the_partitions(monkeypatch: pytest.MonkeyPatch):
    """All come to rest at once, and each has as much to go through as it has endpoints."""
    parts, rounds = Parts(NOT_CUT_S), itertools.count()
    turns: dict[str, list[int]] = {"quiesced": [], "write": [], "close": []}
    loop, now = asyncio.get_running_loop(), [0]

    def count() -> None:
        now[0] = next(rounds)
        loop.call_soon(count)

    def note(name: str) -> None:
        turns[name].append(now[0])

    async def write(_: Any) -> None:
        note("write")
        if len(turns["write"]) == 8:
            written.set()
        await written.wait()

    async def quiesced(_: Any) -> None:
        note("quiesced")

    written = asyncio.Event()
    monkeypatch.setattr(parts, "quiesced", quiesced)
    monkeypatch.setattr(parts, "write", write)
    monkeypatch.setattr(parts.board, "close", lambda _: note("close"))
    count()
    await asyncio.gather(*[parts.ownership.on_release(partition) for partition in range(8)])
    assert {name: len(set(seen)) for name, seen in turns.items()} == dict.fromkeys(turns, 8)
