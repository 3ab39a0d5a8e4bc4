"""Halving a batch: one bad row costs its neighbours nothing."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.delivery.bisect import write_bisected
from dispatcher.errors import UnavailableError


class Table:
    """Takes whole parts, or nothing if a bad row is among them."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad
        self.rows: list[int] = []
        self.calls = 0

    async def write(self, rows: Sequence[int]) -> int:
        self.calls += 1
        if self.bad & set(rows):
            raise ValueError("bad row")
        self.rows += rows
        return len(rows)


@given(st.integers(1, 200), st.sets(st.integers(0, 199), max_size=12))
async def test_exactly_the_bad_rows_are_refused_and_the_others_written_once_in_order(count, bad):
    table = Table(bad)
    written = await write_bisected(table.write, range(count))
    assert table.rows == [row for row in range(count) if row not in bad]
    assert [row for row, _ in written.refused] == sorted(row for row in bad if row < count)
    assert [row for part, _ in written.parts for row in part] == table.rows
    assert all(answer == len(part) for part, answer in written.parts)


async def test_a_good_batch_is_one_call_and_a_bad_row_costs_a_logarithm():
    good, bad = Table(set()), Table({617})
    await write_bisected(good.write, range(1000))
    await write_bisected(bad.write, range(1000))
    assert good.calls == 1
    assert bad.calls <= 2 * 10 + 1


async def test_an_absent_database_blames_no_row():
    async def away(rows: Sequence[int]) -> None:
        raise UnavailableError("away")

    with pytest.raises(UnavailableError):
        await write_bisected(away, range(8))
