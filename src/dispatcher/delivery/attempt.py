"""One attempt: a pipeline over one outbox row.

    render ─▶ sign ─▶ send ─▶ classify ─▶ record

Its result is a fact, appended whether or not this instance still holds the lease; what follows from it (retry, dead
letter, next row) is decided elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Protocol, assert_never

from dispatcher.delivery.endpoint import EndpointRuntime
from dispatcher.delivery.exchange import Exchange, ExchangeKind, WebhookRequest, bounded_error
from dispatcher.delivery.oauth import NoToken, Tokens
from dispatcher.delivery.proxy_records import ProxyRecords
from dispatcher.delivery.render import render
from dispatcher.model import Attempt, OutboxRow, Outcome, TracePropagation
from dispatcher.telemetry import AttemptTrace, Instruments, Tracing
from dispatcher.telemetry.attempt_spans import AttemptSpan

_WORDS = {outcome: outcome.name.lower() for outcome in Outcome}


class Client(Protocol):
    """What sends: `delivery.client.WebhookClient`. Reports every failure as an `Exchange`, never by an exception."""

    async def post(self, request: WebhookRequest) -> Exchange: ...


@dataclass(slots=True)
class AttemptResult:
    """One attempt that was made. `retry_after` is the receiver's header as it came, bounded, or None."""

    attempt: Attempt
    retry_after: str | None
    is_success: bool


class Attempter:
    """Makes attempts. `record` takes each one as it ends (`Flusher.add`), save for most of those that the egress proxy
    fails; it must not wait.

    `wall_clock` (Unix seconds) dates and signs, durations come from the client's monotonic clock.
    """

    def __init__(
        self,
        client: Client,
        record: Callable[[Attempt], None],
        tracing: Tracing,
        instruments: Instruments,
        wall_clock: Callable[[], float] = time.time,
        tokens: Tokens | None = None,
        on_first_ended: Callable[[OutboxRow, float], None] = lambda _row, _age_s: None,
        proxy_records: ProxyRecords | None = None,
    ) -> None:
        """`on_first_ended` is told of each delivery whose first attempt has ended, and of its age (s) then."""
        self._client = client
        self._on_first_ended = on_first_ended
        self._proxy_records = ProxyRecords() if proxy_records is None else proxy_records
        self._tokens = tokens or Tokens(client)
        self._record = record
        self._tracing = tracing
        self._instruments = instruments
        self._wall_clock = wall_clock

    async def attempt(
        self, runtime: EndpointRuntime, row: OutboxRow, number: int, epoch: int, url_index: int = 0
    ) -> AttemptResult:
        """Make attempt `number` (from 1) of `row`, whose payload has been read, under the lease's `epoch`, at the URL
        of that index.

        Cancelled, it leaves no record, since nothing is known: the row stays pending and the receiver may see a copy.
        Raises ValueError where no signing key is live or the payload is missing.
        """
        payload = row.payload
        if payload is None:
            raise ValueError("a row is sent only once its payload has been read")
        propagation = runtime.settings.trace_propagation
        with self._tracing.delivery_span(
            partial(_about, runtime, row, number, url_index),
            payload.traceparent,
            continue_trace=propagation is TracePropagation.CONTINUE,
            is_sent=propagation is not TracePropagation.NONE,
        ) as span:
            start_s = self._wall_clock()
            traceparent = None if propagation is TracePropagation.NONE else span.traceparent
            url, problem = runtime.target(url_index)
            if url is None:
                exchange = refused(problem)
            else:
                request = render(runtime, url, row, number, start_s, traceparent)
                if runtime.credentials.token is None:
                    exchange = await self._client.post(request)
                else:
                    exchange = await authenticated_post(self._client, self._tokens, runtime, request)
            # From here on no await, so that nothing can come between the answer and its record.
            attempt = to_attempt(row, number, epoch, start_s, exchange, url_index)
            if attempt.outcome is not Outcome.EGRESS_PROXY_FAILED or self._proxy_records.take(row.key):
                self._record(attempt)
            self._measure(row, attempt, start_s, span)
            return AttemptResult(attempt, exchange.retry_after, attempt.outcome is Outcome.SUCCEEDED)

    def _measure(self, row: OutboxRow, attempt: Attempt, start_s: float, span: AttemptSpan) -> None:
        word, status_code = _WORDS[attempt.outcome], attempt.status_code
        self._instruments.attempt(word, status_code, attempt.duration_s, span.recorded)
        age_s = start_s + attempt.duration_s - row.time.timestamp()
        if attempt.outcome is Outcome.SUCCEEDED:
            self._instruments.delivered(age_s if age_s > 0 else 0.0, span.recorded)
        if attempt.number == 1 and not row.attempts:
            self._on_first_ended(row, age_s)
        if attempt.outcome in (Outcome.SUCCEEDED, Outcome.HTTP_ERROR) and status_code is not None:
            span.answered(status_code, outcome=word)
        else:
            span.failed(word, outcome=word)


