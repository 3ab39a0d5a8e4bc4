"""Names, bounds and lifetimes of partitions."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from dispatcher.store.partitions import EVENT_TABLES, Partition, parse_name, wanted
from dispatcher.store.upkeep import is_expired, is_unreferenced

DAY = date(2026, 11, 23)


@pytest.mark.parametrize("partition", [Partition("outbox", DAY), Partition("event", DAY), Partition("dedup", 20780)])
def test_a_name_leads_back_to_its_partition(partition: Partition) -> None:
    assert parse_name(partition.name) == partition


FOREIGN = ["outbox", "outbox_p2026112", "outbox_p20261399", "outbox_archive", "dedup_gx", "cursor_g1"]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_table_of_someone_else_is_none_of_ours(name: str) -> None:
    assert parse_name(name) is None


def test_bounds_are_utc_days_whatever_the_session_says() -> None:
    assert Partition("outbox", DAY).values_sql == "FROM ('2026-11-23T00:00:00+00:00') TO ('2026-11-24T00:00:00+00:00')"


def test_yesterday_to_the_days_ahead_are_wanted_by_utc() -> None:
    late_evening = datetime(2026, 11, 23, 22, 0, tzinfo=timezone(timedelta(hours=-5)))  # already the 24th
    found = [p.bound for p in wanted(late_evening, 2, 86_400) if p.table == "outbox"]
    assert found == [date(2026, 11, 24) + timedelta(days=n) for n in (-1, 0, 1, 2)]


def test_this_and_the_next_dedup_generations_are_wanted() -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    generation = int(now.timestamp()) // 86_400
    found = [p.bound for p in wanted(now, 0, 86_400) if p.table == "dedup"]
    assert found == [generation + n for n in (-1, 0, 1, 2, 3)]


def test_a_day_expires_when_its_last_moment_is_past_the_retention() -> None:
    end_of_retention = datetime(2026, 12, 3, tzinfo=UTC) + timedelta(days=1)
    assert is_expired(DAY, end_of_retention, 10)
    assert not is_expired(DAY, end_of_retention - timedelta(microseconds=1), 10)


def test_events_and_attempts_stay_as_long_as_rows_may_refer_to_them() -> None:
    def droppable(oldest: date | None) -> set[str]:
        return {table for table in EVENT_TABLES if is_unreferenced(Partition(table, DAY), oldest)}

    assert droppable(None) == set()
    assert droppable(DAY) == set()
    assert droppable(DAY + timedelta(days=1)) == {"event", "outbox"}
    assert droppable(DAY + timedelta(days=2)) == {"event", "outbox", "attempt"}
