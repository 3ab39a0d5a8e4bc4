"""The board: which lanes there are, what they are told, and what is noted to be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

from dispatcher.delivery.board import Board
from dispatcher.delivery.endpoint import EndpointRuntime
from dispatcher.delivery.lane import LaneLimits, ModeSettings
from dispatcher.delivery.policies import FailureDefaults, policies_of
from dispatcher.delivery.scheduler import SchedulerLimits
from dispatcher.model import (
    Cursor,
    EndpointKey,
    EndpointSettings,
    EndpointState,
    OrderingMode,
    OutboxRow,
    TracePropagation,
)
from dispatcher.store.backlog import EndpointPosition
from tests.support.backlog import attempt_at
from tests.support.lanes import KEY, row, row_time

PARTITION = KEY.partition


def board() -> Board:
    """A board that owns KEY's partition, where KEY has nothing to do."""
    made = Board(LaneLimits(64, 10_000), SchedulerLimits(100, 100, 10, 2.0), 1_000_000)
    made.open(PARTITION, 1, [position(0, 0)])
    return made


def position(cursor_seq: int, highest_seq: int) -> EndpointPosition:
    return EndpointPosition(KEY, cursor_seq, row_time(cursor_seq), highest_seq)


def runtime(state: EndpointState = EndpointState.ACTIVE, revision: int = 1) -> EndpointRuntime:
    settings = EndpointSettings("http://a.example/", 5.0, {}, 1, OrderingMode.ORDERED, TracePropagation.NONE)
    return EndpointRuntime(
        KEY,
        "acme",
        "a",
        state,
        False,
        revision,
        settings,
        {revision: settings},
        None,
        "",
        {},
        (),
        policies_of(FailureDefaults(), settings),
    )


OTHER = KEY._replace(endpoint_id=UUID(int=3))


class Unsearched(dict[EndpointKey, Any]):
    """May be asked for an endpoint, never looked through: it holds those of all partitions."""

    def __iter__(self) -> Iterator[EndpointKey]:
        raise AssertionError("a release looks through what belongs to others")


NOTED = (
    *("unlocated", "unconfigured", "hungry", "thirsty", "dirty", "unheld", "cold", "tight", "_aside", "_misplaced"),
    "runtimes",
)


def noted_everywhere(on: Board, *keys: EndpointKey) -> None:
    for name in NOTED:
        getattr(on, name).update(dict.fromkeys(keys))
    on.admissions._standings.update(dict.fromkeys(keys))


def start(on: Board, now: float = 1.0) -> OutboxRow | None:
    taken = on.scheduler.take(now)
    return None if taken is None else taken[1]


def board_that_reads() -> Board:
    """With a row whose endpoint's configuration the feeder is about to bring."""
    on = board()
    on.offer([row(1)])
    on.unconfigured.clear()
    return on


def test_an_acknowledgement_counts_only_for_its_event() -> None:
    """After a failover that lost commits, number 1 may belong to another event than the one that was answered."""
    on = board()
    on.offer([row(1)])
    on.configure(runtime())
    on.flushed([replace(attempt_at(row(1)), event_id="an event that the failover lost")])
    assert start(on) is not None
    on.lanes[KEY].succeeded(1)
    on.flushed([attempt_at(row(1))])
    assert KEY not in on.lanes
    assert on.watermark(KEY) == Cursor(KEY, 1, row_time(1))


def test_a_lane_dies_with_its_epoch() -> None:
    """What it knew, and what is still in flight for it, counts for nothing under the next one: that reads anew."""
    on = board()
    on.offer([row(1), row(2)])
    on.configure(runtime())
    assert start(on) is not None
    former = on.lanes[KEY]
    on.close(PARTITION)
    assert on.lanes == {}
    on.open(PARTITION, 2, [position(0, 2)])
    former.succeeded(1)
    on.configure(runtime())
    assert on.lanes[KEY] is not former
    on.offer([row(3)])
    assert start(on) is None, "only rows 1 and 2, read from the database, may come first"


def test_the_configuration_of_a_partition_that_was_given_up_is_read_anew() -> None:
    """Nobody watches it meanwhile: it may have been paused, or moved."""
    on = board()
    on.offer([row(1)])
    on.configure(runtime())
    on.close(PARTITION)
    on.open(PARTITION, 2, [position(0, 1)])
    assert KEY in on.unconfigured
    on.offer([row(1)])
    assert start(on) is None


def test_a_change_that_comes_while_the_configuration_is_read_is_not_lost() -> None:
    on = board_that_reads()
    on.forget_runtime(KEY)
    on.configure(runtime())
    assert KEY in on.unconfigured


