"""Publishing: find who gets an event, commit, and go round again where the routing had changed meanwhile.

events ──> routes (cached) ──> fan-out ──> group commit ──> accepted: answer
              ^                                │
              └── invalidate, load anew <── stale (publish() compared the tenant's routing version)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from dispatcher.errors import (
    AlreadyExistsError,
    DispatcherError,
    OverloadedError,
    PreconditionError,
)
from dispatcher.model import NewEvent, PublishedEvent
from dispatcher.routing.cache import SubscriptionCache, TenantRoutes
from dispatcher.routing.quotas import Quotas
from dispatcher.store.group_commit import Chain, GroupCommit
from dispatcher.store.publish import PublishRequest, RequestResult, Verdict
from dispatcher.telemetry import Tracing

ROUTING_TRIES_MAX = 8
"""A tenant whose endpoints change faster than that is answered RESOURCE_EXHAUSTED."""


class ChainBrokenError(DispatcherError):
    """An earlier request of the stream failed: this one was not written. Reopen the stream."""

    default_reason = "STREAM_ABORTED"


@dataclass(frozen=True, slots=True)
class Publication:
    """One Publish call after validation. `deadline` is on the monotonic clock, None for none. `is_own`: the service's
    own events, which no quota binds."""

    tenant: str
    events: tuple[NewEvent, ...]
    deadline: float | None = None
    is_own: bool = False


class Publisher:
    """Unary publishing; `stream` opens a session whose requests keep their order."""

    def __init__(
        self,
        cache: SubscriptionCache,
        commits: GroupCommit,
        *,
        rows_max: int,
        quotas: Quotas | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._quotas = quotas or Quotas(lambda: 1)
        self._tracing = tracing or Tracing.silent()
        self._cache = cache
        self._commits = commits
        self._rows_max = rows_max

    async def publish(self, publication: Publication) -> tuple[PublishedEvent, ...]:
        """Returns once all events are durable, in the order given. Raises a DispatcherError; then none was stored
        (save CommitUnknownError)."""
        await self.admit(publication)
        for _ in range(ROUTING_TRIES_MAX):
            request = await self.route(publication)
            with self._tracing.commit_span():
                result = await self._commits.submit(request, deadline=publication.deadline)
            if result.verdict is not Verdict.STALE:
                return answer(request, result)
            self._cache.invalidate(request.tenant_id, request.version)
        raise routing_unsettled(publication)

    async def admit(self, publication: Publication) -> None:
        """Charge the tenant's quota, once for a request however often it goes round. Errors: QuotaExceededError,
        NotFoundError, UnavailableError."""
        if not publication.is_own:
            routes = await self._cache.routes(publication.tenant)
            self._quotas.charge(routes.tenant_id, publication.tenant, routes.publish_quota, publication.events)

    async def route(self, publication: Publication, chain: Chain | None = None) -> PublishRequest:
        """The request with its fan-out under the cached routing version."""
        routes = await self._cache.routes(publication.tenant)
        _check_types(publication.tenant, routes, publication.events)
        fan_out = tuple(routes.matcher.endpoints_for(event.type) for event in publication.events)
        request = PublishRequest(
            routes.tenant_id,
            publication.tenant,
            routes.version,
            publication.events,
            fan_out,
            0 if chain is None else chain.number,
        )
        if request.row_count > self._rows_max:
            raise PreconditionError(
                f"the request fans out to {request.row_count} deliveries, {self._rows_max} are allowed",
                reason="FAN_OUT_TOO_LARGE",
                subject=f"tenants/{publication.tenant}",
            )
        return request

    def enqueue(self, request: PublishRequest, deadline: float | None, chain: Chain) -> asyncio.Future[RequestResult]:
        return self._commits.enqueue(request, deadline=deadline, chain=chain)

    def forget(self, request: PublishRequest) -> None:
        """Load the tenant's routes anew before the next request."""
        self._cache.invalidate(request.tenant_id, request.version)

    def stream(self) -> PublishStream:
        return PublishStream(self)


def _check_types(tenant: str, routes: TenantRoutes, events: Sequence[NewEvent]) -> None:
    """Whether a type is registered is a matter of the catalogue's state, not of the request: FAILED_PRECONDITION."""
    for i, event in enumerate(events):
        if not routes.accepts(event.type):
            raise PreconditionError(
                f"events[{i}].type: {event.type!r} is not registered with tenants/{tenant}, or archived",
                reason="EVENT_TYPE_NOT_REGISTERED",
                subject=f"tenants/{tenant}/eventTypes/{event.type}",
            )


