"""The decision writer against a real fence: a steal decides who may decide."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest

from dispatcher.delivery.decide import DecisionLimits, DecisionWriter, Verdict
from dispatcher.store import decisions
from dispatcher.store.database import Database
from tests.support.deliveries import decision_of, letter_of
from tests.support.postgres import TestDatabase
from tests.support.tasks import running

HELD = {7: 3, 8: 5}
LIMITS = DecisionLimits(retry_min_s=0.01, retry_max_s=0.05)


class Bench:
    def __init__(self, db: Database) -> None:
        self.db = db
        self.local = dict(HELD)
        self.writer = DecisionWriter(partial(decisions.commit, db), self.local.get, LIMITS)

    async def seqs(self, table: str) -> list[int]:
        return [row["seq"] for row in await self.db.fetch(f"SELECT seq FROM {table} ORDER BY seq")]


@pytest.fixture
async def bench(database: TestDatabase) -> AsyncIterator[Bench]:
    async with Database.open(database.options) as db:
        for partition, epoch in HELD.items():
            await db.execute("UPDATE lease SET epoch = $2 WHERE partition = $1", partition, epoch)
        made = Bench(db)
        async with running(made.writer.run()):
            yield made


async def test_committed_means_that_decision_and_dead_letter_can_be_read(bench: Bench):
    assert await bench.writer.submit(decision_of(1), letter_of(1), 3) is Verdict.COMMITTED
    assert await bench.seqs("decision") == [1]
    assert await bench.seqs("dead_letter") == [1]


async def test_a_partition_stolen_unnoticed_voids_its_decisions_and_no_others(bench: Bench):
    await bench.db.execute("UPDATE lease SET epoch = epoch + 1 WHERE partition = 8")
    kept = bench.writer.submit(decision_of(1, 7), letter_of(1, 7), 3)
    lost = bench.writer.submit(decision_of(2, 8), letter_of(2, 8), 5)
    assert (await kept, await lost) == (Verdict.COMMITTED, Verdict.VOID)
    assert await bench.seqs("decision") == [1]
    assert await bench.seqs("dead_letter") == [1]


async def test_a_decision_taken_again_changes_nothing(bench: Bench):
    for _ in range(2):
        assert await bench.writer.submit(decision_of(1), letter_of(1), 3) is Verdict.COMMITTED
    assert await bench.seqs("decision") == [1]


async def test_a_decision_the_database_refuses_harms_no_neighbour(bench: Bench):
    good, bad, other = (
        bench.writer.submit(decision_of(seq, reason=reason), None, 3)
        for seq, reason in ((1, "X"), (2, "nul\0"), (3, "X"))
    )
    assert [await good, await bad, await other] == [Verdict.COMMITTED, Verdict.REFUSED, Verdict.COMMITTED]
    assert await bench.seqs("decision") == [1, 3]
