"""Several keepers on one database: they share, hand over, take over, and start afresh when they must."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import asyncpg
import pytest

from dispatcher.delivery.leases import LeaseKeeper, LeaseSettings
from dispatcher.model import PARTITION_COUNT, Instance
from dispatcher.store import instances, leases
from dispatcher.store.database import Database, DatabaseOptions
from tests.support.waiting import until

SETTINGS = LeaseSettings(lease_ttl_s=1.5, lease_send_margin_s=0.3, poll_s=0.1, release_timeout_s=1.0)


class Engine:
    """What a keeper told, in order; `drained` holds back releases while it is not set."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.drained = asyncio.Event()
        self.drained.set()

    def on_acquired(self, partition: int, epoch: int) -> None:
        self.told.append(("acquired", partition))

    async def on_release(self, partition: int) -> None:
        self.told.append(("release", partition))
        await self.drained.wait()

    def on_lost(self, partition: int) -> None:
        self.told.append(("lost", partition))

    def on_reset(self) -> None:
        self.told.append(("reset", -1))

    def count(self, word: str) -> int:
        return sum(told == word for told, _ in self.told)


class Process:
    """One keeper and its task."""

    def __init__(self, db: Database, clock: Callable[[], float] = time.monotonic) -> None:
        now = datetime.now(UTC)
        self.instance = Instance(uuid.uuid4(), "host", "0.1.0", now, now, False, 0, 0, 0)
        self.engine = Engine()
        self.changes: Counter[str] = Counter()
        self.keeper = LeaseKeeper(db, SETTINGS, self.engine, lambda: self.instance, clock, count=self.count)
        self.task = asyncio.create_task(self.keeper.run())

    def count(self, change: str, count: int) -> None:
        self.changes[change] += count

    @property
    def held(self) -> set[int]:
        return {p for p in range(PARTITION_COUNT) if self.keeper.held(p) is not None}

    async def crash(self) -> None:
        """Gone without giving anything back."""
        self.task.cancel()
        await asyncio.wait([self.task])


class Fleet(list[Process]):
    def __init__(self, db: Database) -> None:
        super().__init__()
        self.db = db

    def join(self) -> Process:
        self.append(Process(self.db))
        return self[-1]

    async def is_balanced(self) -> bool:
        running = [process for process in self if not process.task.done()]
        held = [partition for process in running for partition in process.held]
        counts = [len(process.held) for process in running]
        return sorted(held) == list(range(PARTITION_COUNT)) and max(counts) - min(counts) <= 1


@pytest.fixture
async def fleet(db: Database) -> AsyncIterator[Fleet]:
    processes = Fleet(db)
    yield processes
    for process in processes:
        await process.crash()


async def test_three_join_and_share_then_one_leaves_and_gives_back_in_order(fleet: Fleet, db: Database) -> None:
    first = fleet.join()
    await until(fleet.is_balanced)
    assert len(first.held) == PARTITION_COUNT
    fleet.join()
    last = fleet.join()
    await until(fleet.is_balanced)
    handed_over = first.engine.count("release")
    assert handed_over == PARTITION_COUNT - len(first.held)
    last.keeper.stop()
    await asyncio.wait_for(last.task, 5.0)
    assert last.engine.count("release") == last.engine.count("acquired")
    assert last.changes == {"acquired": last.engine.count("acquired"), "released": last.engine.count("release")}
    assert last.instance.instance_id not in {i.instance_id for i in await instances.read_all(db)}
    await until(fleet.is_balanced)
    assert all(process.engine.count("lost") == 0 for process in fleet)


async def test_a_drained_instance_hands_everything_over_lives_on_and_takes_nothing_back(
    fleet: Fleet, db: Database
) -> None:
    drained, crashed, last = [fleet.join() for _ in range(3)]
    await until(fleet.is_balanced)
    drained.keeper.drain()
    await asyncio.wait_for(drained.keeper.handed_over(), 5.0)
    assert drained.held == set()
    await until(lambda: _hold_all(crashed, last))
    before = len(drained.engine.told)
    await crashed.crash()
    await until(lambda: _hold_all(last), SETTINGS.lease_ttl_s + 1.0)
    assert len(drained.engine.told) == before
    assert not drained.task.done()
    assert [i.draining for i in await instances.live(db, SETTINGS.lease_ttl_s)].count(True) == 1


