"""The composition root: everything of one process is made here, started in one order and stopped in one order.

Start: telemetry, database, delivery, publishing, ports. Stop: what others wait for first, which is the leases; callers
are answered meanwhile, and who watches health has gone elsewhere by the time that calls are refused:

    health turns ──> no send starts ──> sends in flight end, all is on record ──> leases are given back
    ──> API refuses, answers what it has read ──> group commit runs dry, its rows are told to their owners
    ──> ports close ──> telemetry flushed ──> pool closes

Each step is bounded; `Settings.stop_max_s` is the sum. A database that does not answer gets no farewell: its
connections are dropped (`Database.ended`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from uuid_utils.compat import uuid7

from dispatcher import __version__
from dispatcher.api.ports import ServiceStatus
from dispatcher.api.scaler import ScalerServer
from dispatcher.api.server import ApiParts, ApiServer
from dispatcher.config import Settings, environment
from dispatcher.config.groups import UNIX_PREFIX, split_address
from dispatcher.delivery.client import ClientOptions, ProbeOptions, Target, WebhookClient
from dispatcher.delivery.engine import Engine, EngineParts, EngineSettings
from dispatcher.delivery.operations import OperationalRelay
from dispatcher.delivery.prober import Prober
from dispatcher.errors import PreconditionError, UnavailableError
from dispatcher.model import EndpointKey, FleetLoad, Instance, ProbeResult
from dispatcher.ops.server import EVERYBODY, OpsServer, OwnPages, tenant_metrics
from dispatcher.routing.cache import SubscriptionCache
from dispatcher.routing.publisher import Publisher
from dispatcher.routing.quotas import Quotas
from dispatcher.security.access import Access, load_access
from dispatcher.security.egress import EgressPolicy
from dispatcher.security.egress_proxy import EgressProxy
from dispatcher.security.secrets import Keyring
from dispatcher.signals import stop_on_signals
from dispatcher.store import horizon, instances, signing_keys, upkeep
from dispatcher.store.audit import AuditTable
from dispatcher.store.database import Database, DatabaseOptions
from dispatcher.store.group_commit import GroupCommit, GroupCommitLimits
from dispatcher.store.migrate import check_schema
from dispatcher.store.observation import Observation
from dispatcher.store.upkeep import UpkeepReport, UpkeepSettings
from dispatcher.telemetry import ExportPlan, Health, Telemetry, configure_logging, start_telemetry
from dispatcher.workers.process import supervisor_gone

log = logging.getLogger(__name__)

DAY_S = 86_400
PUBLISH_TIMEOUT_S = 20.0
"""Longest a caller of publish() waits; the server may go on until its own statement timeout."""


@dataclass(slots=True)
class Core:
    """One process without its ports."""

    settings: Settings
    instance: Instance
    database: Database
    telemetry: Telemetry
    health: Health
    keyring: Keyring
    access: Access
    policy: EgressPolicy
    client: WebhookClient
    engine: Engine
    commits: GroupCommit
    cache: SubscriptionCache
    publisher: Publisher

    @property
    def look_back_s(self) -> float:
        """Longer than any publish."""
        return engine_settings(self.settings).look_back_s

    def _relay(self) -> OperationalRelay:
        return OperationalRelay(
            self.database,
            self.engine.board,
            self.publisher,
            self.telemetry.instruments,
            self.settings.operational_interval_s,
        )

    async def _keep_partitions(self, stop: asyncio.Event) -> None:
        instruments = self.telemetry.instruments
        instruments.upkeep_last_success_s.set(0)  # one that never goes through is to be seen as well

        def on_done(report: UpkeepReport) -> None:
            instruments.retention_blocked.by_label(report.blocked)
            instruments.upkeep_last_success_s.set(time.time())

        await upkeep.run(self.database, _upkeep(self.settings), stop, on_done)

    async def _watch_horizon(self) -> None:
        await horizon.watch(self.database, self.telemetry.instruments, self.settings.metrics_database_interval_s)

    async def run(self) -> None:
        """Publishing and delivery until `engine.stop`; any unexpected death of a part ends all."""
        stop_upkeep = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            commits = group.create_task(self.commits.run(), name="group-commit")
            keeper = group.create_task(self._keep_partitions(stop_upkeep), name="upkeep")
            horizons = group.create_task(self._watch_horizon(), name="horizon")
            relay = group.create_task(self._relay().run(), name="operational-events")
            access = group.create_task(self.access.run(), name="access")
            await group.create_task(self.engine.run(), name="delivery")
            cancelled = (relay, access, horizons, commits)
            for task in cancelled:
                task.cancel()
            stop_upkeep.set()
            await self.database.ended((keeper, *cancelled))
            keeper.cancel()

    async def hand_over(self) -> None:
        """While the API still takes calls: end the sends in flight, put all on record, give the leases back. What is
        published from then on is for others to deliver, as with any instance that does not own an endpoint."""
        self.engine.leave()
        await self.engine.left()

    async def drain(self) -> None:
        """After the API has stopped taking calls: commit what is queued, then end."""
        try:
            async with asyncio.timeout(self.settings.grpc_drain_s):
                await self.commits.drained()
        except TimeoutError:
            log.warning("publishes were still waiting for the database at shutdown")
        self.engine.stop()


def database_options(settings: Settings, dsn: str) -> DatabaseOptions:
    return DatabaseOptions(
        dsn=dsn,
        password_file=settings.database_password_file,
        pooled=settings.database_pooled,
        one_tenant=settings.database_one_tenant or None,
        pool_size_max=max(1, settings.database_pool_size_max - 2),
        connect_timeout_s=settings.database_connect_timeout_s,
        statement_timeout_s=settings.statement_timeout_s,
        lock_timeout_s=settings.lock_timeout_s,
        idle_in_transaction_timeout_s=settings.idle_in_transaction_timeout_s,
    )


def egress_policy(settings: Settings) -> EgressPolicy:
    return EgressPolicy.from_text(
        networks=",".join(map(str, settings.egress_allowed_networks)),
        hosts=",".join(settings.egress_allowed_hosts),
        ports=settings.egress_allowed_ports,
        allow_http=settings.egress_allow_http,
    )


def new_instance(address: str) -> Instance:
    now = datetime.now(UTC)
    return Instance(
        instance_id=uuid7(),
        address=address,
        version=__version__,
        start_time=now,
        heartbeat_time=now,
        draining=False,
        partitions=0,
        in_flight=0,
        delivered_total=0,
    )


@contextlib.asynccontextmanager
async def open_core(settings: Settings, telemetry: Telemetry, instance: Instance) -> AsyncIterator[Core]:
    """Make the parts of one process; nothing runs yet."""
    assert settings.database_url is not None  # noqa: S101 -- Settings.load has required it
    assert settings.secret_keys is not None  # noqa: S101
    options = database_options(settings, settings.database_url.get_secret_value())
    access = load_access(settings)
    keyring, policy = Keyring.parse(settings.secret_keys.get_secret_value()), egress_policy(settings)
    health = Health(database_away_s=settings.database_away_s)
    observation = Observation(telemetry.instruments, telemetry.tracing)
    async with (
        Database.open(options, observation) as database,
        WebhookClient(policy, _client_options(settings)) as client,
    ):
        health.follow_database(lambda: database.availability.away_s)
        parts = EngineParts(database, client, keyring, telemetry.tracing, telemetry.instruments, lambda: instance)
        engine = Engine(parts, engine_settings(settings))
        commits = GroupCommit(database, _commit_limits(settings), engine, telemetry.instruments)
        cache = SubscriptionCache.over(database)
        quotas = Quotas(lambda: engine.keeper.live_count)
        publisher = Publisher(
            cache, commits, rows_max=settings.publish_rows_max, quotas=quotas, tracing=telemetry.tracing
        )
        yield Core(
            settings=settings,
            instance=instance,
            database=database,
            telemetry=telemetry,
            health=health,
            keyring=keyring,
            access=access,
            policy=policy,
            client=client,
            engine=engine,
            commits=commits,
            cache=cache,
            publisher=publisher,
        )


def _client_options(s: Settings) -> ClientOptions:
    return ClientOptions(
        connect_timeout_s=s.connect_timeout_s,
        response_bytes_max=s.response_bytes_max,
        excerpt_bytes_max=s.response_excerpt_bytes_max,
        header_line_bytes_max=min(8190, s.response_header_bytes_max),
        proxy=EgressProxy.parse(s.egress_proxy_url.get_secret_value()) if s.egress_proxy_url else None,
        probe=_probe_options(s),
    )


EVIDENCE_MIN_S, EVIDENCE_MAX_S = 60.0, 600.0


def _probe_options(s: Settings) -> ProbeOptions:
    """What was seen of the proxy holds for longer than an endpoint waits before it tries again, within reason."""
    target = s.egress_proxy_probe_target
    return ProbeOptions(
        evidence_s=min(max(2 * s.retry_max_s, EVIDENCE_MIN_S), EVIDENCE_MAX_S),
        interval_s=s.egress_proxy_probe_interval_s,
        timeout_s=s.egress_proxy_probe_timeout_s,
        target=None if target is None else Target.parse(target),
    )


def engine_settings(s: Settings) -> EngineSettings:
    """What delivery needs of the settings."""
    return EngineSettings(
        delivery=s,
        leases=s,
        retry=s,
        failure=s,
        replay=s,
        observability=s,
        drain_s=s.delivery_drain_s,
        look_back_s=s.statement_timeout_s + s.look_back_slack_s,
    )


def _commit_limits(s: Settings) -> GroupCommitLimits:
    return GroupCommitLimits(
        queue_events_max=s.publish_queue_events_max,
        queue_bytes_max=s.publish_queue_bytes_max,
        batch_events_max=s.publish_batch_events_max,
        batch_rows_max=s.publish_batch_rows_max,
        batch_bytes_max=s.publish_batch_bytes_max,
        gather_s=s.commit_gather_s,
        commit_min_s=s.commit_min_s,
        lock_timeout_s=min(s.lock_timeout_s, PUBLISH_TIMEOUT_S),
        publish_timeout_s=min(s.statement_timeout_s, PUBLISH_TIMEOUT_S),
    )


def _upkeep(s: Settings) -> UpkeepSettings:
    return UpkeepSettings(
        retention_days=max(1, s.retention_s // DAY_S),
        days_ahead=s.partition_ahead_days,
        interval_s=s.partition_check_interval_s,
        lock_wait_s=s.partition_lock_timeout_s,
        dedup_window_s=s.dedup_window_s,
        audit_days=s.audit_retention_s // DAY_S,
    )


class CoreProber:
    """TestEndpoint's ping: reads the endpoint as delivery would and sends from here."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._prober = Prober(core.client, tokens=core.engine.tokens)

    async def ping(self, key: EndpointKey) -> ProbeResult:
        found = await self._core.engine.load_runtimes([key])
        if not found:
            raise PreconditionError(
                "the endpoint has no signing key that opens",
                reason="SIGNING_KEY_UNUSABLE",
                subject=str(key.endpoint_id),
            )
        return await self._prober.ping(found[0])


