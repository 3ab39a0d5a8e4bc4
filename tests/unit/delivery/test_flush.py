"""The flusher: what has happened gets recorded, whatever the database does."""

import asyncio
from collections.abc import Sequence

import pytest

from dispatcher.delivery.flush import Flusher, FlushLimits, sanitised
from dispatcher.errors import UnavailableError
from dispatcher.model import Attempt, Outcome
from dispatcher.telemetry import Instruments
from tests.support.deliveries import attempt_of
from tests.support.tasks import running, until

FAST = FlushLimits(interval_s=0.005, attempts_max=10, buffer_max=20, retry_min_s=0.001, retry_max_s=0.002)


class Store:
    """Stands for `store.attempts`: a table keyed by sequence, with a database that may be away, slow or picky."""

    def __init__(self) -> None:
        self.table: dict[int, Attempt] = {}
        self.copies: list[int] = []
        self.again: list[int] = []
        self.away = False
        self.bad: set[int] = set()
        self.unknown_once = False
        self.open = asyncio.Event()
        self.open.set()

    async def append(self, attempts: Sequence[Attempt]) -> None:
        self.copies.append(len(attempts))
        if self.table.keys() & {attempt.seq for attempt in attempts}:
            raise ValueError("duplicate key")
        await self._write(attempts)
        if self.unknown_once:
            self.unknown_once = False
            raise UnavailableError("the reply to COMMIT was lost")

    async def append_again(self, attempts: Sequence[Attempt]) -> None:
        self.again.append(len(attempts))
        await self._write(attempts)

    async def _write(self, attempts: Sequence[Attempt]) -> None:
        await self.open.wait()
        if self.away:
            raise UnavailableError("away")
        if any(attempt.seq in self.bad or "\0" in (attempt.error or "") for attempt in attempts):
            raise ValueError("refused")
        self.table |= {attempt.seq: attempt for attempt in attempts}


class Noted(Instruments):
    """Instruments that remember what the flusher told."""

    dropped = 0

    def flush_dropped(self, attempts: int) -> None:
        self.dropped += attempts


class Bench:
    def __init__(self, limits: FlushLimits = FAST, clock=None) -> None:
        self.store = Store()
        self.flushed: list[int] = []
        self.dropped: list[int] = []
        self.instruments = Noted.silent()
        self.flusher = Flusher(
            self.store.append,
            self.store.append_again,
            on_flushed=lambda done: self.flushed.extend(attempt.seq for attempt in done),
            on_dropped=lambda gone: self.dropped.extend(attempt.seq for attempt in gone),
            instruments=self.instruments,
            limits=limits,
            **({"clock": clock} if clock else {}),
        )

    def add(self, *seqs: int) -> None:
        for seq in seqs:
            self.flusher.add(attempt_of(seq))


async def test_attempts_are_committed_before_they_are_called_flushed():
    bench = Bench()
    bench.store.open.clear()
    async with running(bench.flusher.run()):
        bench.add(1, 2, 3)
        await until(lambda: bench.store.copies, "the first COPY")
        assert bench.flushed == []
        assert len(bench.flusher) == 3
        bench.store.open.set()
        await until(lambda: bench.flushed == [1, 2, 3], "the flush")
    assert list(bench.store.table) == [1, 2, 3]
    assert len(bench.flusher) == 0


async def test_a_large_enough_batch_does_not_wait_for_the_interval():
    bench = Bench(FlushLimits(interval_s=3600, attempts_max=5))
    async with running(bench.flusher.run()):
        bench.add(1, 2, 3, 4, 5)
        await until(lambda: len(bench.flushed) == 5, "the flush of a full batch")


async def test_a_small_batch_waits_for_the_interval_and_no_longer():
    now = [100.0]
    bench = Bench(FlushLimits(interval_s=0.02, attempts_max=5), clock=lambda: now[0])
    async with running(bench.flusher.run()):
        bench.add(1)
        await asyncio.sleep(0.06)
        assert bench.store.copies == [], "flushed although the clock says the interval isn't over"
        now[0] += 0.021
        await until(lambda: bench.flushed == [1], "the flush after the interval")


