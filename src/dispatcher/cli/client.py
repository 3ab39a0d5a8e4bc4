"""The only module of the command line that imports grpc and the generated code.

Requests and answers of plain calls are proto JSON as dictionaries; a stream of events takes records. gRPC's own
retries are off: whoever retries must know that nothing was written or that the events have ids.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from webhooks.v1 import dead_letter_pb2 as _dead_letter
from webhooks.v1 import delivery_pb2 as _delivery
from webhooks.v1 import endpoint_pb2 as _endpoint
from webhooks.v1 import event_pb2, publisher_pb2, publisher_pb2_grpc
from webhooks.v1 import event_type_pb2 as _event_type
from webhooks.v1 import replay_pb2 as _replay
from webhooks.v1 import tenant_pb2 as _tenant

from dispatcher.cli.credentials import NOBODY, Credentials
from dispatcher.cli.failure import CliError, UsageError
from dispatcher.cli.records import EventRecord
from dispatcher.cli.status import OK_STATUS, Code, ServiceError, ServiceStatus, Violation
from dispatcher.cli.window import Answer

SERVICES = (_dead_letter, _delivery, _endpoint, _event_type, _replay, _tenant)
"""Imported so that their methods are found by name."""
PACKAGE = "webhooks.v1"
CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.primary_user_agent", "dispatcher-cli"),
]
DETAILS_KEY = "grpc-status-details-bin"
CORE_LOST_STATUS = "Internal error from Core"
"""What grpc.aio makes up where a write fails before the status of a stream that ended has been read."""
CALL_TRIES_MAX = 3
COMMIT_UNKNOWN = "COMMIT_UNKNOWN"


def _metadata(credentials: Credentials) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {credentials.token}"),) if credentials.token else ()


def _tls(credentials: Credentials) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(credentials.roots, credentials.key, credentials.chain)


class Client:
    """Plain calls over one channel. Use it as a context manager."""

    def __init__(self, target: str, timeout_s: float, credentials: Credentials = NOBODY) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self._metadata = _metadata(credentials)
        if credentials.with_tls:
            self._channel = grpc.secure_channel(target, _tls(credentials), options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """Call `Service.Method` of webhooks.v1 with proto JSON; the answer likewise.

        Tried again, within the timeout, only where the service says that nothing was written (RetryInfo without
        COMMIT_UNKNOWN). Raises ServiceError, and UsageError for a request that does not fit its message.
        """
        described = descriptor_pool.Default().FindMethodByName(f"{PACKAGE}.{method}")
        try:
            message = json_format.ParseDict(request, message_factory.GetMessageClass(described.input_type)())
        except json_format.ParseError as error:
            raise UsageError(f"{method}: {error}") from error
        answer_class = message_factory.GetMessageClass(described.output_type)
        invoke: Any = self._channel.unary_unary(
            f"/{PACKAGE}.{method.replace('.', '/')}",
            request_serializer=lambda sent: sent.SerializeToString(),
            response_deserializer=answer_class.FromString,
        )
        answer = self._call(invoke, message, method)
        found: dict[str, Any] = json_format.MessageToDict(answer)
        return found

    def health(self, service: str) -> str:
        """What grpc.health.v1 says of a service, "" for all of them: SERVING, NOT_SERVING. Raises ServiceError."""
        request = health_pb2.HealthCheckRequest(service=service)
        stub: Any = health_pb2_grpc.HealthStub(self._channel)
        try:
            answer = stub.Check(request, timeout=self.timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise ServiceError(status_of(error), method="Health.Check", target=self.target) from error
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def _call(self, invoke: Any, message: Any, method: str) -> Any:
        end = time.monotonic() + self.timeout_s
        tries = 1
        while True:
            try:
                return invoke(message, timeout=max(0.001, end - time.monotonic()), metadata=self._metadata)
            except grpc.RpcError as error:
                status = status_of(error)
                delay_s = status.retry_delay_s
                if (
                    delay_s is None
                    or status.reason == COMMIT_UNKNOWN
                    or tries == CALL_TRIES_MAX
                    or time.monotonic() + delay_s >= end
                ):
                    raise ServiceError(status, method=method, target=self.target) from error
            tries += 1
            time.sleep(delay_s)


class Publisher:
    """Opens streams of events over one channel, from within a running event loop."""

    METHOD = "PublisherService.PublishStream"

    def __init__(self, target: str, credentials: Credentials = NOBODY) -> None:
        self.target = target
        self._metadata = _metadata(credentials)
        if credentials.with_tls:
            self._channel = grpc.aio.secure_channel(target, _tls(credentials), options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._stub = publisher_pb2_grpc.PublisherServiceStub(self._channel)

    def open_stream(self) -> PublishStream:
        """A new stream; it connects while the first request is sent."""
        return PublishStream(self._stub.PublishStream(metadata=self._metadata), self.target)

    async def close(self) -> None:
        """Cancel what still runs and close the channel."""
        await self._channel.close()


class PublishStream:
    """One PublishStream call. `send` and `receive` may run in two tasks; ServiceError says how the call ended."""

    def __init__(self, call: Any, target: str) -> None:
        self._call = call
        self._target = target

    async def send(self, sequence: int, parent: str, records: Iterable[EventRecord]) -> None:
        """Write one request; waits while the service reads no further."""
        events = [event_of(record) for record in records]
        request = publisher_pb2.PublishStreamRequest(client_sequence=sequence, parent=parent, events=events)
        try:
            await self._call.write(request)
        except grpc.RpcError as error:
            raise self._error(status_of(error)) from error
        except asyncio.InvalidStateError as error:  # the call has ended, maybe in peace
            raise self._error(await self._ended()) from error

    async def finish(self) -> None:
        """Say that no request follows."""
        await self._call.done_writing()

    async def receive(self) -> Answer | None:
        """The next answer, in the order sent; None once the service has ended the stream in peace."""
        try:
            answer = await self._call.read()
        except grpc.RpcError as error:
            raise self._error(status_of(error)) from error
        if answer is grpc.aio.EOF:
            status = await self._ended()
            if status.code is not Code.OK:
                raise self._error(status)
            return None
        known = tuple(result.duplicate for result in answer.results)
        return Answer(answer.client_sequence, read_status(answer.status), known)

    def cancel(self) -> None:
        """End the call now, whatever its state."""
        self._call.cancel()

    async def _ended(self) -> ServiceStatus:
        code = await self._call.code()
        return _status(code, await self._call.details() or "", await self._call.trailing_metadata())

    def _error(self, status: ServiceStatus) -> ServiceError:
        return ServiceError(status, method=Publisher.METHOD, target=self._target)


def event_of(record: EventRecord) -> event_pb2.Event:
    """The record as the message to publish."""
    event = event_pb2.Event(
        id=record.id,
        type=record.type,
        data=record.data,
        data_content_type=record.data_content_type,
        ordering_key=record.ordering_key,
        attributes=record.attributes,
        source=record.source,
        subject=record.subject,
    )
    if record.time is not None:
        event.time.FromDatetime(record.time)
    return event


def status_of(error: grpc.RpcError) -> ServiceStatus:
    """The status of a call that failed, with the details its trailers carry."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        raise CliError(f"gRPC failed: {error}")
    return _status(error.code(), error.details() or "", error.trailing_metadata() or ())