def answer(request: PublishRequest, result: RequestResult) -> tuple[PublishedEvent, ...]:
    """The results of a request that has come to an end, or its error. STALE is the caller's to repeat."""
    match result.verdict:
        case Verdict.ACCEPTED:
            return result.events
        case Verdict.ID_REUSED:
            raise AlreadyExistsError(
                f"an event id of this request was used in tenants/{request.tenant_name} with other content",
                reason="EVENT_ID_REUSED",
            )
        case Verdict.CHAIN_BROKEN:
            raise ChainBrokenError("an earlier request of this stream failed; reopen the stream")
        case Verdict.STALE:
            raise routing_unsettled(Publication(request.tenant_name, request.events))
        case _:
            assert_never(result.verdict)


def routing_unsettled(publication: Publication) -> OverloadedError:
    return OverloadedError(
        f"the endpoints of tenants/{publication.tenant} keep changing; nothing was written",
        retry_after_s=0.5,
        reason="ROUTING_UNSETTLED",
    )


@dataclass(slots=True, eq=False)
class _Sent:
    """A request of a stream on its way; `error` is set where it never reached the queue."""

    publication: Publication
    sequence: int
    request: PublishRequest | None = None
    future: asyncio.Future[RequestResult] | None = None
    error: DispatcherError | None = None
    tries: int = 1


StreamAnswer = tuple[int, tuple[PublishedEvent, ...] | DispatcherError]
"""The caller's sequence, and the results or the error of that request."""


class PublishStream:
    """The requests of one stream: pipelined, committed in the order sent, none after one that failed.

    One task sends, one reads `answers`. A stale request takes all that were sent after it round again with it.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._chain = Chain()
        self._failed = False
        self._answered_failure = False
        self._pending: deque[_Sent] = deque()
        self._changed = asyncio.Condition()
        self._routing = asyncio.Lock()
        self._closed = False

    @property
    def pending(self) -> int:
        return len(self._pending)

    async def send(self, sequence: int, publication: Publication | DispatcherError) -> None:
        """Take the next place in the stream. An error in place of a publication is answered in its turn."""
        async with self._routing:
            if isinstance(publication, DispatcherError):
                self._pending.append(_Sent(Publication("", ()), sequence, error=publication))
                self._failed = True
            else:
                sent = _Sent(publication, sequence)
                self._pending.append(sent)
                await self._admit(sent)
                await self._enqueue(sent)
            await self._notify()

    async def close(self) -> None:
        """No more requests; `answers` ends after the last."""
        self._closed = True
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _admit(self, sent: _Sent) -> None:
        if self._failed:
            return
        try:
            await self._publisher.admit(sent.publication)
        except DispatcherError as error:
            self._failed = True
            sent.error = error

    async def _enqueue(self, sent: _Sent) -> None:
        if sent.error is not None:
            return  # the quota refused it
        sent.request = sent.future = None
        if self._failed:
            sent.error = ChainBrokenError("an earlier request of this stream failed; reopen the stream")
            return
        try:
            sent.request = await self._publisher.route(sent.publication, self._chain)
            sent.future = self._publisher.enqueue(sent.request, sent.publication.deadline, self._chain)
        except DispatcherError as error:
            self._failed = True
            sent.error = error

    async def answers(self) -> AsyncIterator[StreamAnswer]:
        """One answer per request in the order sent, each after its commit."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._pending or self._closed)
            if not self._pending:
                return
            sent = self._pending[0]
            outcome = await self._outcome(sent)
            if outcome is None:
                continue  # stale: it and all behind it are on their way again
            self._pending.popleft()
            yield sent.sequence, outcome

    async def _outcome(self, sent: _Sent) -> tuple[PublishedEvent, ...] | DispatcherError | None:
        try:
            if sent.future is None or sent.request is None:
                return sent.error or ChainBrokenError("the stream is broken")
            result = await sent.future
            if result.verdict is Verdict.STALE and sent.tries < ROUTING_TRIES_MAX:
                await self._repeat(sent)
                return None
            return answer(sent.request, result)
        except DispatcherError as error:
            self._failed = self._answered_failure = True
            return error

    async def _repeat(self, stale: _Sent) -> None:
        """Send again, in order, the stale request and those behind it, none of which has been written."""
        async with self._routing:
            for sent in self._pending:
                if sent.future is not None:
                    await asyncio.wait([sent.future])
            self._chain = Chain()
            if stale.request is not None:
                self._publisher.forget(stale.request)
            stale.tries += 1
            # A failure breaks what was sent after it, not what goes round again before it. One that was answered came
            # before all of them.
            failed, self._failed = self._failed, self._answered_failure
            for sent in self._pending:
                if sent.future is not None:
                    await self._enqueue(sent)
                else:
                    self._failed = True
            self._failed |= failed