async def test_the_next_batch_forms_while_one_is_written_and_only_one_is_in_flight():
    bench = Bench()
    bench.store.open.clear()
    async with running(bench.flusher.run()):
        bench.add(1)
        await until(lambda: bench.store.copies == [1], "the first COPY")
        bench.add(*range(2, 10))
        await asyncio.sleep(0.02)
        assert bench.store.copies == [1]
        bench.store.open.set()
        await until(lambda: len(bench.flushed) == 9, "both flushes")
    assert bench.store.copies == [1, 8]


async def test_a_batch_is_bounded():
    bench = Bench()
    async with running(bench.flusher.run()):
        bench.add(*range(1, 26))
        await until(lambda: len(bench.flushed) == 25, "all flushes")
    assert max(bench.store.copies) == 10


async def test_a_full_buffer_says_so_but_takes_what_has_already_happened():
    bench = Bench()
    bench.add(*range(1, 20))
    assert not bench.flusher.is_full
    bench.add(20)
    assert bench.flusher.is_full
    bench.add(21)
    assert len(bench.flusher) == 21
    async with running(bench.flusher.run()):
        await until(lambda: len(bench.flushed) == 21, "the flushes")
    assert not bench.flusher.is_full


async def test_the_oldest_wait_counts_from_the_oldest_attempt_until_its_commit():
    now = [50.0]
    bench = Bench(clock=lambda: now[0])
    assert bench.flusher.oldest_wait_s(now[0]) == 0.0
    bench.store.open.clear()
    bench.add(1)
    now[0] = 50.4
    bench.add(2)
    assert bench.flusher.oldest_wait_s(50.5) == pytest.approx(0.5)
    async with running(bench.flusher.run()):
        await until(lambda: bench.store.copies, "the COPY")
        now[0] = 52.0
        bench.add(3)
        assert bench.flusher.oldest_wait_s(53.0) == pytest.approx(3.0)
        now[0] = 60.0
        bench.store.open.set()
        await until(lambda: bench.flushed == [1, 2, 3], "the flushes")
    assert bench.flusher.oldest_wait_s(99.0) == 0.0


async def test_an_absent_database_loses_nothing():
    bench = Bench()
    bench.store.away = True
    async with running(bench.flusher.run()):
        bench.add(1, 2)
        await until(lambda: len(bench.store.again) >= 3, "some tries")
        bench.add(3)
        assert bench.flushed == []
        bench.store.away = False
        await until(lambda: bench.flushed == [1, 2, 3], "the flush after the database came back")
    assert bench.dropped == []


async def test_a_flush_of_unknown_outcome_is_appended_again_idempotently():
    bench = Bench()
    bench.store.unknown_once = True
    async with running(bench.flusher.run()):
        bench.add(1, 2)
        await until(lambda: bench.flushed == [1, 2], "the flush")
    assert bench.store.copies == [2], "a second COPY would violate the key"
    assert bench.store.again == [2]


async def test_a_row_that_only_its_text_makes_bad_is_recorded_without_it():
    bench = Bench()
    async with running(bench.flusher.run()):
        bench.add(1, 2)
        bench.flusher.add(
            attempt_of(3, outcome=Outcome.HTTP_ERROR, status_code=500, error="a\0b", response_excerpt=b"\0hostile")
        )
        bench.add(4)
        await until(lambda: sorted(bench.flushed) == [1, 2, 3, 4], "the flush")
    assert bench.store.table[3] == attempt_of(3, outcome=Outcome.HTTP_ERROR, status_code=500, error="a?b")
    assert bench.dropped == []


async def test_a_row_that_no_form_saves_is_dropped_loudly_and_alone(caplog):
    bench = Bench()
    bench.store.bad = {3}
    async with running(bench.flusher.run()):
        bench.add(1, 2, 3, 4)
        await until(lambda: bench.dropped == [3], "the drop")
        bench.add(5)
        await until(lambda: bench.flushed == [1, 2, 4, 5], "the neighbours' flush and the next one")
    assert bench.instruments.dropped == 1
    (loud,) = [record for record in caplog.records if "cannot be recorded" in record.message]
    assert (loud.levelname, loud.sequence) == ("ERROR", 3)