async def test_a_balanced_fleet_stays_as_it_is(fleet: Fleet) -> None:
    for _ in range(3):
        fleet.join()
    await until(fleet.is_balanced)
    before = [list(process.engine.told) for process in fleet]
    await asyncio.sleep(SETTINGS.lease_ttl_s)  # three renewals and many looks
    assert [process.engine.told for process in fleet] == before


async def test_a_crashed_instance_is_replaced_within_its_time_to_live_and_a_second(fleet: Fleet) -> None:
    crashed, _, _ = [fleet.join() for _ in range(3)]
    await until(fleet.is_balanced)
    epochs = crashed.keeper.epochs
    await crashed.crash()
    started = time.monotonic()
    await until(fleet.is_balanced, SETTINGS.lease_ttl_s + 1.0)
    assert time.monotonic() - started <= SETTINGS.lease_ttl_s + 1.0
    successors = {p: process.keeper.held(p) for process in fleet[1:] for p in process.held if p in epochs}
    assert successors.keys() == epochs.keys()
    assert all(successors[partition] > epoch for partition, epoch in epochs.items())


async def test_a_partition_drains_before_it_is_given_back_and_sends_nothing_meanwhile(
    fleet: Fleet, db: Database
) -> None:
    first = fleet.join()
    await until(fleet.is_balanced)
    first.engine.drained.clear()
    second = fleet.join()

    async def has_begun() -> bool:
        return first.engine.count("release") == PARTITION_COUNT // 2

    await until(has_begun)
    leaving = {partition for word, partition in first.engine.told if word == "release"}
    assert not any(first.keeper.may_send(partition, time.monotonic()) for partition in leaving)
    owners = await leases.read_owners(db)
    assert all(owners[partition][0] == first.instance.instance_id for partition in leaving)
    assert all(first.keeper.held(p) is None for p in leaving)
    on_record = {lease.partition: lease.epoch for lease in await leases.read_all(db)}
    assert all(first.keeper.epoch(p) == on_record[p] for p in leaving), "what is decided meanwhile is ours to write"
    assert second.held == set()
    first.engine.drained.set()
    await until(fleet.is_balanced)
    assert second.held == leaving


async def test_a_partition_that_does_not_drain_is_given_up_in_time(fleet: Fleet) -> None:
    first = fleet.join()
    await until(fleet.is_balanced)
    first.engine.drained.clear()
    fleet.join()
    await until(fleet.is_balanced, SETTINGS.release_timeout_s + 2.0)
    assert first.engine.count("lost") == PARTITION_COUNT // 2


async def test_a_stolen_lease_is_told_as_lost(fleet: Fleet, connection: asyncpg.Connection) -> None:
    process = fleet.join()
    await until(fleet.is_balanced)
    thief = uuid.uuid4()
    await connection.execute("UPDATE lease SET epoch = epoch + 1, owner = $1 WHERE partition = 5", thief)

    async def is_lost() -> bool:
        return ("lost", 5) in process.engine.told

    await until(is_lost)
    assert process.engine.count("lost") == 1
    assert not process.keeper.may_send(5, time.monotonic())


async def test_a_renewal_count_below_ones_own_starts_everything_afresh(
    fleet: Fleet, connection: asyncpg.Connection
) -> None:
    process = fleet.join()
    await until(fleet.is_balanced)
    epoch = process.keeper.held(5)
    await connection.execute("UPDATE lease SET renewals = 0 WHERE partition = 5")

    async def has_started_afresh() -> bool:
        return process.engine.count("reset") == 1 and len(process.held) == PARTITION_COUNT

    await until(has_started_afresh)
    assert process.keeper.held(5) > epoch
    after_reset = process.engine.told[process.engine.told.index(("reset", -1)) + 1 :]
    assert {word for word, _ in after_reset} == {"acquired"}


