"""KEDA's external scaler: how many pods the fleet wants. Any instance answers for all of them.

KEDA divides each value by its target, and the largest quotient is the number of pods wanted (`AverageValue`, the
default of a trigger):

    due_backlog      deliveries that the fleet keeps waiting                  / dueBacklogPerInstance
    oldest_due_age   for how long (s), at most twice the target, times pods   / oldestDueAgeMaxS

The second asks for as many times the present fleet as it keeps deliveries waiting too long, for twice of it at most at
a time. A port of its own, in clear and for everybody: KEDA stands outside of the mesh, and nothing but these two
numbers is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self, TypeAlias

import grpc.aio
from externalscaler import externalscaler_pb2 as keda
from externalscaler import externalscaler_pb2_grpc as keda_grpc

from dispatcher.api.errors import to_status
from dispatcher.api.interceptors import Context, abort_with
from dispatcher.api.server import bind, server_options
from dispatcher.config import Settings
from dispatcher.errors import (
    DispatcherError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from dispatcher.model import FleetLoad
from dispatcher.security.access import Access

CALLS_MAX = 128
"""Calls at once, streams included; beyond it RESOURCE_EXHAUSTED."""
STREAMS_MAX = 64
"""Of them streams, so that those who only hold one open leave room for those who ask."""
MESSAGE_BYTES_MAX = 64 * 1024
GROWTH_MAX = 2.0
"""The age asks for so many times the present fleet at most at a time: it falls only once new pods have worked."""
TARGET_MAX = 1e12
STOP_GRACE_S = 0.5
DUE_BACKLOG = "due_backlog"
OLDEST_DUE_AGE = "oldest_due_age"
TARGETS: Mapping[str, tuple[str, float]] = {
    DUE_BACKLOG: ("dueBacklogPerInstance", 5000.0),
    OLDEST_DUE_AGE: ("oldestDueAgeMaxS", 60.0),
}
"""By metric: the trigger's metadata that says its target, and the target where it says nothing."""

ReadLoad: TypeAlias = Callable[[], Awaitable[FleetLoad]]
log = logging.getLogger(__name__)


def value_of(metric: str, load: FleetLoad, metadata: Mapping[str, str]) -> float:
    """What KEDA is told of a metric. Raises NotFoundError for none of ours, InvalidRequestError."""
    match metric:
        case "due_backlog":
            return float(load.due_backlog)
        case "oldest_due_age":
            return min(load.due_age_s, GROWTH_MAX * target_of(metric, metadata)) * load.host_count
        case _:
            raise NotFoundError("externalscaler/Metric", metric)


def target_of(metric: str, metadata: Mapping[str, str]) -> float:
    """The value that is worth one pod. Raises InvalidRequestError."""
    name, default = TARGETS[metric]
    text = metadata.get(name)
    if text is None:
        return default
    with contextlib.suppress(ValueError):
        target = float(text)
        if 0 < target <= TARGET_MAX:
            return target
    raise InvalidRequestError([FieldViolation(f"scaler_metadata[{name}]", "must be a number above 0, at most 1e12")])


