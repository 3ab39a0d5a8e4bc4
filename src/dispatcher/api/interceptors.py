"""What surrounds every call of ours: span, duration, drain, guard, and errors turned into statuses.

Health and reflection belong to grpcio and answer while the server drains; the guard only asks who calls, if it is to.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.rpc import status_pb2
from opentelemetry import trace

from dispatcher.api import errors
from dispatcher.api.draining import Drain
from dispatcher.api.guard import Guard, tolerant
from dispatcher.errors import DispatcherError
from dispatcher.telemetry import Instruments, Tracing

OWN_PREFIX = "/webhooks."
HEALTH_PREFIX = "/grpc.health."
REFLECTION_PREFIX = "/grpc.reflection."
TRACEPARENT = "traceparent"

_log = logging.getLogger(__name__)

# As text: these classes are generic for the type checker only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behavior = Callable[[Any, Any], Awaitable[Any]]

ANSWER_MARGIN_S = 0.2
"""What is left of a caller's deadline to answer it."""


def wait_s(context: Context, longest_s: float) -> float:
    """How long a call may wait for something: `longest_s`, or less where its deadline is near; below 0 once past."""
    remaining_s: float | None = context.time_remaining()
    return longest_s if remaining_s is None else min(longest_s, remaining_s - ANSWER_MARGIN_S)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """One for all methods, unary and streaming."""

    def __init__(
        self,
        instruments: Instruments,
        tracing: Tracing,
        drain: Drain,
        guard: Guard,
        *,
        guarded: tuple[str, ...] = (),
    ) -> None:
        """`guarded`: beginnings of paths that are not ours and yet for known callers only."""
        self._guard = guard
        self._guarded = guarded
        self._instruments = instruments
        self._tracing = tracing
        self._drain = drain
        self._handlers: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        path = handler_call_details.method
        known = self._handlers.get(path)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        # None where there is no such method: grpc answers UNIMPLEMENTED, and nothing is remembered of it.
        if handler is None:
            return handler
        if not path.startswith(OWN_PREFIX):
            if not path.startswith(self._guarded):
                return handler
            return self._handlers.setdefault(path, identified(handler, self._guard))
        return self._handlers.setdefault(path, self._wrapped(handler, path.removeprefix("/")))

    def _wrapped(self, handler: Handler, method: str) -> Handler:
        make, behavior = _behavior_of(handler)

        async def surrounded(request: Any, context: Context) -> Any:
            return await self._run(method, behavior, request, context)

        wrapped: Handler = make(surrounded, tolerant(handler.request_deserializer), handler.response_serializer)
        return wrapped

    async def _run(self, method: str, behavior: Behavior, request: Any, context: Context) -> Any:
        start = time.perf_counter()
        ended = "CANCELLED"
        with self._tracing.server_span(method, _traceparent_of(context)) as span:
            try:
                with self._drain.call():
                    async with self._guard.admitted(method, request, context):
                        response = await behavior(request, context)
                ended = "OK"
            except DispatcherError as error:
                status = _status_of(error, method)
                ended = errors.code_of(error).name
            except grpc.aio.AbortError:
                raise  # nothing of ours aborts; whoever did has said why
            except Exception as error:  # noqa: BLE001 - a bug is logged here and opaque to the caller
                status = _bug(error, method)
                ended = "INTERNAL"
            except asyncio.CancelledError:
                ended = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else ended
                raise
            finally:
                span.ended(ended)
                self._instruments.rpc_server_call(method, ended, time.perf_counter() - start)
            if ended == "OK":
                return response
        return await abort_with(context, status)


def identified(handler: Handler, guard: Guard) -> Handler:
    """A handler that is not ours, for callers that are known; the table of permissions says nothing of it."""
    return _guarded(handler, lambda _, context: guard.identified(context))


def admitted(handler: Handler, guard: Guard, method: str) -> Handler:
    """A handler for those who may call `method`, and nothing else around it."""
    return _guarded(handler, lambda request, context: guard.admitted(method, request, context))


def _guarded(handler: Handler, admission: Callable[[Any, Context], AbstractAsyncContextManager[Any]]) -> Handler:
    make, behavior = _behavior_of(handler)

    async def surrounded(request: Any, context: Context) -> Any:
        try:
            async with admission(request, context):
                return await behavior(request, context)
        except DispatcherError as error:
            return await abort_with(context, errors.to_status(error))

    wrapped: Handler = make(surrounded, tolerant(handler.request_deserializer), handler.response_serializer)
    return wrapped


def _behavior_of(handler: Any) -> tuple[Callable[..., Any], Behavior]:
    """The constructor for a handler of the same kind, and the behaviour as a coroutine.

    A handler's fields are typed for the synchronous server only.
    """
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler, _writing(handler.stream_stream)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler, handler.stream_unary
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, _writing(handler.unary_stream)
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary


def _writing(generator: Callable[[Any, Context], Any]) -> Behavior:
    """A streaming behaviour as one coroutine: span and context stay with a single task. It is an async generator or,
    as in grpcio's own services, a coroutine that writes by itself."""
    if not inspect.isasyncgenfunction(generator):
        return generator

    async def write_all(request: Any, context: Context) -> None:
        async with contextlib.aclosing(generator(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return write_all


def _traceparent_of(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == TRACEPARENT:
            return value if isinstance(value, str) else None
    return None


def _status_of(error: DispatcherError, method: str) -> status_pb2.Status:
    return _bug(error, method) if errors.is_internal(error) else errors.to_status(error)


def _bug(error: BaseException, method: str) -> status_pb2.Status:
    span = trace.get_current_span().get_span_context()
    trace_id = trace.format_trace_id(span.trace_id) if span.is_valid else ""
    _log.error("a call failed unexpectedly", exc_info=error, extra={"rpc_method": method})
    return errors.internal_status(trace_id)


async def abort_with(context: Context, status: status_pb2.Status) -> Any:
    """End the call with this status and its details; raises grpc's AbortError."""
    await context.abort(errors.code_in(status), status.message, errors.trailers(status))
