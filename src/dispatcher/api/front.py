"""AdminService of a supervisor: one port in front of several workers, each of which serves its own on a socket.

What concerns one instance goes to the worker that is it: all are asked, and all but one answer NOT_FOUND. What concerns
all of them is done by all or the call fails; only GetStatus tells what it can. What the database knows is asked of
whichever worker answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from webhooks.admin.v1 import admin_pb2, admin_pb2_grpc

from dispatcher.api import errors
from dispatcher.api.guard import REQUEST_ID, Guard, Rates, admission
from dispatcher.api.interceptors import OWN_PREFIX, TRACEPARENT, Context, abort_with, admitted, identified, wait_s
from dispatcher.api.reflection import enable_reflection
from dispatcher.api.server import ADMIN_SERVICES, CANCEL_GRACE_S, bind, guarded_paths, server_options
from dispatcher.config import Settings
from dispatcher.errors import UnavailableError
from dispatcher.security.access import Access
from dispatcher.security.authentication import SUPERVISED_MODE, SUPERVISED_PRINCIPAL

READ_WAIT_S = 3.0
"""Longest a worker may take to answer a read: one that is frozen must not keep the others' answers."""
DRAIN_SLACK_S = 5.0
"""Beyond what a worker itself waits in Drain."""

_log = logging.getLogger(__name__)


class AdminFront(admin_pb2_grpc.AdminServiceServicer):
    """`targets` are the gRPC targets of the workers that run now."""

    def __init__(self, targets: Callable[[], Sequence[str]], *, drain_wait_s: float) -> None:
        """`drain_wait_s`: how long a worker waits in Drain."""
        self._targets = targets
        self._drain_s = drain_wait_s + DRAIN_SLACK_S
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def close(self) -> None:
        """Close the channels to the workers."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def GetStatus(self, request: admin_pb2.GetStatusRequest, context: Context) -> admin_pb2.GetStatusResponse:
        """Of those workers that answer: one that starts or is frozen is missing from `workers`."""
        statuses, failures = await self._of_all(request, context, "GetStatus", READ_WAIT_S)
        if not statuses:
            await abort_with(context, _status_of(failures))
        return statuses[0] if request.instance else _together(statuses)

    async def ListInstances(
        self, request: admin_pb2.ListInstancesRequest, context: Context
    ) -> admin_pb2.ListInstancesResponse:
        response: admin_pb2.ListInstancesResponse = await self._of_any(request, context, "ListInstances")
        return response

    async def ListLeases(self, request: admin_pb2.ListLeasesRequest, context: Context) -> admin_pb2.ListLeasesResponse:
        response: admin_pb2.ListLeasesResponse = await self._of_any(request, context, "ListLeases")
        return response

    async def ListAuditRecords(
        self, request: admin_pb2.ListAuditRecordsRequest, context: Context
    ) -> admin_pb2.ListAuditRecordsResponse:
        response: admin_pb2.ListAuditRecordsResponse = await self._of_any(request, context, "ListAuditRecords")
        return response

    async def Drain(self, request: admin_pb2.DrainRequest, context: Context) -> admin_pb2.DrainResponse:
        answers, failures = await self._of_all(request, context, "Drain", self._drain_s)
        # Where none was named, all are meant: one that did not hear of it goes on taking partitions.
        if not answers or (failures and not request.instance):
            await abort_with(context, _status_of(failures))
        return admin_pb2.DrainResponse(instances=[each for answer in answers for each in answer.instances])

    async def _of_all(
        self, request: Message, context: Context, method: str, longest_s: float
    ) -> tuple[list[Any], list[BaseException]]:
        """What the workers answer, and how those failed that did not."""
        calls = [self._call(target, request, context, method, longest_s) for target in self._targets()]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        return [answer for answer in answers if not isinstance(answer, BaseException)], failures

    async def _of_any(self, request: Message, context: Context, method: str) -> Any:
        failures: list[BaseException] = []
        for target in self._targets():
            try:
                return await self._call(target, request, context, method, READ_WAIT_S)
            except grpc.aio.AioRpcError as error:
                failures.append(error)
        return await abort_with(context, _status_of(failures))

    def _call(self, target: str, request: Message, context: Context, method: str, longest_s: float) -> Awaitable[Any]:
        channel = self._channels.get(target)
        if channel is None:
            # Of its own: a worker that was replaced must not be waited for as long as the former one was away.
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 1000)]
            channel = self._channels[target] = grpc.aio.insecure_channel(target, options=options)
        call = getattr(admin_pb2_grpc.AdminServiceStub(channel), method)
        answer: Awaitable[Any] = call(
            request, timeout=max(0.0, wait_s(context, longest_s)), metadata=_handed_on(context)
        )
        return answer


def _handed_on(context: Context) -> list[tuple[str, str | bytes]]:
    """What a worker learns of the call beside its request: the trace, and who calls, which it takes from us alone."""
    caller = admission().caller
    kept = [(key, value) for key, value in context.invocation_metadata() or () if key in (TRACEPARENT, REQUEST_ID)]
    return [*kept, (SUPERVISED_PRINCIPAL, caller.principal), (SUPERVISED_MODE, caller.mode.value)]


class GuardInterceptor(grpc.aio.ServerInterceptor):
    """The guard of a supervisor's port; who carries a call out puts it on record."""

    def __init__(self, guard: Guard, guarded: tuple[str, ...]) -> None:
        self._guard = guard
        self._guarded = guarded

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        path = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if path.startswith(OWN_PREFIX):
            return admitted(handler, self._guard, path.removeprefix("/"))
        return identified(handler, self._guard) if path.startswith(self._guarded) else handler


