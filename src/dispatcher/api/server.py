"""The gRPC servers of one process: callers' services on one port, operators' on another.

starting ──▶ serving ──turn_away()──▶ not serving, says health; calls are answered
             ──drain()──▶ draining: new calls refused, calls in flight answered ──▶ stopped
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from webhooks.admin.v1 import admin_pb2, admin_pb2_grpc
from webhooks.v1 import (
    dead_letter_pb2,
    dead_letter_pb2_grpc,
    delivery_pb2,
    delivery_pb2_grpc,
    endpoint_pb2,
    endpoint_pb2_grpc,
    event_type_pb2,
    event_type_pb2_grpc,
    publisher_pb2,
    publisher_pb2_grpc,
    replay_pb2,
    replay_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
)

from dispatcher.api.admin import AdminServicer
from dispatcher.api.convert.endpoints import EndpointRules
from dispatcher.api.convert.events import PublishLimits
from dispatcher.api.dead_letters import DeadLetterServicer
from dispatcher.api.deliveries import DeliveryServicer
from dispatcher.api.draining import Drain
from dispatcher.api.endpoints import EndpointServicer
from dispatcher.api.event_types import EventTypeServicer
from dispatcher.api.guard import AuditTrail, Guard, Rates
from dispatcher.api.interceptors import HEALTH_PREFIX, REFLECTION_PREFIX, CallInterceptor
from dispatcher.api.ports import (
    CommandListener,
    EndpointListener,
    EndpointProber,
    InstanceControl,
    RowListener,
    tell_nobody,
    tell_nobody_of_rows,
)
from dispatcher.api.publisher import PublisherServicer
from dispatcher.api.reflection import enable_reflection
from dispatcher.api.replays import Replays, ReplayServicer
from dispatcher.api.tenants import TenantServicer
from dispatcher.api.tls import server_credentials
from dispatcher.config import Settings
from dispatcher.config.groups import UNIX_PREFIX, CallerSettings
from dispatcher.routing.publisher import Publisher
from dispatcher.security.access import Access
from dispatcher.security.authentication import BySupervisor
from dispatcher.security.egress import EgressPolicy
from dispatcher.security.secrets import Keyring
from dispatcher.store.database import Database
from dispatcher.store.recent import StatisticsLimits
from dispatcher.telemetry import Health, Instruments, Tracing

HEALTH_INTERVAL_S = 0.25
"""How soon after a change the health service tells it."""
CANCEL_GRACE_S = 0.5
"""What is left for calls that the drain did not see end: they are cancelled then."""

CALLER_SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (publisher_pb2, "PublisherService"),
        (tenant_pb2, "TenantService"),
        (event_type_pb2, "EventTypeService"),
        (endpoint_pb2, "EndpointService"),
        (delivery_pb2, "DeliveryService"),
        (dead_letter_pb2, "DeadLetterService"),
        (replay_pb2, "ReplayService"),
    )
)
ADMIN_SERVICES = (admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ApiParts:
    """What the services work with. `on_endpoint_changed` is told after each committed change of an endpoint.
    `look_back_s` exceeds the longest publish."""

    database: Database
    publisher: Publisher
    keyring: Keyring
    egress: EgressPolicy
    prober: EndpointProber
    control: InstanceControl
    health: Health
    instruments: Instruments
    tracing: Tracing
    on_endpoint_changed: EndpointListener = tell_nobody
    on_command: CommandListener = tell_nobody
    on_row: RowListener = tell_nobody_of_rows
    look_back_s: float = 60.0
    access: Access = field(default_factory=Access)
    trail: AuditTrail | None = None


class ApiServer:
    """Serves while it is entered; leaving it drains and stops. `port` and `admin_port` are those bound."""

    def __init__(self, settings: Settings, parts: ApiParts, *, shares_port: bool = False) -> None:
        """`shares_port`: other workers of the same supervisor listen on the callers' port, too."""
        self._settings = settings
        self._shares_port = shares_port
        self._parts = parts
        self._drain = Drain()
        self._is_drained = False
        self._told = False
        self._healths = (health.aio.HealthServicer(), health.aio.HealthServicer())
        self._servers: list[grpc.aio.Server] = []
        self._health_task: asyncio.Task[None] | None = None
        self.port = 0
        self.admin_port = 0

    async def __aenter__(self) -> Self:
        """Listen. Raises OSError where an address can't be bound."""
        access = self._parts.access
        callers = self._make_server(access, shares_port=self._shares_port)
        operators = self._make_server(_supervised(access) if self._is_supervised else access)
        self._add_caller_services(callers)
        admin = AdminServicer(
            self._parts.database,
            self._parts.control,
            page_size_max=self._settings.page_size_max,
            drain_wait_s=self._settings.command_wait_s,
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, operators)
        self._add_common(callers, self._healths[0], CALLER_SERVICES)
        self._add_common(operators, self._healths[1], ADMIN_SERVICES)
        self.port = bind(callers, self._settings.grpc_listen, access)
        self.admin_port = bind(operators, self._settings.admin_listen, access)
        await self.tell_health()
        self._servers = [callers, operators]
        for server in self._servers:
            await server.start()
        self._health_task = asyncio.create_task(self._follow_health(), name="grpc-health")
        _log.info("gRPC is served", extra={"port": self.port, "admin_port": self.admin_port})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.drain()
        await self._drain.quiet()
        await asyncio.gather(*(server.stop(CANCEL_GRACE_S) for server in self._servers))

    async def tell_health(self) -> None:
        """Tell now what would be told within `HEALTH_INTERVAL_S`: at the start, /readyz and gRPC health agree."""
        self._told = self._parts.health.is_ready
        statuses = health_pb2.HealthCheckResponse
        for servicer, services in zip(self._healths, (CALLER_SERVICES, ADMIN_SERVICES), strict=True):
            for name in ("", *services):
                # Asked for each, since it may be told anew meanwhile.
                await servicer.set(name, statuses.SERVING if self._told else statuses.NOT_SERVING)

    async def turn_away(self) -> None:
        """Health says NOT_SERVING from now on, to those who watch at once; calls are still answered. Idempotent."""
        if self._health_task is not None:
            self._health_task.cancel()
            await asyncio.wait([self._health_task])
        for servicer in self._healths:
            await servicer.enter_graceful_shutdown()

    async def drain(self) -> None:
        """Refuse new calls (UNAVAILABLE `DRAINING`) and wait for those in flight, at most `grpc_drain_s`. Idempotent.

        Calls must still be able to end: whoever commits stops after this.
        """
        self._drain.start()
        if self._is_drained:
            return
        self._is_drained = True
        await self.turn_away()
        try:
            async with asyncio.timeout(self._settings.grpc_drain_s):
                await self._drain.idle()
        except TimeoutError:
            _log.warning("calls in flight are cut off", extra={"waited_s": self._settings.grpc_drain_s})

    @property
    def _is_supervised(self) -> bool:
        return self._settings.admin_listen.startswith(UNIX_PREFIX)

    def _make_server(self, access: Access, *, shares_port: bool = False) -> grpc.aio.Server:
        parts, settings = self._parts, self._settings
        guard = Guard(access, Rates(settings.caller_rate_per_s, settings.caller_burst), parts.trail)
        interceptor = CallInterceptor(
            parts.instruments, parts.tracing, self._drain, guard, guarded=guarded_paths(settings)
        )
        return grpc.aio.server(
            interceptors=[interceptor], options=server_options(self._settings, shares_port=shares_port)
        )

    def _add_caller_services(self, server: grpc.aio.Server) -> None:
        parts, settings, size = self._parts, self._settings, self._settings.page_size_max
        limits = PublishLimits(settings.data_bytes_max, settings.publish_events_max)
        publisher_pb2_grpc.add_PublisherServiceServicer_to_server(
            PublisherServicer(parts.publisher, limits, self._drain), server
        )
        tenant_pb2_grpc.add_TenantServiceServicer_to_server(TenantServicer(parts.database, page_size_max=size), server)
        event_type_pb2_grpc.add_EventTypeServiceServicer_to_server(
            EventTypeServicer(parts.database, page_size_max=size), server
        )
        endpoint_pb2_grpc.add_EndpointServiceServicer_to_server(
            EndpointServicer(
                parts.database,
                _endpoint_rules(settings, parts.egress),
                parts.keyring,
                parts.prober,
                parts.on_endpoint_changed,
                page_size_max=size,
            ),
            server,
        )
        delivery_pb2_grpc.add_DeliveryServiceServicer_to_server(
            DeliveryServicer(
                parts.database,
                settings.retry_defaults,
                parts.on_command,
                page_size_max=size,
                command_wait_s=settings.command_wait_s,
                statistics=_statistics_limits(settings),
            ),
            server,
        )

        starting = Replays(parts.database, rate_default_per_s=settings.replay_rate_per_s, look_back_s=parts.look_back_s)
        replay_pb2_grpc.add_ReplayServiceServicer_to_server(
            ReplayServicer(parts.database, starting, page_size_max=size), server
        )
        dead_letter_pb2_grpc.add_DeadLetterServiceServicer_to_server(
            DeadLetterServicer(parts.database, starting, parts.on_row, page_size_max=size), server
        )

    def _add_common(
        self, server: grpc.aio.Server, servicer: health.aio.HealthServicer, services: Sequence[str]
    ) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        if self._settings.reflection_access != "off":
            enable_reflection(server, (*services, health.SERVICE_NAME))

    async def _follow_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            if self._parts.health.is_ready != self._told:
                await self.tell_health()


