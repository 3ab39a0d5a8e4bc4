"""The feeder: what it does with payloads that come too late, or that there is no room for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import pytest

from dispatcher.delivery import feeder
from dispatcher.delivery.board import Board
from dispatcher.delivery.endpoint import EndpointRuntime
from dispatcher.delivery.feeder import Feeder, FeederLimits
from dispatcher.delivery.lane import LaneLimits, ModeSettings
from dispatcher.delivery.scheduler import SchedulerLimits
from dispatcher.errors import UnavailableError
from dispatcher.model import EndpointKey, OrderingMode, Payload
from dispatcher.store.backlog import EndpointPosition, PayloadKey
from tests.support.lanes import KEY, row, row_time
from tests.support.waiting import until


def board(bytes_max: int = 10_000) -> Board:
    made = Board(LaneLimits(64, bytes_max), SchedulerLimits(100, 100, 10, 2.0), 10_000)
    made.open(KEY.partition, 1, [EndpointPosition(KEY, 0, row_time(0), 0)])
    return made


def feeder_of(on: Board) -> Feeder:
    async def load(_keys: Sequence[EndpointKey]) -> list[EndpointRuntime]:
        return []

    return Feeder(cast("Any", None), on, load, FeederLimits(), clock=lambda: 1.0)


async def test_a_payload_that_comes_for_a_lane_that_has_gone_costs_no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    on = board()

    async def lose_the_lease(_db: object, wanted: Sequence[PayloadKey]) -> dict[PayloadKey, Payload]:
        on.close(KEY.partition)
        return {key: Payload(b"x" * 10, "text/plain", None) for key in wanted}

    monkeypatch.setattr(feeder, "backlog", type("Reads", (), {"fetch_payloads": staticmethod(lose_the_lease)}))
    on.offer([row(1, payload=False)])
    on.lanes[KEY].configure({1: ModeSettings(OrderingMode.ORDERED, 1)})
    on.unconfigured.clear()
    on.thirsty[KEY] = None
    await feeder_of(on).read()
    assert KEY not in on.lanes
    assert on.budget.used == 0


async def test_it_tells_since_when_it_can_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    on, now, answers = board(), [5.0], [UnavailableError("away"), UnavailableError("away"), None]
    seen = list[float | None]()

    async def load(_db: object, _keys: object) -> list[EndpointPosition]:
        seen.append(feeding.failing_since)
        now[0] += 1
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return []

    async def runtimes(_keys: Sequence[EndpointKey]) -> list[EndpointRuntime]:
        return []

    monkeypatch.setattr(feeder, "backlog", type("Reads", (), {"load_positions": staticmethod(load)}))
    limits = FeederLimits(retry_min_s=0.001, retry_max_s=0.002)
    feeding = Feeder(cast("Any", None), on, runtimes, limits, clock=lambda: now[0])
    on.relocate(KEY)
    running = asyncio.create_task(feeding.run())
    await until(lambda: is_empty(answers))
    await asyncio.sleep(0)
    running.cancel()
    assert (seen, feeding.failing_since) == ([None, 6.0, 6.0], None)


async def is_empty(answers: list[Any]) -> bool:
    return not answers


async def test_a_lane_whose_room_is_in_flight_is_not_asked_over_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    on = board(bytes_max=10)

    async def nothing(_db: object, wanted: Sequence[PayloadKey]) -> dict[PayloadKey, Payload]:
        assert not wanted
        return {}

    monkeypatch.setattr(feeder, "backlog", type("Reads", (), {"fetch_payloads": staticmethod(nothing)}))
    on.offer([row(1), row(2, payload=False)])
    on.lanes[KEY].configure({1: ModeSettings(OrderingMode.UNORDERED, 4)})
    on.unconfigured.clear()
    assert on.scheduler.take(1.0) is not None
    assert on.scheduler.take(1.0) is None
    assert KEY in on.thirsty
    await feeder_of(on).read()
    assert on.scheduler.take(1.0) is None
    assert not on.thirsty
    on.lanes[KEY].succeeded(1)
    on.scheduler.finished(on.lanes[KEY], failed=False, duration_s=0.1)
    assert on.scheduler.take(1.0) is None
    assert KEY in on.thirsty


async def test_an_endpoint_that_is_nowhere_to_be_found_is_kept_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    on = board()

    async def none(_db: object, _keys: object) -> list[EndpointPosition]:
        return []

    monkeypatch.setattr(feeder, "backlog", type("Reads", (), {"load_positions": staticmethod(none)}))
    for number in range(1, 4):
        on.hint(KEY._replace(endpoint_id=UUID(int=KEY.endpoint_id.int + 256 * number)), 5)
    await feeder_of(on).read()
    assert on._partitions[KEY.partition].keys == {KEY}
