"""A service made of answers: real gRPC over a real channel, without anything behind it, for tests of its clients.

`FakePublisher` keeps the rules of PublishStream (commit in order, ABORTED after a failure, duplicates by id) and does
to each request what the test's `decide` says. `FakeResources` answers any other method from a table and remembers
what it was asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from webhooks.v1 import publisher_pb2, publisher_pb2_grpc

DOMAIN = "webhooks.dispatcher"


def refusal(code: int, message: str, reason: str, *details: Message) -> status_pb2.Status:
    """A status as the service makes it: an ErrorInfo, then `details`."""
    packed = []
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN), *details):
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code, message=message, details=packed)


def retry_info(delay_s: float) -> error_details_pb2.RetryInfo:
    """RetryInfo with that delay."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(delay_s * 1e9))
    return info


def bad_request(field_: str, description: str) -> error_details_pb2.BadRequest:
    """BadRequest with one field."""
    violation = error_details_pb2.BadRequest.FieldViolation(field=field_, description=description)
    return error_details_pb2.BadRequest(field_violations=[violation])


def abort_with(context: grpc.ServicerContext, status: status_pb2.Status) -> None:
    """End the call as the service does: the status in the trailers."""
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    context.abort(code, status.message)


@dataclass(frozen=True, slots=True)
class Break:
    """End the stream with this code; the request is committed first where `after_commit`."""

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    after_commit: bool = False


@dataclass(frozen=True, slots=True)
class Hang:
    """Answer nothing until the client gives up."""


@dataclass(frozen=True, slots=True)
class EndInPeace:
    """End the stream with OK and leave the request unanswered, as a draining server does with what it hasn't read."""


Decision = None | status_pb2.Status | Break | Hang | EndInPeace
Request = publisher_pb2.PublishStreamRequest


class FakePublisher(publisher_pb2_grpc.PublisherServiceServicer):
    """`decide(request, number)`, number from 1 over all streams, says what becomes of a request; None commits it."""

    def __init__(self, decide: Callable[[Request, int], Decision] = lambda _request, _number: None) -> None:
        self.decide = decide
        self.committed: list[publisher_pb2.PublishStreamRequest] = []
        self.events: list[Any] = []
        self.stream_times: list[float] = []
        self.parents: set[str] = set()
        self._ids: set[str] = set()
        self.hung = False
        self._seen = 0

    def PublishStream(self, requests: Iterator[Request], context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802 - as the stub names it
        self.stream_times.append(time.monotonic())
        aborted = False
        last = 0
        for request in requests:
            assert request.client_sequence > last, "client_sequence must grow on a stream"
            last = request.client_sequence
            if aborted:
                status = refusal(code_pb2.ABORTED, "an earlier request failed", "STREAM_ABORTED")
                yield publisher_pb2.PublishStreamResponse(client_sequence=last, status=status)
                continue
            self._seen += 1
            match self.decide(request, self._seen):
                case None:
                    yield self._commit(request)
                case Break(code, after_commit):
                    if after_commit:
                        self._commit(request)
                    context.abort(code, "the connection broke")
                case Hang():
                    self.hung = True
                    while context.is_active():
                        time.sleep(0.01)
                    return
                case EndInPeace():
                    return
                case status:
                    aborted = True
                    yield publisher_pb2.PublishStreamResponse(client_sequence=last, status=status)

    def _commit(self, request: Request) -> publisher_pb2.PublishStreamResponse:
        self.parents.add(request.parent)
        results = []
        for event in request.events:
            duplicate = event.id in self._ids
            if not duplicate:
                self._ids.add(event.id)
                self.events.append(event)
            results.append(publisher_pb2.PublishResult(event_id=event.id, duplicate=duplicate, endpoint_count=1))
        return publisher_pb2.PublishStreamResponse(
            client_sequence=request.client_sequence, status=status_pb2.Status(), results=results
        )


@dataclass(slots=True)
class FakeResources(grpc.GenericRpcHandler):
    """`answers["TenantService.GetTenant"]` is a message, a status, or a list of them to be used up one by one."""

    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method.removeprefix("/webhooks.v1.").replace("/", ".")
        if method not in self.answers:
            return None
        described = descriptor_pool.Default().FindMethodByName(f"webhooks.v1.{method}")
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(method, request, context),
            request_deserializer=message_factory.GetMessageClass(described.input_type).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _answer(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls.append((method, request))
        answer = self.answers[method]
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, status_pb2.Status):
            abort_with(context, answer)
        return answer


@contextmanager
def fake_service(publisher: FakePublisher | None = None, resources: FakeResources | None = None) -> Iterator[str]:
    """Serve on a free port of loopback; yields host:port."""
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    if publisher is not None:
        publisher_pb2_grpc.add_PublisherServiceServicer_to_server(publisher, server)
    if resources is not None:
        server.add_generic_rpc_handlers((resources,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(5)