class CoreControl:
    """What AdminService asks of this instance, from memory."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def status(self) -> ServiceStatus:
        engine, instance = self._core.engine, self._core.instance
        return ServiceStatus(
            instance_id=instance.instance_id,
            version=instance.version,
            start_time=instance.start_time,
            partitions=tuple(sorted(engine.board.epochs)),
            in_flight=engine.sending.in_flight,
            flush_lag_s=engine.flusher.oldest_wait_s(time.monotonic()),
            draining=engine.keeper.is_draining,
        )

    def instance(self) -> Instance:
        return self._core.engine.describe()

    def drain(self) -> None:
        log.info("an operator drains this instance")
        self._core.health.start_draining("drained by an operator")
        self._core.engine.drain()

    async def drained(self) -> None:
        await self._core.engine.keeper.handed_over()


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a running service listens."""

    grpc: int
    admin: int
    ops: int
    scaler: int | None = None


async def serve(
    settings: Settings,
    plan: ExportPlan | None = None,
    *,
    stop: asyncio.Event | None = None,
    on_ready: Callable[[Core, Ports], None] | None = None,
    log_stream: TextIO | None = None,
    worker: int | None = None,
) -> None:
    """Run one process until SIGTERM or SIGINT, or until `stop` is set where one is given.

    `worker`: the number of this process among those that listen on the same gRPC port. What is exported by OTLP is
    `plan`'s, by default the standard OTEL_* variables' word (ConfigError).
    `on_ready` is told once all ports are bound. Logs go to `log_stream`, by default stderr.
    Raises OSError where a port can't be bound, and whatever unexpected ended it.
    """
    configure_logging(settings, log_stream, worker=worker)
    stopping = stop or asyncio.Event()
    if stop is None:
        stop_on_signals(stopping.set)
    instance = new_instance(f"{host_name()}:{split_address(settings.grpc_listen)[1]}")
    exports = plan or ExportPlan.load(environment())
    telemetry = start_telemetry(exports, version=__version__, instance_id=str(instance.instance_id))
    try:
        async with open_core(settings, telemetry, instance) as core:
            with contextlib.suppress(UnavailableError):  # away at start: it is waited for
                await check_schema(core.database)
            try:
                await _serve(core, stopping, on_ready, shares_port=worker is not None)
            finally:
                # Closing the pool may take as long as the database lets it.
                await telemetry.shutdown(settings.telemetry_flush_timeout_s)
    finally:
        await telemetry.shutdown(settings.telemetry_flush_timeout_s)


