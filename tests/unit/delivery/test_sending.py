"""The send loop: one sender after the other, and what an end of the process leaves behind."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry.trace import NoOpTracer

from dispatcher.delivery.attempt import Attempter
from dispatcher.delivery.board import Board
from dispatcher.delivery.exchange import Exchange, ExchangeKind
from dispatcher.delivery.flush import Flusher, FlushLimits
from dispatcher.delivery.lane import LaneLimits
from dispatcher.delivery.scheduler import SchedulerLimits
from dispatcher.delivery.sending import SendingOptions, SendLoop
from dispatcher.model import Attempt, Outcome
from dispatcher.policy import RetryOverrides
from dispatcher.store.backlog import EndpointPosition
from dispatcher.telemetry import Instruments, Tracing
from tests.support.deliveries import row_of
from tests.support.endpoints import runtime_of
from tests.support.exchanges import OK, Receiver
from tests.support.tasks import until

KEY = row_of().key


@dataclass
class Loop:
    board: Board
    receiver: Receiver
    recorded: list[Attempt]
    sending: SendLoop
    task: asyncio.Task[None]

    async def cancelled(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        assert self.task.cancelled()


async def nothing(_: Any) -> None:
    """A store that is never reached here."""


@asynccontextmanager
async def loop_with(
    rows: int, in_flight_max: int = 100, chance: random.Random | None = None, **settings: Any
) -> AsyncIterator[Loop]:
    """A loop at work on a lane with so many rows, whose receiver does not answer yet."""
    receiver, recorded = Receiver(), []
    receiver.open.clear()
    limits = SchedulerLimits(in_flight_max, in_flight_max, in_flight_max, 2.0)
    board = Board(LaneLimits(64, 10_000), limits, 1_000_000)
    board.open(KEY.partition, 1, [EndpointPosition(KEY, 0, row_of(1).time, 0)])
    board.offer([row_of(seq) for seq in range(1, rows + 1)])
    board.configure(runtime_of(**settings))
    instruments = Instruments.silent()
    flusher = Flusher(
        nothing, nothing, on_flushed=print, on_dropped=print, instruments=instruments, limits=FlushLimits()
    )
    attempter = Attempter(receiver, recorded.append, Tracing(NoOpTracer()), instruments)
    never: Any = None
    sending = SendLoop(
        board,
        attempter,
        flusher,
        never,
        lambda: math.inf,
        SendingOptions(1.0),
        instruments,
        disable=never,
        chance=chance,
    )
    task = asyncio.create_task(sending.run())
    try:
        yield Loop(board, receiver, recorded, sending, task)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_an_answer_that_came_is_recorded_although_all_is_cancelled_in_the_same_breath():
    async with loop_with(rows=1) as loop:
        await until(lambda: loop.receiver.requests, "the request")
        loop.receiver.open.set()
        await loop.cancelled()
        assert [attempt.outcome for attempt in loop.recorded] == [Outcome.SUCCEEDED]


async def test_even_if_it_is_cancelled_twice():
    async with loop_with(rows=1) as loop:
        await until(lambda: loop.receiver.requests, "the request")
        loop.receiver.open.set()
        loop.task.cancel()
        await asyncio.sleep(0)
        await loop.cancelled()
        assert len(loop.recorded) == 1


async def test_what_has_no_answer_is_stopped_and_leaves_no_record():
    async with loop_with(rows=1) as loop:
        await until(lambda: loop.receiver.requests, "the request")
        await loop.cancelled()
        assert loop.receiver.stopped
        assert loop.recorded == []


async def test_once_cancelled_nothing_new_begins():
    async with loop_with(rows=3) as loop:
        await until(lambda: loop.receiver.requests, "the request")
        loop.task.cancel()
        await asyncio.sleep(0)
        loop.receiver.open.set()
        await asyncio.wait([loop.task])
        assert (len(loop.receiver.requests), len(loop.recorded)) == (1, 1)


async def test_a_sender_goes_on_with_what_its_own_success_has_let_go():
    async with loop_with(rows=20) as loop:
        loop.receiver.open.set()
        await until(lambda: loop.sending.delivered_total == 20, "all of them")
        assert [request.headers["webhook-sequence"] for request in loop.receiver.requests] == [
            str(seq) for seq in range(1, 21)
        ]
        assert loop.sending.in_flight == 0


class LeastWait(random.Random):
    def random(self) -> float:
        return 0.001


async def test_what_the_egress_proxy_fails_is_sent_again_and_counted_against_nobody():
    """The endpoint has a single attempt, and no decision could be made here."""
    failed = Exchange(ExchangeKind.EGRESS_PROXY_FAILED, 0.0, error="the egress proxy is not reached")
    async with loop_with(rows=2, chance=LeastWait(), retry=RetryOverrides(attempts_max=1)) as loop:
        loop.receiver.answer = failed
        loop.receiver.open.set()
        await until(lambda: len(loop.receiver.requests) >= 20, "many of them")
        standing = loop.board.admissions.get(KEY)
        assert standing is not None
        assert (standing.admission.open_circuits, standing.health.is_well) == ([], True)
        assert {request.headers["webhook-attempt"] for request in loop.receiver.requests} == {"1"}
        loop.receiver.answer = OK
        await until(lambda: loop.sending.delivered_total == 2, "both of them")
    outcomes = [(attempt.seq, attempt.number, attempt.outcome) for attempt in loop.recorded]
    assert set(outcomes[:-2]) == {(1, 0, Outcome.EGRESS_PROXY_FAILED)}
    assert outcomes[-2:] == [(1, 1, Outcome.SUCCEEDED), (2, 1, Outcome.SUCCEEDED)]


async def test_a_sender_that_dies_ends_the_loop():
    async with loop_with(rows=1) as loop:
        await until(lambda: loop.receiver.requests, "the request")
        loop.receiver.answer = None  # nothing that a client may answer
        loop.receiver.open.set()
        with pytest.raises(ExceptionGroup):
            await loop.task


async def test_it_is_quiet_where_nothing_is_in_flight_and_elsewhere_only_once_that_has_ended():
    async with loop_with(rows=1) as loop:
        await until(lambda: loop.receiver.requests, "the request")
        await loop.sending.quiesced(lambda key: key != KEY)
        waiters = [asyncio.create_task(loop.sending.quiesced(lambda key: key == KEY)) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(waiter.done() for waiter in waiters)
        loop.receiver.open.set()
        await asyncio.wait(waiters, timeout=10)
        assert all(waiter.done() for waiter in waiters)
        assert (loop.sending.in_flight, len(loop.recorded)) == (0, 1)