def test_a_configuration_read_before_the_change_starts_nothing() -> None:
    on = board_that_reads()
    on.hold_until_read(KEY)
    on.configure(runtime())
    assert start(on) is None
    on.unconfigured.clear()  # and once more
    on.configure(runtime())
    assert start(on) is not None


def test_a_configuration_that_comes_during_a_release_starts_nothing() -> None:
    on = board_that_reads()
    on.stop_starting(PARTITION)
    on.configure(runtime())
    assert start(on) is None


def test_a_changed_tenant_has_all_its_endpoints_read_anew_and_nobody_elses() -> None:
    on = board()
    on.offer([row(1)])
    on.configure(runtime())
    on.unconfigured.clear()
    on.forget_tenants({UUID(int=99)})
    assert not on.unconfigured
    on.forget_tenants({KEY.tenant_id})
    assert KEY in on.unconfigured


def test_a_changed_tenants_configuration_is_not_kept_for_an_endpoint_at_rest() -> None:
    on = board()
    on.offer([row(1, settled=True)])
    on.unconfigured.clear()  # the feeder reads
    on.configure(runtime())
    on.settled(on.lanes[KEY])
    assert KEY in on.runtimes
    on.forget_tenants({KEY.tenant_id})
    assert KEY not in on.runtimes


def test_a_configuration_read_for_a_lane_that_has_gone_is_not_kept() -> None:
    """Its endpoint may have changed, and was not noted: there was neither lane nor configuration."""
    on = board()
    on.offer([row(1, settled=True)])
    on.settled(on.lanes[KEY])
    on.forget_runtime(KEY)
    on.configure(runtime())
    on.offer([row(2)])
    assert KEY in on.unconfigured
    assert start(on) is None


def test_a_change_noted_for_a_lane_that_goes_before_it_is_read_is_not_lost() -> None:
    on = board()
    on.offer([row(1, settled=True)])
    on.configure(runtime())
    on.forget_runtime(KEY)
    on.settled(on.lanes[KEY])
    on.offer([row(2)])
    assert start(on) is None
    on.unconfigured.clear()  # the feeder reads
    on.configure(runtime(EndpointState.PAUSED))
    assert start(on) is None


def test_a_row_that_is_handed_off_while_its_endpoint_is_located_is_not_forgotten() -> None:
    on = board()
    on.close(PARTITION)
    on.open(PARTITION, 2, [])
    on.offer([row(5)])
    on.unlocated.clear()  # the feeder reads
    on.offer([row(6)])
    on.locate(position(4, 5))
    assert KEY in on.unlocated
    on.locate(position(4, 6))
    assert on.lanes[KEY].highest_known == 6


def test_a_position_never_takes_an_idle_endpoint_back() -> None:
    on = board()
    on.offer([row(1, settled=True)])
    on.settled(on.lanes[KEY])
    on.locate(position(0, 1))
    assert KEY not in on.lanes
    assert on.watermark(KEY) == Cursor(KEY, 1, row_time(1))


def test_a_revision_that_could_not_be_read_is_asked_for_again_and_not_in_a_loop() -> None:
    on = board()
    on.offer([row(1, revision=2)])
    on.unconfigured.clear()
    on.configure(runtime(revision=1))
    assert not on.unconfigured
    on.retry_unconfigured()
    assert KEY in on.unconfigured
    on.configure(replace(runtime(revision=2)))
    assert start(on) is not None


def test_a_misplaced_lane_is_located_anew_once_what_it_sent_is_on_record() -> None:
    on = board()
    on.offer([row(1)])
    lane = on.lanes[KEY]
    lane.configure({1: ModeSettings(OrderingMode.ORDERED, 1)})
    on.unconfigured.clear()
    assert lane.start(0.0) is not None
    on.misplace(lane)
    on.retry_aside()
    assert on.is_current(lane)
    lane.succeeded(1)
    on.retry_aside()
    assert on.is_current(lane)
    lane.flushed(1)
    on.retry_aside()
    assert not on.is_current(lane)
    assert KEY in on.unlocated


def test_a_lane_set_aside_is_read_for_again_only_later() -> None:
    on = board()
    on.hint(KEY, 3)
    on.hungry.clear()
    on.set_aside(on.lanes[KEY])
    on.feed(on.lanes[KEY])
    assert not on.hungry
    on.retry_aside()
    assert KEY in on.hungry