async def serve_as_worker(settings: Settings, number: int) -> None:
    """`serve` as one of several workers: ends in good order on SIGTERM, or when the supervisor is gone."""
    stopping = asyncio.Event()
    stop_on_signals(stopping.set)

    async def end_with_supervisor() -> None:
        await supervisor_gone()
        log.warning("the supervisor is gone")
        stopping.set()

    watching = asyncio.create_task(end_with_supervisor(), name="supervisor-gone")
    try:
        await serve(settings, stop=stopping, worker=number)
    finally:
        watching.cancel()


async def _serve(
    core: Core, stopping: asyncio.Event, on_ready: Callable[[Core, Ports], None] | None, *, shares_port: bool
) -> None:
    running = asyncio.create_task(core.run(), name="core")
    try:
        keys = functools.partial(signing_keys.list_public, core.database) if core.settings.ops_public_keys else None
        pages = OwnPages(core.health, core.telemetry.registry, keys)
        # On a worker's own socket the supervisor asks, which knows who asks it.
        seen_by = EVERYBODY if core.settings.ops_listen.startswith(UNIX_PREFIX) else tenant_metrics(core.settings)
        async with OpsServer(core.settings.ops_listen, pages, seen_by) as ops:
            async with (
                ScalerServer(core.settings, fleet_load(core), shares_port=shares_port) as scaler,
                ApiServer(core.settings, api_parts(core), shares_port=shares_port) as api,
            ):
                core.health.started()
                await api.tell_health()
                log.info("serving", extra={"version": __version__, "instance": str(core.instance.instance_id)})
                if on_ready is not None:
                    on_ready(core, Ports(api.port, api.admin_port, ops.port, scaler.port))
                stopped = asyncio.create_task(stopping.wait(), name="stop")
                await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
                stopped.cancel()
                core.health.start_draining()
                if not running.done():
                    await api.turn_away()
                    await core.hand_over()
                    await api.drain()
                    await core.drain()
            await running
    finally:
        running.cancel()
        await core.database.ended({running})
        await asyncio.wait({running})
        log.info("stopped")


def api_parts(core: Core) -> ApiParts:
    """What the API of a process works with."""
    return ApiParts(
        database=core.database,
        publisher=core.publisher,
        keyring=core.keyring,
        egress=core.policy,
        prober=CoreProber(core),
        control=CoreControl(core),
        health=core.health,
        instruments=core.telemetry.instruments,
        tracing=core.telemetry.tracing,
        on_endpoint_changed=core.engine.endpoint_changed,
        on_command=core.engine.command_appended,
        on_row=lambda key, seq: core.engine.hint({key: seq}),
        look_back_s=core.look_back_s,
        access=core.access,
        trail=AuditTable(core.database),
    )


def fleet_load(core: Core) -> Callable[[], Awaitable[FleetLoad]]:
    """Reads what the running instances have before them. The call raises UnavailableError."""
    return functools.partial(instances.fleet_load, core.database, core.settings.lease_ttl_s)


def host_name() -> str:
    return socket.gethostname()
