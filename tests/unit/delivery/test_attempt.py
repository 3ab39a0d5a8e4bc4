"""The pipeline of one attempt: what it records, whatever the receiver, the span or a cancellation does."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracer, SpanKind, StatusCode

from dispatcher.delivery.attempt import Attempter, outcome_of
from dispatcher.delivery.exchange import Exchange, ExchangeKind
from dispatcher.delivery.proxy_records import ProxyRecords
from dispatcher.model import Attempt, Outcome, Payload, TracePropagation
from dispatcher.telemetry import Instruments, Tracing
from tests.support.deliveries import NOW, row_of
from tests.support.endpoints import runtime_of
from tests.support.exchanges import OK, Receiver
from tests.support.tasks import until
from tests.support.tracing import tracing_to

NOW_S = NOW.timestamp() + 2.0
PUBLISHER = f"00-{'a' * 32}-{'b' * 16}-01"


class Noted(Instruments):
    """Instruments that remember what the pipeline told."""

    def __init__(self, meter) -> None:
        super().__init__(meter)
        self.attempts: list[tuple[str, int | None, float]] = []
        self.latencies_s: list[float] = []

    def attempt(self, outcome: str, status_code: int | None, duration_s: float, span: object = None) -> None:
        self.attempts.append((outcome, status_code, duration_s))

    def delivered(self, latency_s: float, span: object = None) -> None:
        self.latencies_s.append(latency_s)


class Bench:
    def __init__(self, answer: Exchange = OK, sampler=None) -> None:
        self.spans = InMemorySpanExporter()
        self.receiver = Receiver(answer)
        self.recorded: list[Attempt] = []
        self.instruments = Noted.silent()
        self.tracing = tracing_to(self.spans, sampler=sampler)
        self.attempter = self.make(self.tracing)

    def make(self, tracing) -> Attempter:
        return Attempter(
            self.receiver,
            self.recorded.append,
            tracing,
            self.instruments,
            wall_clock=lambda: NOW_S,
            proxy_records=ProxyRecords(0.0),
        )

    async def attempt(self, row=None, number=1, **settings):
        return await self.attempter.attempt(runtime_of(**settings), row or row_of(), number, 5)

    @property
    def sent_traceparent(self) -> str | None:
        return self.receiver.requests[-1].headers.get("traceparent")


async def test_of_what_the_egress_proxy_fails_in_a_row_one_is_recorded():
    bench = Bench(Exchange(ExchangeKind.EGRESS_PROXY_FAILED, 0.1, error="the egress proxy is not reached"))
    attempter = Attempter(
        bench.receiver, bench.recorded.append, bench.tracing, bench.instruments, proxy_records=ProxyRecords(60.0)
    )
    for _ in range(3):
        await attempter.attempt(runtime_of(), row_of(), 1, 5)
    assert len(bench.recorded) == 1
    assert len(bench.receiver.requests) == 3


async def test_what_the_egress_proxy_failed_bears_the_number_of_the_attempt_before_it():
    bench = Bench(Exchange(ExchangeKind.EGRESS_PROXY_FAILED, 0.1, error="the egress proxy is not reached"))
    for number in (1, 4):
        result = await bench.attempt(number=number)
        assert (result.is_success, result.attempt.outcome) == (False, Outcome.EGRESS_PROXY_FAILED)
        assert bench.receiver.requests[-1].headers["webhook-attempt"] == str(number)
    assert [attempt.number for attempt in bench.recorded] == [0, 3]
    assert bench.recorded[0].error == "the egress proxy is not reached"
    assert [word for word, *_ in bench.instruments.attempts] == ["egress_proxy_failed"] * 2


async def test_a_success_is_recorded_as_the_acknowledgement_without_what_the_receiver_said():
    bench = Bench()
    result = await bench.attempt(row_of(9), number=3)
    assert bench.recorded == [
        Attempt(
            key=row_of().key,
            seq=9,
            event_id="event-9",
            epoch=5,
            number=3,
            start_time=datetime.fromtimestamp(NOW_S, UTC),
            duration_s=0.25,
            outcome=Outcome.SUCCEEDED,
            status_code=204,
            error=None,
            response_excerpt=None,
        )
    ]
    assert result.attempt is bench.recorded[0]
    assert result.is_success
    assert result.retry_after is None


async def test_a_failure_keeps_status_excerpt_and_retry_after():
    bench = Bench(Exchange(ExchangeKind.RESPONSE, 0.1, 503, "30", b"\0overloaded"))
    result = await bench.attempt()
    (attempt,) = bench.recorded
    assert (attempt.outcome, attempt.status_code, attempt.error) == (Outcome.HTTP_ERROR, 503, None)
    assert attempt.response_excerpt == b"\0overloaded"
    assert result.retry_after == "30"
    assert not result.is_success


@pytest.mark.parametrize("status_code", [100, 101, 199, 300, 301, 304, 400, 410, 429, 500, 599, 999])
async def test_every_status_but_2xx_is_an_http_error(status_code):
    assert outcome_of(Exchange(ExchangeKind.RESPONSE, 0.1, status_code)) is Outcome.HTTP_ERROR


@pytest.mark.parametrize("status_code", [200, 201, 202, 204, 299])
async def test_every_2xx_is_a_success(status_code):
    assert outcome_of(Exchange(ExchangeKind.RESPONSE, 0.1, status_code)) is Outcome.SUCCEEDED


@pytest.mark.parametrize("kind", [kind for kind in ExchangeKind if kind is not ExchangeKind.RESPONSE])
async def test_a_broken_exchange_is_a_failure_of_its_own_name_even_if_a_200_had_begun(kind):
    assert outcome_of(Exchange(kind, 0.1, 200)) is Outcome[kind.name]


async def test_an_error_text_is_bounded_and_without_control_characters():
    bench = Bench(Exchange(ExchangeKind.CONNECTION_FAILED, 0.1, error="no\0way\r\n" + "x" * 999))
    await bench.attempt()
    (attempt,) = bench.recorded
    assert attempt.error.startswith("no?way")
    assert attempt.error.isprintable()
    assert len(attempt.error) <= 200


async def test_an_endpoint_whose_url_is_refused_now_fails_without_a_request():
    bench = Bench()
    await bench.attempt(url="ftp://receiver.example/?token=secret")
    (attempt,) = bench.recorded
    assert bench.receiver.requests == []
    assert attempt.outcome is Outcome.ADDRESS_REFUSED
    assert "https://" in attempt.error
    assert "secret" not in attempt.error


async def test_the_payload_must_have_been_read():
    bench = Bench()
    with pytest.raises(ValueError, match="payload"):
        await bench.attempt(row_of(payload=None))
    assert bench.recorded == []


async def test_metrics_tell_outcome_duration_and_latency_since_publish():
    bench = Bench()
    await bench.attempt()
    bench.receiver.answer = Exchange(ExchangeKind.TIMEOUT, 5.0)
    await bench.attempt()
    assert bench.instruments.attempts == [("succeeded", 204, 0.25), ("timeout", None, 5.0)]
    assert bench.instruments.latencies_s == [pytest.approx(2.25)]


async def test_one_client_span_per_attempt_linked_to_the_publisher():
    bench = Bench()
    await bench.attempt(row_of(7, payload=Payload(b"{}", "application/json", PUBLISHER)), number=4)
    (span,) = bench.spans.get_finished_spans()
    assert span.kind is SpanKind.CLIENT
    assert span.parent is None
    assert [f"{link.context.trace_id:032x}" for link in span.links] == ["a" * 32]
    assert span.attributes["http.response.status_code"] == 204
    assert span.attributes["http.request.resend_count"] == 3
    assert span.attributes["messaging.message.id"] == "event-7"
    assert span.attributes["messaging.destination.name"] == "tenants/acme/endpoints/billing"
    assert span.status.status_code is StatusCode.UNSET


async def test_a_failed_attempts_span_names_the_error_by_a_word_of_a_closed_set():
    bench = Bench(Exchange(ExchangeKind.TLS_FAILED, 0.1, error="the certificate is not trusted: …"))
    await bench.attempt()
    (span,) = bench.spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "tls_failed"
    assert "certificate" not in str(span.attributes)


async def test_by_default_the_receiver_gets_no_trace_context():
    bench = Bench()
    await bench.attempt(row_of(payload=Payload(b"{}", "application/json", PUBLISHER)))
    assert bench.sent_traceparent is None


async def test_new_root_sends_the_attempts_own_context():
    bench = Bench()
    await bench.attempt(
        row_of(payload=Payload(b"{}", "application/json", PUBLISHER)), trace_propagation=TracePropagation.NEW_ROOT
    )
    (span,) = bench.spans.get_finished_spans()
    assert bench.sent_traceparent == f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
    assert "a" * 32 not in bench.sent_traceparent


async def test_continue_sends_a_child_of_the_publishers_span():
    bench = Bench()
    await bench.attempt(
        row_of(payload=Payload(b"{}", "application/json", PUBLISHER)), trace_propagation=TracePropagation.CONTINUE
    )
    (span,) = bench.spans.get_finished_spans()
    assert f"{span.parent.span_id:016x}" == "b" * 16
    assert bench.sent_traceparent == f"00-{'a' * 32}-{span.context.span_id:016x}-01"


async def test_continue_passes_the_publishers_context_through_where_nothing_is_traced_here():
    bench = Bench()
    bench.attempter = bench.make(Tracing(NoOpTracer()))
    await bench.attempt(
        row_of(payload=Payload(b"{}", "application/json", PUBLISHER)), trace_propagation=TracePropagation.CONTINUE
    )
    assert bench.sent_traceparent == PUBLISHER


async def test_an_unsampled_attempt_leaves_no_span_but_its_record():
    bench = Bench(sampler=ALWAYS_OFF)
    await bench.attempt()
    assert bench.spans.get_finished_spans() == ()
    assert len(bench.recorded) == 1


async def test_an_attempt_cancelled_in_flight_stops_the_request_and_decides_nothing():
    bench = Bench()
    bench.receiver.open.clear()
    task = asyncio.create_task(bench.attempt())
    await until(lambda: bench.receiver.requests, "the request")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.recorded == []
    assert bench.receiver.stopped
    (span,) = bench.spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR


async def test_each_attempt_is_signed_at_its_own_time():
    bench = Bench()
    times = iter([NOW_S, NOW_S + 60])
    bench.attempter._wall_clock = lambda: next(times)
    await bench.attempt()
    await bench.attempt(number=2)
    first, second = bench.receiver.requests
    assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 60
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
    assert replace(first, headers={}) == replace(second, headers={})