def _endpoint_rules(settings: Settings, egress: EgressPolicy) -> EndpointRules:
    return EndpointRules(
        egress=egress,
        timeout_default_s=settings.attempt_timeout_s,
        timeout_max_s=settings.attempt_timeout_max_s,
        in_flight_default=settings.endpoint_in_flight_max,
        overlap_default_s=settings.signing_key_overlap_s,
    )


def _statistics_limits(settings: Settings) -> StatisticsLimits:
    return StatisticsLimits(
        window_s=settings.statistics_window_s,
        attempts_max=settings.statistics_attempts_max,
        timeout_s=settings.statistics_timeout_s,
        worst_max=settings.statistics_worst_max,
    )


def server_options(settings: Settings, *, shares_port: bool = False) -> list[tuple[str, int]]:
    """Channel arguments of the servers; https://github.com/grpc/grpc, include/grpc/impl/channel_arg_names.h."""
    return [
        ("grpc.max_receive_message_length", settings.grpc_message_bytes_max),
        ("grpc.max_send_message_length", settings.grpc_message_bytes_max),
        ("grpc.max_concurrent_streams", settings.grpc_streams_max),
        # Only for workers: with it, a second service on the same port would silently take half of the calls.
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_metadata_size", settings.grpc_metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", settings.grpc_metadata_bytes_max),
        ("grpc.max_connection_age_ms", _ms(settings.grpc_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", _ms(settings.grpc_connection_age_grace_s)),
        ("grpc.keepalive_time_ms", _ms(settings.grpc_keepalive_interval_s)),
        ("grpc.keepalive_timeout_ms", _ms(settings.grpc_keepalive_timeout_s)),
        ("grpc.keepalive_permit_without_calls", int(settings.grpc_ping_without_calls)),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(settings.grpc_ping_interval_min_s)),
    ]


def _ms(duration_s: float) -> int:
    return round(duration_s * 1000)


def guarded_paths(settings: CallerSettings) -> tuple[str, ...]:
    """The paths that are not ours and yet for known callers only."""
    health_too = (HEALTH_PREFIX,) if settings.health_access == "authenticated" else ()
    return (*health_too, REFLECTION_PREFIX) if settings.reflection_access == "authenticated" else health_too


def _supervised(access: Access) -> Access:
    """On a worker's own socket the supervisor calls, which has asked already what the caller may."""
    return replace(access, authenticator=BySupervisor(), policy=None)


def bind(server: grpc.aio.Server, address: str, access: Access) -> int:
    """Add the port, with TLS where there is a certificate; the one bound, 0 for a socket's path. Raises OSError."""
    with contextlib.suppress(RuntimeError):
        if access.tls is None or address.startswith(UNIX_PREFIX):
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, server_credentials(access.tls))
        if port:
            return 0 if address.startswith(UNIX_PREFIX) else port
    raise OSError(f"{address} cannot be listened on: it is in use, not local, or not permitted")
