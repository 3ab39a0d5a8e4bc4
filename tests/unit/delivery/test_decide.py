"""The decision writer: nothing is called committed before it is, and a lost lease voids only its own."""

import asyncio
from collections.abc import Mapping, Sequence

from dispatcher.delivery.decide import DecisionLimits, DecisionWriter, Verdict
from dispatcher.errors import UnavailableError
from dispatcher.model import DeadLetter, Decision, Halt
from tests.support.deliveries import decision_of, letter_of
from tests.support.tasks import running, until

FAST = DecisionLimits(batch_max=10, retry_min_s=0.001, retry_max_s=0.002)


class Fence:
    """Stands for `store.decisions.commit`: knows who holds what, may be away, slow or picky."""

    def __init__(self, held: Mapping[int, int]) -> None:
        self.epochs = dict(held)
        self.table: dict[int, Decision] = {}
        self.letters: list[DeadLetter] = []
        self.calls: list[int] = []
        self.away = False
        self.bad: set[int] = set()
        self.open = asyncio.Event()
        self.open.set()

    async def commit(
        self,
        epochs: Mapping[int, int],
        decisions: Sequence[Decision],
        letters: Sequence[DeadLetter],
        _halts: Sequence[Halt],
    ) -> set[int]:
        self.calls.append(len(decisions))
        await self.open.wait()
        if self.away:
            raise UnavailableError("away")
        if any(decision.seq in self.bad for decision in decisions):
            raise ValueError("refused")
        held = {partition for partition, epoch in epochs.items() if self.epochs.get(partition) == epoch}
        self.table |= {decision.seq: decision for decision in decisions if decision.key.partition in held}
        self.letters += letters
        return held


class Bench:
    def __init__(self, held: Mapping[int, int]) -> None:
        self.fence = Fence(held)
        self.local = dict(held)
        self.writer: DecisionWriter = DecisionWriter(self.fence.commit, self.local.get, FAST)

    def submit(self, seq: int, partition: int = 7, epoch: int = 3) -> asyncio.Future[Verdict]:
        return self.writer.submit(decision_of(seq, partition), letter_of(seq, partition=partition), epoch)


async def test_a_decision_is_committed_only_once_the_database_said_so():
    bench = Bench({7: 3})
    bench.fence.open.clear()
    async with running(bench.writer.run()):
        answer = bench.submit(1)
        await until(lambda: bench.fence.calls, "the commit")
        assert not answer.done()
        bench.fence.open.set()
        assert await answer is Verdict.COMMITTED
    assert bench.fence.letters == [letter_of(1)]


async def test_decisions_that_come_while_one_is_committed_go_together():
    bench = Bench({7: 3, 8: 3})
    bench.fence.open.clear()
    async with running(bench.writer.run()):
        first = bench.submit(1)
        await until(lambda: bench.fence.calls, "the first commit")
        others = [bench.submit(seq, partition=7 + seq % 2) for seq in range(2, 8)]
        bench.fence.open.set()
        assert {await answer for answer in [first, *others]} == {Verdict.COMMITTED}
    assert bench.fence.calls == [1, 6]


async def test_a_partition_lost_in_the_database_voids_only_its_own_decisions():
    bench = Bench({7: 3, 8: 3})
    bench.fence.epochs[8] = 4  # stolen; this instance does not know yet
    async with running(bench.writer.run()):
        kept, lost = bench.submit(1, 7), bench.submit(2, 8)
        assert (await kept, await lost) == (Verdict.COMMITTED, Verdict.VOID)
    assert list(bench.fence.table) == [1]


async def test_a_decision_of_an_older_epoch_is_void_although_the_partition_is_held_again():
    bench = Bench({7: 4})
    async with running(bench.writer.run()):
        old, new = bench.submit(1, epoch=3), bench.submit(2, epoch=4)
        assert (await old, await new) == (Verdict.VOID, Verdict.COMMITTED)
    assert list(bench.fence.table) == [2]


async def test_an_absent_database_delays_a_decision_and_never_invents_it():
    bench = Bench({7: 3})
    bench.fence.away = True
    async with running(bench.writer.run()):
        answer = bench.submit(1)
        await until(lambda: len(bench.fence.calls) > 3, "some tries")
        assert not answer.done()
        bench.fence.away = False
        assert await answer is Verdict.COMMITTED


async def test_a_lease_that_ends_while_the_database_is_away_voids_its_decisions():
    bench = Bench({7: 3, 8: 3})
    bench.fence.away = True
    async with running(bench.writer.run()):
        lost, kept = bench.submit(1, 7), bench.submit(2, 8)
        await until(lambda: bench.fence.calls, "a try")
        del bench.local[7]
        assert await lost is Verdict.VOID
        assert not kept.done()
        bench.fence.away = False
        assert await kept is Verdict.COMMITTED


async def test_a_refused_decision_is_answered_alone(caplog):
    bench = Bench({7: 3})
    bench.fence.bad = {2}
    async with running(bench.writer.run()):
        answers = [bench.submit(seq) for seq in (1, 2, 3)]
        assert [await answer for answer in answers] == [Verdict.COMMITTED, Verdict.REFUSED, Verdict.COMMITTED]
    assert [record.sequence for record in caplog.records if record.levelname == "ERROR"] == [2]


async def test_a_waiter_that_went_away_harms_nobody():
    bench = Bench({7: 3})
    bench.fence.open.clear()
    async with running(bench.writer.run()) as task:
        gone, kept = bench.submit(1), bench.submit(2)
        await until(lambda: bench.fence.calls, "the commit")
        gone.cancel()
        bench.fence.open.set()
        assert await kept is Verdict.COMMITTED
        assert not task.done()
    assert sorted(bench.fence.table) == [1, 2]


async def test_reset_voids_everything_undecided():
    bench = Bench({7: 3})
    bench.fence.open.clear()
    async with running(bench.writer.run()):
        in_flight = bench.submit(1)
        await until(lambda: bench.fence.calls, "the commit")
        waiting = bench.submit(2)
        assert bench.writer.reset() == 2
        assert (await in_flight, await waiting) == (Verdict.VOID, Verdict.VOID)
        bench.fence.open.set()
        assert await bench.submit(3) is Verdict.COMMITTED


async def test_drain_waits_for_the_verdicts_and_tells_what_is_left():
    bench = Bench({7: 3})
    async with running(bench.writer.run()):
        answer = bench.submit(1)
        assert await bench.writer.drain(5.0) == 0
        assert answer.done()
        bench.fence.away = True
        bench.submit(2)
        assert await bench.writer.drain(0.03) == 1
