"""A stream of publications: what happens to those around one that fails or whose routing is stale."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from uuid import UUID

from dispatcher.errors import DispatcherError, FieldViolation, InvalidRequestError
from dispatcher.model import PublishedEvent
from dispatcher.routing.publisher import ChainBrokenError, Publication, Publisher, PublishStream, StreamAnswer
from dispatcher.store.publish import PublishRequest, RequestResult, Verdict

ACCEPTED = RequestResult(Verdict.ACCEPTED, (PublishedEvent("e", False, 1),))
STALE = RequestResult(Verdict.STALE)
INVALID = InvalidRequestError([FieldViolation("events", "is wrong")])


class Commits:
    """Stands for the publisher: what was queued, in order, each with the future that a test answers."""

    def __init__(self) -> None:
        self.queued: list[tuple[str, asyncio.Future[RequestResult]]] = []

    async def admit(self, _publication: Publication) -> None:
        """No quota binds."""

    async def route(self, publication: Publication, _chain: object) -> PublishRequest:
        return PublishRequest(UUID(int=1), publication.tenant, UUID(int=1), (), ())

    def enqueue(self, request: PublishRequest, *_rest: object) -> asyncio.Future[RequestResult]:
        future: asyncio.Future[RequestResult] = asyncio.get_running_loop().create_future()
        self.queued.append((request.tenant_name, future))
        return future

    def forget(self, _request: PublishRequest) -> None:
        """Nothing is remembered here."""

    async def answer(self, number: int, name: str, result: RequestResult) -> None:
        """Answer queued request `number` (from 0), which must be `name`, as soon as it is there."""
        async with asyncio.timeout(5):
            while len(self.queued) <= number:
                await asyncio.sleep(0)
        assert self.queued[number][0] == name
        self.queued[number][1].set_result(result)


def stream_over(commits: Commits) -> PublishStream:
    return PublishStream(cast("Publisher", cast("Any", commits)))


async def answers_of(stream: PublishStream) -> list[tuple[int, type[DispatcherError] | None]]:
    return [(sequence, _kind(outcome)) async for sequence, outcome in stream.answers()]


def _kind(outcome: StreamAnswer | object) -> type[DispatcherError] | None:
    return type(outcome) if isinstance(outcome, DispatcherError) else None


async def test_a_failure_does_not_reach_back_to_an_earlier_request_that_goes_round_again() -> None:
    commits = Commits()
    stream = stream_over(commits)
    await stream.send(1, Publication("one", ()))
    await stream.send(2, INVALID)
    await stream.send(3, Publication("three", ()))
    await stream.close()
    reading = asyncio.create_task(answers_of(stream))
    await commits.answer(0, "one", STALE)
    await commits.answer(1, "one", ACCEPTED)
    async with asyncio.timeout(5):
        assert await reading == [(1, None), (2, InvalidRequestError), (3, ChainBrokenError)]
    assert len(commits.queued) == 2


async def test_an_invalid_request_may_come_while_earlier_ones_go_round_again() -> None:
    commits = Commits()
    stream = stream_over(commits)
    await stream.send(1, Publication("one", ()))
    await stream.send(2, Publication("two", ()))
    reading = asyncio.create_task(answers_of(stream))
    await commits.answer(0, "one", STALE)
    for _ in range(10):
        await asyncio.sleep(0)  # the repetition waits for request 2
    sending = asyncio.create_task(stream.send(3, INVALID))
    await asyncio.sleep(0)
    await commits.answer(1, "two", RequestResult(Verdict.CHAIN_BROKEN))
    await sending
    await stream.close()
    await commits.answer(2, "one", ACCEPTED)
    await commits.answer(3, "two", ACCEPTED)
    async with asyncio.timeout(5):
        assert await reading == [(1, None), (2, None), (3, InvalidRequestError)]


async def test_nothing_is_written_behind_a_failure_that_was_answered() -> None:
    commits = Commits()
    stream = stream_over(commits)
    await stream.send(1, Publication("one", ()))
    await stream.send(2, Publication("two", ()))
    await stream.close()
    reading = asyncio.create_task(answers_of(stream))
    await commits.answer(0, "one", RequestResult(Verdict.CHAIN_BROKEN))
    await commits.answer(1, "two", STALE)
    async with asyncio.timeout(5):
        assert await reading == [(1, ChainBrokenError), (2, ChainBrokenError)]
    assert len(commits.queued) == 2