def _together(statuses: Sequence[admin_pb2.GetStatusResponse]) -> admin_pb2.GetStatusResponse:
    """Workers as one: their partitions, the sum of their counts, the longest of their times."""
    latencies = [s.database_latency for s in statuses if s.HasField("database_latency")]
    return admin_pb2.GetStatusResponse(
        version=statuses[0].version,
        start_time=min((s.start_time for s in statuses), key=lambda time: time.ToNanoseconds()),
        partitions=sorted(partition for s in statuses for partition in s.partitions),
        in_flight_count=sum(s.in_flight_count for s in statuses),
        flush_lag=max((s.flush_lag for s in statuses), key=Duration.ToNanoseconds),
        database_latency=max(latencies, key=Duration.ToNanoseconds) if latencies else None,
        draining=all(s.draining for s in statuses),
        workers=statuses,
    )


def _status_of(failures: Sequence[BaseException]) -> status_pb2.Status:
    """A worker's error: a definite one, else that of one that may be the instance that is meant."""
    known = [failure for failure in failures if isinstance(failure, grpc.aio.AioRpcError)]
    for failure in failures:
        if failure not in known:
            _log.error("a call to a worker failed unexpectedly", exc_info=failure)
    ranks = {grpc.StatusCode.UNAVAILABLE: 1, grpc.StatusCode.DEADLINE_EXCEEDED: 1, grpc.StatusCode.NOT_FOUND: 2}
    error = min(known, key=lambda e: ranks.get(e.code(), 0), default=None)
    if error is None:
        return errors.to_status(UnavailableError("no worker answers", reason="WORKERS_UNAVAILABLE"))
    return errors.carried_by(error)


class AdminFrontServer:
    """Serves AdminService, health and reflection while entered."""

    def __init__(self, settings: Settings, targets: Callable[[], Sequence[str]], access: Access) -> None:
        self._settings = settings
        self._access = access
        self._front = AdminFront(targets, drain_wait_s=settings.command_wait_s)
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        """Listen. Raises OSError where the address can't be bound."""
        settings = self._settings
        guard = Guard(self._access, Rates(settings.caller_rate_per_s, settings.caller_burst), None)
        server = grpc.aio.server(
            interceptors=[GuardInterceptor(guard, guarded_paths(settings))], options=server_options(settings)
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self._front, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if settings.reflection_access != "off":
            enable_reflection(server, (*ADMIN_SERVICES, health.SERVICE_NAME))
        for name in ("", *ADMIN_SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        bind(server, settings.admin_listen, self._access)
        await server.start()
        self._server = server
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.stop(CANCEL_GRACE_S)
        await self._front.close()
