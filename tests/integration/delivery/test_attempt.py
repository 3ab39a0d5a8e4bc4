"""The whole pipeline over a real socket: what a receiver gets, and what is kept of how it answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from opentelemetry.trace import NoOpTracer
from standardwebhooks import Webhook

from dispatcher.delivery.attempt import Attempter
from dispatcher.delivery.client import WebhookClient
from dispatcher.delivery.prober import Prober
from dispatcher.model import Attempt, Outcome
from dispatcher.security.egress import EgressPolicy
from dispatcher.telemetry import Instruments, Tracing
from tests.support.deliveries import row_of
from tests.support.endpoints import SECRET_TEXT, runtime_of
from tests.support.tasks import until

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Receiver:
    """A real server; `received` are (raw headers, body), `answer` what comes next."""

    url: str = ""
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answer: Answer | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.decode().lower(): value.decode() for name, value in request.raw_headers}
        self.received.append((headers, await request.read()))
        return await self.answer(request) if self.answer else web.Response(text="thanks")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hook", made.handle)
    async with TestServer(app) as server:
        made.url = str(server.make_url("/hook"))
        yield made


@contextlib.asynccontextmanager
async def attempting(policy: EgressPolicy | None = None) -> AsyncIterator[tuple[Attempter, list[Attempt]]]:
    recorded: list[Attempt] = []
    async with WebhookClient(policy or EgressPolicy.for_development()) as client:
        yield Attempter(client, recorded.append, Tracing(NoOpTracer()), Instruments.silent()), recorded


async def test_the_receiver_gets_the_published_bytes_signed_and_nothing_it_was_not_promised(receiver: Receiver):
    body = b'{"name":"Zo\xc3\xab",  "n":1}'
    async with attempting() as (attempter, recorded):
        result = await attempter.attempt(runtime_of(url=receiver.url), row_of(3, data=body, ordering_key="c-7"), 2, 1)
    ((headers, got),) = receiver.received
    assert result.is_success
    assert got == body
    Webhook(SECRET_TEXT).verify(got, headers)
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 5
    promised = {
        "content-type": "application/json",
        "user-agent": "dispatcher/0.1.0",
        "webhook-attempt": "2",
        "webhook-event-type": "order.paid",
        "webhook-id": "event-3",
        "webhook-ordering-key": "c-7",
        "webhook-sequence": "3",
    }
    assert {name: headers[name] for name in promised} == promised
    transport = {"host", "content-length", "accept", "accept-encoding"}
    assert set(headers) - transport == {*promised, "webhook-signature", "webhook-timestamp"}
    assert recorded[0].response_excerpt is None


async def test_a_retry_on_the_wire_differs_in_timestamp_signature_and_attempt_alone(receiver: Receiver):
    runtime, row = runtime_of(url=receiver.url, headers={"X-Team": "billing"}), row_of(3)
    async with attempting() as (attempter, _):
        for number in (1, 2):
            await attempter.attempt(runtime, row, number, 1)
    (first, first_body), (second, second_body) = receiver.received
    differing = {name for name in first if first[name] != second[name]}
    assert first.keys() == second.keys()
    assert differing <= {"webhook-timestamp", "webhook-signature", "webhook-attempt"}
    assert "webhook-attempt" in differing
    assert first_body == second_body


async def test_a_failing_answer_is_kept_in_part(receiver: Receiver):
    async def overloaded(_: web.Request) -> web.Response:
        return web.Response(status=503, body=b"\0" + b"x" * 100_000, headers={"Retry-After": "7"})

    receiver.answer = overloaded
    async with attempting() as (attempter, (*_,)):
        result = await attempter.attempt(runtime_of(url=receiver.url), row_of(), 1, 1)
    attempt = result.attempt
    assert (attempt.outcome, attempt.status_code, result.retry_after) == (Outcome.HTTP_ERROR, 503, "7")
    assert attempt.response_excerpt.startswith(b"\0xxx")
    assert len(attempt.response_excerpt) == 1024


async def test_no_failures_record_shows_the_urls_query(receiver: Receiver):
    runtime = runtime_of(url=f"http://127.0.0.1:{unused_port()}/hook?token=s3cret")
    private = runtime_of(url=f"{receiver.url}?token=s3cret")
    async with attempting() as (attempter, recorded):
        await attempter.attempt(runtime, row_of(), 1, 1)
    async with attempting(EgressPolicy()) as (attempter, more):
        await attempter.attempt(private, row_of(), 1, 1)
    assert [attempt.outcome for attempt in recorded + more] == [Outcome.CONNECTION_FAILED, Outcome.ADDRESS_REFUSED]
    for attempt in recorded + more:
        assert attempt.error
        assert "s3cret" not in attempt.error
    assert receiver.received == []


async def test_the_endpoints_timeout_ends_an_attempt(receiver: Receiver):
    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    receiver.answer = silent
    async with attempting() as (attempter, recorded):
        await attempter.attempt(runtime_of(url=receiver.url, timeout_s=0.1), row_of(), 1, 1)
    assert recorded[0].outcome is Outcome.TIMEOUT
    assert 0.1 <= recorded[0].duration_s < 3


async def test_an_attempt_cancelled_before_its_answer_leaves_no_record_and_no_request_behind(receiver: Receiver):
    gone = asyncio.Event()

    async def never(request: web.Request) -> web.Response:
        try:
            await asyncio.sleep(30)
        finally:
            gone.set()
        return web.Response()

    receiver.answer = never
    async with attempting() as (attempter, recorded):
        task = asyncio.create_task(attempter.attempt(runtime_of(url=receiver.url), row_of(), 1, 1))
        await until(lambda: receiver.received, "the request")
        task.cancel()
        await asyncio.wait([task])
        assert recorded == []


async def test_a_ping_tells_what_the_receiver_said(receiver: Receiver):
    async with WebhookClient(EgressPolicy.for_development()) as client:
        result = await Prober(client).ping(runtime_of(url=receiver.url))
    ((headers, body),) = receiver.received
    Webhook(SECRET_TEXT).verify(body, headers)
    assert "webhook-sequence" not in headers
    assert (result.status_code, result.response_excerpt) == (200, b"thanks")
    assert 0 < result.latency_s < 5