def test_a_partition_that_rests_or_goes_takes_its_own_lanes_along_and_no_others() -> None:
    on = board()
    other = KEY._replace(endpoint_id=UUID(int=3))
    on.open(other.partition, 1, [EndpointPosition(other, 0, row_time(0), 0)])
    for key in (KEY, other):
        on.hint(key, 3)
    kept = on.lanes[other]
    on.relocate(KEY)
    on.locate(EndpointPosition(KEY, 0, row_time(0), 3))
    gone = on.lanes[KEY]
    on.stop_starting(PARTITION)
    assert (gone.paused, kept.paused) == (True, False)
    on.close(PARTITION)
    assert (gone.is_closed, kept.is_closed, on.lanes) == (True, False, {other: kept})


def test_watermarks_of_other_partitions_stay_to_be_written() -> None:
    on = board()
    other = KEY._replace(endpoint_id=UUID(int=3))
    on.open(other.partition, 1, [EndpointPosition(other, 0, row_time(0), 0)])
    for key in (KEY, other):
        on.offer([replace(row(1, settled=True), key=key)])
        on.settled(on.lanes[key])
    assert [cursor.key for cursor in on.take_dirty([PARTITION])] == [KEY]
    assert [cursor.key for cursor in on.take_dirty()] == [other]


def test_nothing_is_kept_of_the_endpoints_of_a_partition_that_goes() -> None:
    """Whatever became of each: a lane, at rest, deleted, looked for. What others' partitions are owed stays."""
    on = board()
    with_lane, retired, sought = (KEY._replace(endpoint_id=UUID(int=2 + 256 * n)) for n in (1, 2, 3))
    on.open(OTHER.partition, 1, [])
    on.locate(EndpointPosition(with_lane, 0, row_time(0), 3))
    on.retire(retired)
    on.hint(sought, 3)
    on.hint(OTHER, 3)
    noted_everywhere(on, KEY, with_lane, retired, sought, OTHER)
    on.close(PARTITION)
    assert {name: list(getattr(on, name)) for name in NOTED} == {name: [OTHER] for name in NOTED}
    assert [key for key, _ in on.admissions.items()] == [OTHER]


def test_an_endpoint_whose_position_is_read_anew_takes_its_configuration_along() -> None:
    on = board()
    on.offer([row(1)])
    on.unconfigured.clear()
    on.configure(runtime())
    on.relocate(KEY)
    on.close(PARTITION)
    assert (on.runtimes, on.unlocated, len(on.admissions)) == ({}, {}, 0)


def test_a_release_looks_through_its_own_endpoints_alone() -> None:
    """A drain releases all partitions: each of them through all endpoints would hold up the loop for seconds."""
    on = board()
    on.offer([replace(row(1, settled=True))])
    on.settled(on.lanes[KEY])
    for name in (*NOTED, "lanes"):
        setattr(on, name, Unsearched({OTHER: None} | getattr(on, name)))
    on.admissions._standings = Unsearched({OTHER: None})
    assert [cursor.key for cursor in on.take_dirty([PARTITION])] == [KEY]
    on.close(PARTITION)
    assert all(OTHER in getattr(on, name) for name in NOTED)


def test_a_partition_goes_whose_lanes_have_all_come_to_rest() -> None:
    on = board()
    on.offer([row(1, settled=True)])
    on.settled(on.lanes[KEY])
    on.stop_starting(PARTITION)
    on.close(PARTITION)
    assert (on.lanes, on.epochs, on.watermark(KEY)) == ({}, {}, None)


def test_a_deleted_endpoint_has_no_lane_to_close_with_its_partition() -> None:
    on = board()
    on.hint(KEY, 3)
    gone = on.lanes[KEY]
    on.retire(KEY)
    on.stop_starting(PARTITION)
    assert not gone.paused, "it is the partition's no longer"
    on.close(PARTITION)
    assert on.lanes == {}


def test_nothing_is_kept_of_an_endpoint_that_the_database_does_not_know() -> None:
    on = board()
    on.offer([row(1)])
    on.unconfigured.clear()
    on.configure(runtime())
    on.relocate(KEY)
    on.unlocated.clear()  # the feeder reads
    on.give_up([KEY])
    assert (on.runtimes, len(on.admissions)) == ({}, 0)


def test_an_endpoint_that_is_hinted_at_while_it_is_looked_for_is_not_given_up() -> None:
    on = board()
    on.offer([row(1)])
    on.unconfigured.clear()
    on.configure(runtime())
    on.relocate(KEY)
    on.unlocated.clear()  # the feeder reads
    on.hint(KEY, 5)
    on.give_up([KEY])
    assert KEY in on.runtimes
    on.close(PARTITION)
    assert (on.runtimes, on.unlocated) == ({}, {})