async def test_where_no_row_at_all_is_accepted_the_batch_is_kept_and_its_wait_grows():
    bench = Bench()
    bench.store.bad = {1, 2}
    async with running(bench.flusher.run()):
        bench.add(1, 2)
        await until(lambda: len(bench.store.again) > 60, "many tries")
        assert bench.dropped == []
        assert bench.flusher.oldest_wait_s(float("inf")) > 0
        bench.store.bad = set()
        await until(lambda: bench.flushed == [1, 2], "the flush once the database accepts rows")


async def test_a_lone_bad_row_is_given_up_after_its_tries():
    bench = Bench()
    bench.store.bad = {1}
    async with running(bench.flusher.run()):
        bench.add(1)
        await until(lambda: bench.dropped == [1], "the drop")
    assert len(bench.store.again) == 2 * FAST.refused_tries_max


async def test_drain_flushes_at_once_and_tells_what_is_left():
    bench = Bench(FlushLimits(interval_s=3600, attempts_max=100, retry_min_s=0.001))
    async with running(bench.flusher.run()):
        bench.add(1, 2)
        assert await bench.flusher.drain(5.0) == 0
        assert bench.flushed == [1, 2]
        bench.store.away = True
        bench.add(3)
        assert await bench.flusher.drain(0.03) == 1


async def test_drain_of_an_idle_flusher_returns_at_once():
    bench = Bench()
    assert await bench.flusher.drain(5.0) == 0


async def test_flushed_waits_for_what_was_added_before_and_not_for_what_comes_later():
    bench = Bench()
    await bench.flusher.flushed()
    async with running(bench.flusher.run()):
        bench.add(*range(1, 11))
        waiting = asyncio.create_task(bench.flusher.flushed())
        bench.store.open.clear()
        await until(lambda: bench.store.copies == [10], "the first COPY")
        bench.add(11)
        later = asyncio.create_task(bench.flusher.flushed())
        await asyncio.sleep(0)
        assert not waiting.done()
        bench.store.open.set()
        await until(lambda: bench.flushed, "the first flush")
        bench.store.open.clear()
        await waiting
        assert bench.flushed == list(range(1, 11))
        await until(lambda: len(bench.store.copies) == 2, "the second COPY")
        assert not later.done()
        bench.store.open.set()
        await later
        assert bench.flushed[-1] == 11


async def test_flushed_ends_when_a_reset_forgets_what_it_waits_for():
    bench = Bench()
    bench.store.away = True
    async with running(bench.flusher.run()):
        bench.add(1)
        waiting = asyncio.create_task(bench.flusher.flushed())
        await until(lambda: bench.store.again, "a try")
        bench.flusher.reset()
        async with asyncio.timeout(5):
            await waiting


async def test_after_a_reset_nothing_unflushed_is_ever_called_flushed():
    bench = Bench()
    bench.store.open.clear()
    async with running(bench.flusher.run()):
        bench.add(1, 2)
        await until(lambda: bench.store.copies, "the COPY")
        bench.add(3)
        assert bench.flusher.reset() == 3
        assert len(bench.flusher) == 0
        bench.add(4)
        bench.store.open.set()
        await until(lambda: bench.flushed == [4], "the flush of what came later")
    assert bench.flushed == [4]


async def test_a_reset_ends_the_tries_against_an_absent_database():
    bench = Bench()
    bench.store.away = True
    async with running(bench.flusher.run()):
        bench.add(1)
        await until(lambda: bench.store.again, "a try")
        bench.flusher.reset()
        bench.store.away = False
        bench.add(2)
        await until(lambda: bench.flushed == [2], "the flush of what came later")
    assert 1 not in bench.store.table


def test_the_sanitised_form_keeps_the_fact_and_nothing_a_receiver_wrote():
    hostile = attempt_of(
        9,
        outcome=Outcome.HTTP_ERROR,
        status_code=99999,
        error="\ud800\0" + "x" * 999,
        response_excerpt=b"\0",
        duration_s=-1.0,
    )
    clean = sanitised(hostile)
    assert (clean.key, clean.seq, clean.event_id, clean.outcome) == (hostile.key, 9, "event-9", Outcome.HTTP_ERROR)
    assert clean.status_code is None
    assert clean.response_excerpt is None
    assert clean.duration_s == 0.0
    assert len(clean.error) == 200
    assert clean.error.isascii()
    assert "\0" not in clean.error