def _status(code: grpc.StatusCode, message: str, trailers: Any) -> ServiceStatus:
    for key, value in trailers or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return read_status(status_pb2.Status.FromString(value))
    if code is grpc.StatusCode.INTERNAL and message == CORE_LOST_STATUS:
        return ServiceStatus(Code.UNAVAILABLE, "the connection broke")
    return ServiceStatus(Code[code.name], message)


def read_status(status: status_pb2.Status) -> ServiceStatus:
    """google.rpc.Status with the details that AIP-193 names; others are passed over."""
    if status.code == code_pb2.OK:
        return OK_STATUS
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    request, failure = error_details_pb2.BadRequest(), error_details_pb2.PreconditionFailure()
    delay_s: float | None = None
    violations: list[Violation] = []
    for detail in status.details:
        if detail.Unpack(retry):
            delay_s = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(request):
            violations += [Violation(found.field, found.description) for found in request.field_violations]
        elif detail.Unpack(failure):
            violations += [Violation(found.subject or found.type, found.description) for found in failure.violations]
        else:
            detail.Unpack(info)
    return ServiceStatus(_code(status.code), status.message, info.reason, tuple(violations), delay_s)


def _code(number: int) -> Code:
    name = code_pb2.Code.Name(number) if number in code_pb2.Code.values() else "UNKNOWN"
    return Code[name]