async def test_a_new_timeline_starts_everything_afresh(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    process = fleet.join()
    await until(fleet.is_balanced)

    async def promoted(_db: Database) -> int:
        return 2

    monkeypatch.setattr(leases, "timeline", promoted)

    async def has_started_afresh() -> bool:
        return process.engine.count("reset") == 1 and len(process.held) == PARTITION_COUNT

    await until(has_started_afresh)
    assert process.engine.count("reset") == 1


async def test_once_another_timeline_is_seen_nothing_starts_and_everything_starts_afresh_at_once(
    fleet: Fleet, db: Database
) -> None:
    process = fleet.join()
    await until(fleet.is_balanced)
    assert process.keeper.may_send(5, time.monotonic())
    epoch = process.keeper.held(5)
    db.timeline += 1  # as if the leases were of a former primary
    assert not db.is_on(db.timeline - 1)
    assert not process.keeper.may_send(5, time.monotonic())
    assert process.keeper.sendable_until() == 0.0

    async def has_started_afresh() -> bool:
        return process.engine.count("reset") == 1 and len(process.held) == PARTITION_COUNT

    await until(has_started_afresh)
    assert process.keeper.held(5) > epoch
    assert process.keeper.may_send(5, time.monotonic())


@pytest.mark.parametrize("steps", range(5))
async def test_a_cancellation_in_the_instant_of_a_wake_ends_the_keeper(fleet: Fleet, steps: int) -> None:
    """`asyncio.wait_for` loses it before Python 3.12: the keeper went on, and its process never ended."""
    process = fleet.join()
    await until(fleet.is_balanced)
    for _ in range(20):
        process.keeper._wake.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        process.task.cancel()
        done, _ = await asyncio.wait([process.task], timeout=5.0)
        assert done, "it goes on"
        process.task = asyncio.create_task(process.keeper.run())
        await asyncio.sleep(0.02)


class Clock:
    """Monotonic seconds under the test's control, on top of the real ones."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


async def test_a_lease_allows_sending_until_its_margin_and_again_after_a_renewal(fleet: Fleet, db: Database) -> None:
    clock = Clock()
    fleet.append(Process(db, clock))
    process = fleet[0]
    await until(fleet.is_balanced)
    assert process.keeper.may_send(5, clock())
    last_sent = clock()
    # By then the lease that was renewed at the latest just now has less than its margin left.
    assert not process.keeper.may_send(5, last_sent + SETTINGS.lease_ttl_s - SETTINGS.lease_send_margin_s)
    clock.ahead_s = 60.0  # the process was frozen for a minute
    assert not process.keeper.may_send(5, clock())

    async def may_send_again() -> bool:
        return process.keeper.may_send(5, clock())

    await until(may_send_again)
    assert process.engine.count("lost") == 0


async def test_an_error_in_draining_stops_the_keeper(fleet: Fleet) -> None:
    first = fleet.join()
    await until(fleet.is_balanced)

    async def fail(partition: int) -> None:
        raise RuntimeError(f"partition {partition}")

    first.engine.on_release = fail  # type: ignore[method-assign] - the test's own engine
    fleet.join()
    await asyncio.wait([first.task], timeout=5.0)
    assert isinstance(first.task.exception(), ExceptionGroup)


@asynccontextmanager
async def nowhere() -> AsyncIterator[Database]:
    """A database that does not answer."""
    async with Database.open(DatabaseOptions("postgres://nobody@127.0.0.1:1/none", connect_timeout_s=0.2)) as db:
        yield db


async def test_without_a_database_nothing_is_held_and_the_loop_goes_on() -> None:
    async with nowhere() as db:
        process = Process(db)

        async def has_tried() -> bool:
            return db.availability.away_since is not None

        await until(has_tried)
        assert process.held == set()
        assert not process.task.done()
        await process.crash()


async def _hold_all(*processes: Process) -> bool:
    return sum(len(process.held) for process in processes) == PARTITION_COUNT