class RecentLoad:
    """The fleet's load, read once in `interval_s` however many ask."""

    def __init__(self, read: ReadLoad, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._interval_s = interval_s
        self._clock = clock
        self._reading = asyncio.Lock()
        self._found: FleetLoad | UnavailableError | None = None
        self._read_at = 0.0

    async def get(self) -> FleetLoad:
        """Raises UnavailableError: nothing is told that is older. That the database was away is told as long."""
        async with self._reading:
            if self._found is None or self._clock() - self._read_at >= self._interval_s:
                self._found = await self._look()
                self._read_at = self._clock()
            if isinstance(self._found, UnavailableError):
                raise self._found
            return self._found

    async def _look(self) -> FleetLoad | UnavailableError:
        try:
            return await self._read()
        except UnavailableError as error:
            return error


class ScalerServicer(keda_grpc.ExternalScalerServicer):
    """The four calls. A fleet is active while anything is due; that it never shrinks to nothing is for the
    ScaledObject to say, since nobody would take a publish then."""

    def __init__(self, load: RecentLoad, interval_s: float) -> None:
        self._load = load
        self._interval_s = interval_s
        self._stopping = asyncio.Event()
        self._streams = 0

    def stop(self) -> None:
        """End the streams."""
        self._stopping.set()

    async def IsActive(self, request: keda.ScaledObjectRef, context: Context) -> keda.IsActiveResponse:
        async with answered(context):
            return keda.IsActiveResponse(result=await self._is_active())

    async def StreamIsActive(
        self, request: keda.ScaledObjectRef, context: Context
    ) -> AsyncIterator[keda.IsActiveResponse]:
        told = None
        async with answered(context), self._stream():
            while not self._stopping.is_set():
                is_active = await self._is_active()
                if is_active is not told:
                    yield keda.IsActiveResponse(result=is_active)
                told = is_active
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval_s):
                        await self._stopping.wait()

    async def GetMetricSpec(self, request: keda.ScaledObjectRef, context: Context) -> keda.GetMetricSpecResponse:
        async with answered(context):
            targets = {metric: target_of(metric, request.scalerMetadata) for metric in TARGETS}
            return keda.GetMetricSpecResponse(metricSpecs=[_spec(*target) for target in targets.items()])

    async def GetMetrics(self, request: keda.GetMetricsRequest, context: Context) -> keda.GetMetricsResponse:
        async with answered(context):
            metric = metric_named(request.metricName)
            value = value_of(metric, await self._load.get(), request.scaledObjectRef.scalerMetadata)
            told = keda.MetricValue(metricName=request.metricName, metricValue=math.ceil(value), metricValueFloat=value)
            return keda.GetMetricsResponse(metricValues=[told])

    @contextlib.asynccontextmanager
    async def _stream(self) -> AsyncIterator[None]:
        if self._streams >= STREAMS_MAX:
            raise OverloadedError("too many streams are open", retry_after_s=self._interval_s, reason="STREAMS_MAX")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def _is_active(self) -> bool:
        return (await self._load.get()).due_backlog > 0


def metric_named(name: str) -> str:
    """KEDA may put `s<n>-` before a metric's name."""
    prefix, dash, rest = name.partition("-")
    return rest if dash and prefix[:1] == "s" and prefix[1:].isdecimal() else name


def _spec(metric: str, target: float) -> keda.MetricSpec:
    return keda.MetricSpec(metricName=metric, targetSize=math.ceil(target), targetSizeFloat=target)


@contextlib.asynccontextmanager
async def answered(context: Context) -> AsyncIterator[None]:
    """Errors of ours as statuses."""
    try:
        yield
    except DispatcherError as error:
        await abort_with(context, to_status(error))


class ScalerServer:
    """Serves while it is entered, where `scaler_listen` says so. `port` is the one bound, None where there is none."""

    def __init__(self, settings: Settings, read: ReadLoad, *, shares_port: bool = False) -> None:
        self._settings = settings
        interval_s = settings.scaler_interval_s
        self._servicer = ScalerServicer(RecentLoad(read, interval_s), interval_s)
        self._shares_port = shares_port
        self._server: grpc.aio.Server | None = None
        self.port: int | None = None

    async def __aenter__(self) -> Self:
        """Listen. Raises OSError where the address can't be bound."""
        address = self._settings.scaler_listen
        if address is None:
            return self
        small = {"grpc.max_receive_message_length": MESSAGE_BYTES_MAX}
        options = dict(server_options(self._settings, shares_port=self._shares_port)) | small
        server = grpc.aio.server(options=list(options.items()), maximum_concurrent_rpcs=CALLS_MAX)
        keda_grpc.add_ExternalScalerServicer_to_server(self._servicer, server)
        self.port = bind(server, address, Access())
        await server.start()
        self._server = server
        log.info("the external scaler is served", extra={"port": self.port})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._servicer.stop()
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)