UNAUTHORIZED = 401


async def authenticated_post(
    client: Client, tokens: Tokens, runtime: EndpointRuntime, request: WebhookRequest
) -> Exchange:
    """Post with the token that the endpoint wants, if any; fetching it takes of the request's own time."""
    wanted = runtime.credentials.token
    if wanted is None:
        return await client.post(request)
    start_s = time.monotonic()
    token = await tokens.token(wanted, request.timeout_s)
    took_s = time.monotonic() - start_s
    if isinstance(token, NoToken):
        return Exchange(token.kind, took_s, error=token.problem)
    left_s = request.timeout_s - took_s
    if left_s <= 0:
        return Exchange(ExchangeKind.TIMEOUT, took_s, error="no response before the deadline")
    headers = {**request.headers, "authorization": f"Bearer {token}"}
    exchange = await client.post(replace(request, headers=headers, timeout_s=left_s, used_s=took_s))
    if exchange.status_code == UNAUTHORIZED:
        tokens.forget(wanted, token)
    return replace(exchange, duration_s=exchange.duration_s + took_s)


def outcome_of(exchange: Exchange) -> Outcome:  # noqa: C901 -- one line for each of a closed enum
    """The closed outcome: 2xx succeeded, any other whole response is an HTTP error, else whatever broke it."""
    match exchange.kind:
        case ExchangeKind.RESPONSE:
            return Outcome.SUCCEEDED if exchange.is_success else Outcome.HTTP_ERROR
        case ExchangeKind.TIMEOUT:
            return Outcome.TIMEOUT
        case ExchangeKind.CONNECTION_FAILED:
            return Outcome.CONNECTION_FAILED
        case ExchangeKind.TLS_FAILED:
            return Outcome.TLS_FAILED
        case ExchangeKind.NAME_NOT_RESOLVED:
            return Outcome.NAME_NOT_RESOLVED
        case ExchangeKind.ADDRESS_REFUSED:
            return Outcome.ADDRESS_REFUSED
        case ExchangeKind.INVALID_RESPONSE:
            return Outcome.INVALID_RESPONSE
        case ExchangeKind.RESPONSE_TOO_LARGE:
            return Outcome.RESPONSE_TOO_LARGE
        case ExchangeKind.AUTHENTICATION_FAILED:
            return Outcome.AUTHENTICATION_FAILED
        case ExchangeKind.EGRESS_PROXY_FAILED:
            return Outcome.EGRESS_PROXY_FAILED
    assert_never(exchange.kind)


def to_attempt(
    row: OutboxRow, number: int, epoch: int, start_s: float, exchange: Exchange, url_index: int = 0
) -> Attempt:
    """The fact as it is stored; error and excerpt are kept of failures only. Where the egress proxy failed, `number` is
    not used up: it is the next one's, too."""
    outcome = outcome_of(exchange)
    failed = outcome is not Outcome.SUCCEEDED
    return Attempt(
        row.key,
        row.seq,
        row.event_id,
        epoch,
        number if outcome is not Outcome.EGRESS_PROXY_FAILED else number - 1,
        datetime.fromtimestamp(start_s, UTC),
        exchange.duration_s,
        outcome,
        exchange.status_code,
        error=bounded_error(exchange.error) or None if failed else None,
        response_excerpt=exchange.excerpt or None if failed else None,
        url_index=url_index,
    )


def refused(problem: str) -> Exchange:
    """The exchange that never took place: the endpoint's stored URL is one that the present rules refuse."""
    return Exchange(ExchangeKind.ADDRESS_REFUSED, 0.0, error=problem)


def _about(runtime: EndpointRuntime, row: OutboxRow, number: int, url_index: int) -> AttemptTrace:
    urls = runtime.policies.admission.urls
    return AttemptTrace(
        tenant=runtime.tenant_name,
        endpoint=runtime.endpoint_name,
        sequence=row.seq,
        event_id=row.event_id,
        event_type=row.type,
        attempt_number=number,
        url=urls[url_index] if url_index < len(urls) else runtime.settings.url,
        body_bytes=row.data_bytes,
    )
