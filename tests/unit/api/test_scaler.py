"""What KEDA is told, as numbers."""

from __future__ import annotations

import pytest

from dispatcher.api.scaler import DUE_BACKLOG, OLDEST_DUE_AGE, RecentLoad, metric_named, target_of, value_of
from dispatcher.errors import InvalidRequestError, NotFoundError, UnavailableError
from dispatcher.model import FleetLoad

LOAD = FleetLoad(host_count=3, due_backlog=12_000, due_age_s=90.0)


def wanted(load: FleetLoad, **metadata: str) -> float:
    """The pods that KEDA makes of it, before it rounds up."""
    return max(value_of(name, load, metadata) / target_of(name, metadata) for name in (DUE_BACKLOG, OLDEST_DUE_AGE))


def test_a_backlog_wants_one_instance_for_each_share_of_it() -> None:
    assert wanted(FleetLoad(1, 20_000, 0.0)) == 4
    assert wanted(FleetLoad(1, 20_000, 0.0), dueBacklogPerInstance="2000") == 10


def test_lateness_wants_the_fleet_that_there_is_times_its_ratio() -> None:
    assert wanted(LOAD) == 3 * 90 / 60
    assert wanted(LOAD, oldestDueAgeMaxS="180", dueBacklogPerInstance="1e9") == 1.5


def test_however_late_it_is_the_fleet_is_no_more_than_doubled_at_a_time() -> None:
    assert wanted(FleetLoad(3, 100, 10_800.0)) == 6
    assert wanted(FleetLoad(3, 100, 10_800.0), oldestDueAgeMaxS="7200") == 4.5


def test_what_is_just_in_time_leaves_the_fleet_as_it_is() -> None:
    assert wanted(FleetLoad(7, 100, 60.0)) == 7


@pytest.mark.parametrize("text", ["", "no", "0", "-1", "nan", "inf", "1e19"])
def test_a_target_that_is_no_number_above_zero_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        target_of(DUE_BACKLOG, {"dueBacklogPerInstance": text})
    assert "dueBacklogPerInstance" in refused.value.violations[0].field


def test_a_metric_that_is_none_of_ours_is_not_found() -> None:
    with pytest.raises(NotFoundError):
        value_of("backlog", LOAD, {})


@pytest.mark.parametrize(
    ("told", "meant"),
    [("due_backlog", "due_backlog"), ("s0-due_backlog", "due_backlog"), ("s12-x", "x"), ("s-x", "s-x"), ("a-b", "a-b")],
)
def test_a_metrics_name_is_known_with_kedas_number_before_it(told: str, meant: str) -> None:
    assert metric_named(told) == meant


class Reads:
    """The database: counts how often it is asked, and may be away."""

    def __init__(self) -> None:
        self.count = 0
        self.is_away = False

    async def __call__(self) -> FleetLoad:
        self.count += 1
        if self.is_away:
            raise UnavailableError("away")
        return FleetLoad(1, self.count, 0.0)


async def test_the_load_is_read_once_in_an_interval_however_many_ask() -> None:
    reads, now = Reads(), [0.0]
    load = RecentLoad(reads, 2.0, lambda: now[0])
    assert [(await load.get()).due_backlog for _ in range(3)] == [1, 1, 1]
    now[0] = 2.0
    assert (await load.get()).due_backlog == 2


async def test_nothing_old_is_told_while_the_database_is_away_and_it_is_asked_no_more_often() -> None:
    reads, now = Reads(), [0.0]
    load = RecentLoad(reads, 2.0, lambda: now[0])
    await load.get()
    now[0], reads.is_away = 2.0, True
    for _ in range(3):
        with pytest.raises(UnavailableError):
            await load.get()
    assert reads.count == 2
    now[0], reads.is_away = 4.0, False
    assert (await load.get()).due_backlog == 3
