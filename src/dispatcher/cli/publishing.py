"""Publishes a feed of events over streams: pipelined, resumed from the first unanswered request, bounded throughout."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, assert_never

from dispatcher.cli.failure import details_of, first_line
from dispatcher.cli.feed import Feed
from dispatcher.cli.records import BadLine, Batch, EventRecord
from dispatcher.cli.status import OK_STATUS, Code, ServiceError, ServiceStatus
from dispatcher.cli.window import Answer, RetryPolicy, Verdict, Window, judge


class Stream(Protocol):
    """One PublishStream call; see client.PublishStream."""

    async def send(self, sequence: int, parent: str, records: Iterable[EventRecord]) -> None: ...
    async def finish(self) -> None: ...
    async def receive(self) -> Answer | None: ...
    def cancel(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: `parent` is `tenants/{tenant}`; `rate` is events per second, None for as fast as it goes.

    An answer that takes longer than `answer_timeout_s` counts as a broken stream. With `keep_going` what is refused is
    passed over; otherwise it ends the run once everything before it is published.
    """

    parent: str
    answer_timeout_s: float
    rate: float | None = None
    keep_going: bool = False
    retry: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something was not published. `line` is where to look in the file; `fatal` failures end the run."""

    line: int
    problem: str
    details: tuple[str, ...] = ()
    code: Code = Code.INVALID_ARGUMENT
    fatal: bool = False


@dataclass(slots=True)
class Tally:
    """Counts so far. `duplicates`, whose ids from the file were known before, are not among the `accepted`.

    `resume_line` is the first line not settled, None where all are.
    """

    accepted: int = 0
    duplicates: int = 0
    failed: int = 0
    retries: int = 0
    line_bytes: int = 0
    resume_line: int | None = None
    last_failure: Failure | None = None

    @property
    def answered(self) -> int:
        return self.accepted + self.duplicates


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told: after each step of the tally, at each failure, and before each wait for a retry (seconds, why)."""

    on_progress: Callable[[Tally], None]
    on_failure: Callable[[Failure], None]
    on_retry: Callable[[float, ServiceStatus], None]


