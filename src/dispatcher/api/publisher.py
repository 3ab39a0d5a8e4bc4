"""PublisherService: one request at a time, or a pipelined stream of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from itertools import islice

from opentelemetry import trace
from webhooks.v1 import event_pb2, publisher_pb2, publisher_pb2_grpc

from dispatcher.api import errors
from dispatcher.api.convert.checks import Violations
from dispatcher.api.convert.events import PublishLimits, publish_results, read_publish
from dispatcher.api.draining import Drain, draining_error
from dispatcher.api.guard import Admission, admission, refuse_malformed
from dispatcher.api.interceptors import Context
from dispatcher.errors import CommitUnknownError, DispatcherError, InvalidRequestError, PermissionDeniedError
from dispatcher.routing.publisher import ChainBrokenError, Publication, Publisher, PublishStream
from dispatcher.telemetry import current_traceparent
from dispatcher.telemetry.tracing import ServerSpan

STREAM_WINDOW_REQUESTS = 128
"""Requests of one stream that may wait for their answer; the next one is read when one has been answered."""
STREAM_WINDOW_BYTES = 8 * 1024 * 1024
"""The same in bytes; one larger request may be in flight alone."""


class PublisherServicer(publisher_pb2_grpc.PublisherServiceServicer):
    """Reads requests, hands them to the publisher, and tells what became of them."""

    def __init__(self, publisher: Publisher, limits: PublishLimits, drain: Drain) -> None:
        self._publisher = publisher
        self._limits = limits
        self._drain = drain

    async def Publish(self, request: publisher_pb2.PublishRequest, context: Context) -> publisher_pb2.PublishResponse:
        admission().publishes(request.parent, types_of(request.events, self._limits))
        violations = Violations()
        tenant, events = read_publish(request.parent, request.events, self._limits, current_traceparent(), violations)
        violations.raise_if_any()
        ServerSpan(trace.get_current_span()).publishes(tenant, len(events))
        published = await self._publisher.publish(Publication(tenant, events, deadline_of(context)))
        return publisher_pb2.PublishResponse(results=publish_results(tenant, published))

    async def PublishStream(
        self, request_iterator: AsyncIterator[publisher_pb2.PublishStreamRequest], context: Context
    ) -> AsyncIterator[publisher_pb2.PublishStreamResponse]:
        session = _Session(self._publisher.stream(), self._limits, deadline_of(context), admission())
        async with _reading(session, request_iterator, self._drain) as reader:
            async for response in session.answers():
                yield response
            if await reader:
                raise draining_error()


def types_of(events: Sequence[event_pb2.Event], limits: PublishLimits) -> frozenset[str]:
    """The types that a request publishes. One with more events than it may have is refused anyway."""
    return frozenset(event.type for event in islice(events, limits.events_max))


def deadline_of(context: Context) -> float | None:
    """The caller's deadline on the monotonic clock, None where it has set none."""
    remaining_s: float | None = context.time_remaining()
    return None if remaining_s is None else time.monotonic() + remaining_s


class _Window:
    """Room for requests in flight: bounded in number and bytes."""

    def __init__(self) -> None:
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._freed = asyncio.Event()

    async def enter(self, size: int) -> None:
        while self._sizes and (len(self._sizes) >= STREAM_WINDOW_REQUESTS or self._bytes + size > STREAM_WINDOW_BYTES):
            self._freed.clear()
            await self._freed.wait()
        self._sizes.append(size)
        self._bytes += size

    def leave(self) -> None:
        """The oldest request has been answered."""
        self._bytes -= self._sizes.popleft()
        self._freed.set()


class _Session:
    """One stream: requests in by `take`, responses out by `answers`, in the same order."""

    def __init__(
        self, stream: PublishStream, limits: PublishLimits, deadline: float | None, admission: Admission
    ) -> None:
        self._admission = admission
        self._stream = stream
        self._limits = limits
        self._deadline = deadline
        self._window = _Window()
        self._tenants: deque[str] = deque()
        self._sequence = 0
        self._broken = False

    async def take(self, request: publisher_pb2.PublishStreamRequest) -> None:
        """The next request; returns once it has its place in the order. Raises UnauthenticatedError where its caller is
        not known any more."""
        await self._admission.next_of_stream()
        refuse_malformed(request)
        await self._window.enter(request.ByteSize())
        violations = Violations()
        if request.client_sequence <= self._sequence:
            violations.add("client_sequence", f"must be higher than {self._sequence}, the one before it")
        self._sequence = max(self._sequence, request.client_sequence)
        tenant, events = read_publish(request.parent, request.events, self._limits, current_traceparent(), violations)
        self._tenants.append(tenant)
        taken: Publication | DispatcherError = Publication(tenant, events, self._deadline)
        try:
            self._admission.publishes(request.parent, types_of(request.events, self._limits))
            violations.raise_if_any()
        except (InvalidRequestError, PermissionDeniedError) as error:
            taken = error
        await self._stream.send(request.client_sequence, taken)

    async def close(self) -> None:
        """No more requests: `answers` ends after the last one."""
        await self._stream.close()

    async def answers(self) -> AsyncIterator[publisher_pb2.PublishStreamResponse]:
        """Each response, in the order of the requests."""
        async with contextlib.aclosing(self._stream.answers()) as answers:  # type: ignore[type-var] # a generator has aclose
            async for sequence, outcome in answers:
                self._window.leave()
                response = publisher_pb2.PublishStreamResponse(client_sequence=sequence)
                tenant = self._tenants.popleft()
                if isinstance(outcome, DispatcherError):
                    response.status.CopyFrom(errors.to_status(self._after_failure(outcome)))
                    yield response
                else:
                    response.status.SetInParent()
                    response.results.extend(publish_results(tenant, outcome))
                    yield response

    def _after_failure(self, error: DispatcherError) -> DispatcherError:
        """The first failure as it is; what follows is ABORTED, whatever else is wrong with it."""
        was_broken, self._broken = self._broken, True
        if not was_broken or isinstance(error, ChainBrokenError | CommitUnknownError):
            return error
        return ChainBrokenError("an earlier request of this stream failed; reopen the stream")


@contextlib.asynccontextmanager
async def _reading(
    session: _Session, requests: AsyncIterator[publisher_pb2.PublishStreamRequest], drain: Drain
) -> AsyncIterator[asyncio.Task[bool]]:
    """Read requests beside the caller's block; the task tells whether the drain cut the stream short."""
    reader = asyncio.create_task(_read(session, requests, drain), name="publish-stream-reader")
    try:
        yield reader
    finally:
        reader.cancel()
        # Its own errors are the caller's to see, by awaiting it; here it only has to have ended.
        await asyncio.wait([reader])


async def _read(session: _Session, requests: AsyncIterator[publisher_pb2.PublishStreamRequest], drain: Drain) -> bool:
    draining = asyncio.create_task(drain.started.wait(), name="publish-stream-drain")
    try:
        while not drain.started.is_set():
            request = await _next(requests, draining)
            if request is None:
                return drain.started.is_set()
            await session.take(request)
        return True
    finally:
        draining.cancel()
        await session.close()


async def _next(
    requests: AsyncIterator[publisher_pb2.PublishStreamRequest], draining: asyncio.Task[bool]
) -> publisher_pb2.PublishStreamRequest | None:
    """The next request; None where the caller has half-closed or the drain came first."""

    async def read() -> publisher_pb2.PublishStreamRequest | None:
        return await anext(requests, None)

    reading = asyncio.create_task(read(), name="publish-stream-read")
    try:
        await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
        return reading.result() if reading.done() else None
    finally:
        reading.cancel()