class Publishing:
    """One run over one feed. Await `run` once; `tally` is true at any time, also after a cancellation."""

    def __init__(self, open_stream: Callable[[], Stream], feed: Feed, plan: Plan, listeners: Listeners) -> None:
        self.tally = Tally()
        self._open_stream = open_stream
        self._feed = feed
        self._plan = plan
        self._listeners = listeners
        self._window = Window()
        self._feed_ended = False
        self._changed = asyncio.Event()
        self._answered_at = 0.0
        self._due_at = 0.0
        self._retries_in_row = 0

    async def run(self) -> None:
        """Publish until the feed ends or a failure ends the run. An OSError of reading the feed is raised."""
        try:
            await self._run()
        except asyncio.CancelledError:
            if len(self._window):
                self.tally.resume_line = self._window.front.batch.first_line
            raise

    async def _run(self) -> None:
        while await self._has_work():
            before = self.tally.answered
            status = await self._stream_until_it_ends()
            self._window.rewind()
            if self.tally.answered > before:
                self._retries_in_row = 0
            if len(self._window) and not await self._goes_on_after(status):
                self.tally.resume_line = self._window.front.batch.first_line
                return

    async def _has_work(self) -> bool:
        return len(self._window) > 0 or await self._take()

    async def _take(self) -> bool:
        """Move one batch from the feed into the window; False at the end of the feed."""
        while not self._feed_ended:
            match await self._feed.next():
                case Batch() as batch:
                    self._window.add(batch)
                    return True
                case BadLine(line, problem, final):
                    self._feed_ended = final or not self._plan.keep_going
                    self._fail(Failure(line, problem, fatal=self._feed_ended))
                case None:
                    self._feed_ended = True
        return False

    async def _stream_until_it_ends(self) -> ServiceStatus:
        """Send and receive on one stream. Returns why it ended: OK where the service or we ended it in peace."""
        stream = self._open_stream()
        self._answered_at = time.monotonic()
        sender = asyncio.create_task(self._send(stream), name="publish-send")
        try:
            while (answer := await self._receive(stream, sender)) is not None:
                if answer.status.code is not Code.OK:
                    return answer.status
                self._accept(answer)
        except ServiceError as error:
            return error.status
        except TimeoutError:
            return ServiceStatus(Code.DEADLINE_EXCEEDED, f"no answer within {self._plan.answer_timeout_s:g} s")
        finally:
            sender.cancel()
            stream.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        return OK_STATUS

    async def _send(self, stream: Stream) -> None:
        while True:
            request = self._window.next_unsent()
            if request is not None:
                await self._pace(len(request.batch.records))
                if not self._window.in_flight:
                    self._answered_at = time.monotonic()
                await stream.send(self._window.mark_sent(), self._plan.parent, request.batch.records)
            elif self._window.wants_more and not self._feed_ended:
                await self._take()
            elif self._feed_ended and self._window.in_flight == len(self._window):
                await stream.finish()
                return
            else:
                self._changed.clear()
                await self._changed.wait()

    async def _pace(self, events: int) -> None:
        """Hold `events` back to the rate asked for; time lost waiting for the service is not caught up in a burst."""
        if self._plan.rate is None:
            return
        now = time.monotonic()
        if self._due_at > now:
            await asyncio.sleep(self._due_at - now)
        self._due_at = max(self._due_at, now) + events / self._plan.rate

    async def _receive(self, stream: Stream, sender: asyncio.Task[None]) -> Answer | None:
        """The next answer, None at the end. Raises ServiceError, TimeoutError for silence, and the sender's error."""
        reading = asyncio.ensure_future(stream.receive())
        waited_for: set[asyncio.Future[Any]] = {reading, sender}
        try:
            while not reading.done():
                await asyncio.wait(waited_for, timeout=self._patience_s(), return_when=asyncio.FIRST_COMPLETED)
                if sender in waited_for and sender.done():
                    waited_for.remove(sender)
                    _raise_own_error(sender)
                if not reading.done() and self._patience_s() == 0:
                    raise TimeoutError
            return reading.result()
        finally:
            reading.cancel()

    def _patience_s(self) -> float:
        if not self._window.in_flight:
            return self._plan.answer_timeout_s
        return max(0.0, self._answered_at + self._plan.answer_timeout_s - time.monotonic())

    def _accept(self, answer: Answer) -> None:
        if not self._window.expects(answer.sequence):
            raise RuntimeError(f"the service answered request {answer.sequence} out of turn")
        self._answered_at = time.monotonic()
        batch = self._window.settle()
        # An id made in this run is known only where an answer was lost: that event was accepted now.
        known = zip(batch.records, answer.known, strict=False)
        duplicates = sum(is_known and not record.id_made for record, is_known in known)
        self.tally.accepted += len(batch.records) - duplicates
        self.tally.duplicates += duplicates
        self.tally.line_bytes += batch.line_bytes
        self._changed.set()
        self._listeners.on_progress(self.tally)

    async def _goes_on_after(self, status: ServiceStatus) -> bool:
        """Deal with a stream that left requests unanswered; False ends the run."""
        match judge(status):
            case Verdict.RETRY:
                return await self._retry(status)
            case Verdict.BLAME_EVENT:
                return self._blame(status)
            case Verdict.STOP:
                self._fail(_failure_of(self._window.front.batch, status, fatal=True))
                return False
            case other:
                assert_never(other)

    async def _retry(self, status: ServiceStatus) -> bool:
        self._retries_in_row += 1
        if self._retries_in_row > self._plan.retry.retries_max:
            failure = _failure_of(self._window.front.batch, status, fatal=True)
            self._fail(
                Failure(
                    failure.line,
                    f"gave up after {self.tally.retries} retries: {failure.problem}",
                    failure.details,
                    failure.code,
                    fatal=True,
                )
            )
            return False
        self.tally.retries += 1
        delay_s = self._plan.retry.delay_s(self._retries_in_row, status, random.random())  # noqa: S311 - jitter
        self._listeners.on_retry(delay_s, status)
        await asyncio.sleep(delay_s)
        return True

    def _blame(self, status: ServiceStatus) -> bool:
        if len(self._window.front.batch.records) > 1:
            self._window.halve_front()
            return True
        keep_going = self._plan.keep_going
        self._fail(_failure_of(self._window.front.batch, status, fatal=not keep_going))
        if keep_going:
            self.tally.line_bytes += self._window.settle().line_bytes
        return keep_going

    def _fail(self, failure: Failure) -> None:
        self.tally.failed += 1
        self.tally.last_failure = failure
        if failure.fatal:
            self.tally.resume_line = failure.line
        self._listeners.on_failure(failure)


def _raise_own_error(sender: asyncio.Task[None]) -> None:
    """A broken stream is for the reader to explain; anything else that ended the sender is ours."""
    error = None if sender.cancelled() else sender.exception()
    if error is not None and not isinstance(error, ServiceError):
        raise error


def _failure_of(batch: Batch, status: ServiceStatus, *, fatal: bool) -> Failure:
    message = first_line(status.message) or "the service ended the stream"
    return Failure(batch.first_line, message, details_of(status), status.code, fatal=fatal)
