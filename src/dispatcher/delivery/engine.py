"""The delivery side of one process, put together: leases, lanes, sending, flushing, and the order of its end.

delivering ──leave()──▶ leaving: nothing new starts, no lease is taken; each partition is given back as soon as what is
in flight in it has ended, within a bound, and is on record: acknowledgements flushed, decisions committed, watermarks
written ──▶ left: others deliver, and are told of what is still published here ──stop()──▶ ended

Whatever a bound cuts off is a duplicate for the next owner, never a loss.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from dispatcher.clocks import SYSTEM_CLOCKS, Clocks
from dispatcher.config.groups import (
    DeliverySettings,
    FailureSettings,
    LeaseSettings,
    ObservabilitySettings,
    ReplaySettings,
    RetrySettings,
)
from dispatcher.delivery.aside import Aside, AsideOptions
from dispatcher.delivery.attempt import Attempter, Client
from dispatcher.delivery.backlog_watch import BacklogBounds, BacklogWatch
from dispatcher.delivery.board import Board
from dispatcher.delivery.checkpoint import Checkpointer
from dispatcher.delivery.circuit import CircuitPolicy
from dispatcher.delivery.commands import CommandExecutor
from dispatcher.delivery.decide import DecisionLimits, DecisionWriter
from dispatcher.delivery.endpoint import EndpointRuntime, prepare_endpoint
from dispatcher.delivery.feeder import Feeder, FeederLimits
from dispatcher.delivery.flush import Flusher, FlushLimits
from dispatcher.delivery.health import DisablePolicy
from dispatcher.delivery.hints import HintSender
from dispatcher.delivery.keeping import HealthKeeper
from dispatcher.delivery.lane import LaneLimits
from dispatcher.delivery.lane_types import Resume
from dispatcher.delivery.leases import LeaseKeeper
from dispatcher.delivery.leases import LeaseSettings as KeeperSettings
from dispatcher.delivery.measure import BacklogMeter
from dispatcher.delivery.oauth import Tokens
from dispatcher.delivery.ownership import Ownership
from dispatcher.delivery.policies import FailureDefaults, resume_of
from dispatcher.delivery.proxy_records import ProxyRecords
from dispatcher.delivery.punctuality import Punctuality
from dispatcher.delivery.rate import ThrottlePolicy
from dispatcher.delivery.replay import ReplayOptions, ReplayRunner
from dispatcher.delivery.scheduler import SchedulerLimits
from dispatcher.delivery.sending import SendingOptions, SendLoop
from dispatcher.delivery.watch import COMMAND_HINT, Watch, WatchOptions
from dispatcher.model import Attempt, EndpointKey, Instance, OutboxRow, Outcome
from dispatcher.security.secrets import Keyring, SecretSealError
from dispatcher.store import attempts, decisions, listen, runtime
from dispatcher.store.database import Database
from dispatcher.telemetry import Instruments, Tracing

log = logging.getLogger(__name__)

POOLED_SWEEP_INTERVAL_S = 1.0
"""Without LISTEN the sweep is the only way to hear of rows that others committed."""
END_WAIT_S = 0.5
"""Longest wait, each, for the last hints to others and for the instance's row to go."""
SETTLED_HEARTBEATS = 1.5
"""After so many a partition's former owner has told what it has without it."""
RELEASE_SLACK_S = 1.0
"""For the round that gives leases back, on top of the bounds of what comes before. Part of `config.STOP_SLACK_S`."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The groups of the settings that delivery needs."""

    delivery: DeliverySettings
    leases: LeaseSettings
    retry: RetrySettings
    failure: FailureSettings
    replay: ReplaySettings
    observability: ObservabilitySettings
    drain_s: float
    look_back_s: float


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What delivery works with; made and closed by the composition root."""

    database: Database
    client: Client
    keyring: Keyring
    tracing: Tracing
    instruments: Instruments
    describe: Callable[[], Instance]
    """This instance; its counters are filled in by the engine."""
    clocks: Clocks = SYSTEM_CLOCKS


class Engine:
    """Delivers for this process. `run` is the task; the other methods are for the same loop.

    Implements the hand-off of `store.handoff`.
    """

    def __init__(self, parts: EngineParts, settings: EngineSettings, *, chance: random.Random | None = None) -> None:
        self._parts, self._settings = parts, settings
        self._leaving = asyncio.Event()
        self._left = asyncio.Event()
        self._stop = asyncio.Event()
        delivery, database, clocks = settings.delivery, parts.database, parts.clocks
        self.board = Board(
            LaneLimits(delivery.lane_rows_max, delivery.lane_bytes_max, parked_rows_max=delivery.lane_parked_rows_max),
            _scheduler_limits(delivery),
            delivery.payload_bytes_budget,
            functools.partial(_resume_of, chance or random.Random(), clocks),  # noqa: S311 -- jitter, no secret
            clocks.monotonic,
        )
        self.keeper = LeaseKeeper(
            database,
            _keeper_settings(settings),
            self,
            self.describe,
            clocks.monotonic,
            count=parts.instruments.lease_changed,
        )
        self.flusher = self._make_flusher(delivery)
        self.tokens = Tokens(parts.client, clocks.monotonic)
        self.decisions: DecisionWriter = DecisionWriter(
            functools.partial(decisions.commit, database), self.keeper.epoch, DecisionLimits()
        )
        self._defaults = failure_defaults(settings.retry, settings.failure)
        self.health = HealthKeeper(database, self.board, settings.leases.checkpoint_interval_s, clocks=clocks)
        self.punctuality = Punctuality(
            self.board,
            parts.instruments,
            threshold_s=settings.observability.slo_threshold_s,
            interval_s=settings.observability.metrics_backlog_interval_s,
            reading_fails_since=lambda: self._feeder.failing_since,
            clocks=clocks,
        )
        self.sending = self._make_sending(delivery, chance)
        self.aside = Aside(
            database,
            self.board,
            AsideOptions(settings.leases.checkpoint_interval_s),
            on_parked=self.punctuality.set_aside,
            clock=clocks.monotonic,
        )
        self.checkpointer = Checkpointer(database, self.board, settings.leases.checkpoint_interval_s)
        self._feeder = Feeder(
            database,
            self.board,
            self.load_runtimes,
            FeederLimits(endpoints_max=delivery.fetch_endpoints_max),
            clock=clocks.monotonic,
        )
        executor = CommandExecutor(database, self.board, self.sending, parts.instruments, clocks.monotonic)
        self.watch = Watch(database, self.board, executor.execute_open, self._watch_options())
        self.ownership = Ownership(
            database,
            self.board,
            self.sending,
            self.flusher,
            self.decisions,
            self.checkpointer,
            self.keeper.held,
            on_taken_over=self.watch.sweep_soon,
            drain_s=settings.drain_s,
        )
        self._add_slow_loops(database, settings)
        self._hints = HintSender(database, self.keeper.owner_of, self.keeper.instance_id)
        self._follow_gauges()

    def _make_flusher(self, delivery: DeliverySettings) -> Flusher:
        return Flusher(
            functools.partial(attempts.append, self._parts.database),
            functools.partial(attempts.append_again, self._parts.database),
            on_flushed=self._on_flushed,
            on_dropped=self._on_dropped,
            instruments=self._parts.instruments,
            limits=FlushLimits(interval_s=delivery.flush_interval_s, attempts_max=delivery.flush_attempts_max),
            clock=self._parts.clocks.monotonic,
        )

    def _make_sending(self, delivery: DeliverySettings, chance: random.Random | None) -> SendLoop:
        parts = self._parts
        attempter = Attempter(
            parts.client,
            self.flusher.add,
            parts.tracing,
            parts.instruments,
            parts.clocks.wall,
            self.tokens,
            self.punctuality.first_ended,
            ProxyRecords(self._settings.failure.egress_proxy_record_interval_s, parts.clocks.monotonic),
        )
        return SendLoop(
            self.board,
            attempter,
            self.flusher,
            self.decisions,
            self.keeper.sendable_until,
            SendingOptions(delivery.flush_stall_s),
            parts.instruments,
            self.health.disable,
            clocks=parts.clocks,
            chance=chance,
        )

    def _add_slow_loops(self, database: Database, settings: EngineSettings) -> None:
        """What looks around every so often, beside delivery itself."""
        parts = self._parts
        self.replays = ReplayRunner(
            database,
            self.board,
            ReplayOptions(
                settings.replay.replay_interval_s, settings.replay.replay_ahead_rows_max, settings.look_back_s
            ),
            parts.clocks.monotonic,
        )
        self._meter = BacklogMeter(
            self.board,
            parts.instruments,
            worst_max=settings.observability.metrics_endpoints_worst_max,
            due_rows_max=settings.observability.due_endpoint_rows_max,
            settle_s=SETTLED_HEARTBEATS * _keeper_settings(settings).renew_s,
            clock=parts.clocks.monotonic,
            wall_clock=parts.clocks.wall,
        )
        self._backlog_watch = BacklogWatch(
            database,
            self.board,
            BacklogBounds(settings.failure.backlog_high_rows, settings.failure.backlog_high_age_s),
            settings.observability.metrics_backlog_interval_s,
            parts.clocks.wall,
        )

    # -- the hand-off ----------------------------------------------------------------------------------------------

    def owns(self, key: EndpointKey) -> bool:
        return self.board.delivers_for(key)

    def offer(self, rows: Sequence[OutboxRow]) -> None:
        self.board.offer(rows)

    def hint(self, highest: Mapping[EndpointKey, int]) -> None:
        own = {key: seq for key, seq in highest.items() if self.board.delivers_for(key)}
        for key, seq in own.items():
            self.board.hint(key, seq)
        if not self._parts.database.options.pooled:
            self._hints.add({key: seq for key, seq in highest.items() if key not in own})

    def endpoint_changed(self, key: EndpointKey) -> None:
        """This process changed an endpoint: no need to wait for the poll."""
        self.board.forget_runtime(key)

    def command_appended(self, key: EndpointKey) -> None:
        """A command waits for the owner of that endpoint: no need for it to wait for the owner's next poll."""
        if self.board.delivers_for(key):
            self.watch.poll_soon()
        elif not self._parts.database.options.pooled:
            self._hints.add({key: COMMAND_HINT})

    # -- events of the lease keeper --------------------------------------------------------------------------------

    def on_acquired(self, partition: int, epoch: int) -> None:
        self.ownership.on_acquired(partition, epoch)

    async def on_release(self, partition: int) -> None:
        await self.ownership.on_release(partition)

    def on_lost(self, partition: int) -> None:
        self.ownership.on_lost(partition)

    def on_reset(self) -> None:
        self.ownership.on_reset()

    # -- life ------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Hand all partitions over to others, for good, and go on running. Idempotent."""
        self.keeper.drain()

    def leave(self) -> None:
        """Begin to leave the deliveries to others. Idempotent."""
        self._leaving.set()

    async def left(self) -> None:
        """Wait until that is done, within three times the drain bound, or until `run` has ended."""
        await self._left.wait()

    def stop(self) -> None:
        """`leave` if need be, and end; `run` returns when that is done."""
        self._leaving.set()
        self._stop.set()

    async def run(self) -> None:
        """Deliver until `stop`. Any unexpected error ends the service: it is a bug, and the next owner goes on."""
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self.keeper.run(), name="leases")
                others = [group.create_task(work, name=name) for name, work in self._tasks()]
                await self._leaving.wait()
                await self._leave()
                self._left.set()
                await self._stop.wait()
                await self._end(keeper)
                for task in others:
                    task.cancel()
                await self._parts.database.ended([keeper, *others])
        finally:
            self._left.set()

    async def _leave(self) -> None:
        """Within three times the drain bound: for attempts in flight, for the hand-over, for what is yet to be written.

        The leases go at once, each as its partition comes to rest (`Ownership.on_release`): a receiver that is slow to
        answer holds up no other. What a release had to leave behind, a late answer above all, is a fact all the same.
        """
        drain_s = self._settings.drain_s
        self.sending.stop_starting()
        self.keeper.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self.sending.quiesced(lambda _key: True)
        try:
            async with asyncio.timeout(drain_s + RELEASE_SLACK_S):
                await self.keeper.handed_over()
        except TimeoutError:
            log.warning("leases could not be given back in time; they expire")
        await self.decisions.drain(drain_s / 2)
        await self.flusher.drain(drain_s / 2)

    async def _end(self, keeper: asyncio.Task[None]) -> None:
        """The keeper has known the new owners till now: whoever of them is owed a hint gets it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_WAIT_S):
                await self._hints.sent()
        self.keeper.stop()
        done, _ = await asyncio.wait([keeper], timeout=END_WAIT_S)
        if not done:
            keeper.cancel()

    def _tasks(self) -> list[tuple[str, asyncio._CoroutineLike[None]]]:
        tasks: list[tuple[str, asyncio._CoroutineLike[None]]] = [
            ("flush", self.flusher.run()),
            ("decisions", self.decisions.run()),
            ("send", self.sending.run()),
            ("feed", self._feeder.run()),
            ("takeovers", self.ownership.run()),
            ("aside", self.aside.run()),
            ("tidy", self.aside.run_tidy()),
            ("health", self.health.run()),
            ("replays", self.replays.run()),
            ("backlog", self._backlog_watch.run()),
            ("checkpoint", self.checkpointer.run()),
            ("watch", self.watch.run()),
            ("hints", self._hints.run()),
            ("measure", self._measure()),
        ]
        if not self._parts.database.options.pooled:
            listener = listen.Listener(
                self._parts.database,
                listen.channel_of(self.keeper.instance_id),
                on_payload=self.watch.on_hints,
                on_connected=self.watch.sweep_soon,
            )
            tasks.append(("listen", listener.run()))
        return tasks

    async def _measure(self) -> None:
        while True:
            self._meter.measure()
            await self.punctuality.look()
            await asyncio.sleep(self._settings.observability.metrics_backlog_interval_s)

    def describe(self) -> Instance:
        """This instance as its heartbeat tells."""
        due = self._meter.due
        return replace(
            self._parts.describe(),
            draining=self.keeper.is_draining,
            partitions=len(self.board.epochs),
            in_flight=self.sending.in_flight,
            delivered_total=self.sending.delivered_total,
            due_backlog=due.count,
            due_age_s=due.age_s,
        )

    # -- what the parts call ---------------------------------------------------------------------------------------

    async def load_runtimes(self, keys: Sequence[EndpointKey]) -> list[EndpointRuntime]:
        """Configuration of endpoints, ready for use; one that cannot sign is left out, loudly, and tried again."""
        prepared = []
        for row in await runtime.load_runtime(self._parts.database, keys):
            try:
                endpoint = prepare_endpoint(
                    row, self._parts.keyring, self._settings.delivery.user_agent, self._defaults
                )
            except SecretSealError as error:
                log.error(  # noqa: TRY400 -- the cause is a key that is missing, a traceback says no more
                    "an endpoint cannot be delivered to: a signing key does not open",
                    extra={"endpoint": row.name, "tenant": row.tenant_name, "error": str(error)},
                )
                continue
            if endpoint.deleted or endpoint.can_sign(self._parts.clocks.wall()):
                prepared.append(endpoint)
            else:
                log.error("an endpoint has no signing key", extra={"endpoint": row.name, "tenant": row.tenant_name})
        return prepared

    def _on_flushed(self, flushed: Sequence[Attempt]) -> None:
        self.board.flushed(attempt for attempt in flushed if attempt.outcome is Outcome.SUCCEEDED)

    def _on_dropped(self, dropped: Sequence[Attempt]) -> None:
        """Never to be recorded: the lanes concerned are read anew, and what was acknowledged is delivered again."""
        for partition in {attempt.key.partition for attempt in dropped}:
            epoch = self.keeper.held(partition)
            if epoch is not None:
                self.ownership.on_acquired(partition, epoch)

    def _watch_options(self) -> WatchOptions:
        leases, pooled = self._settings.leases, self._parts.database.options.pooled
        interval_s = min(leases.sweep_interval_s, POOLED_SWEEP_INTERVAL_S) if pooled else leases.sweep_interval_s
        return WatchOptions(interval_s, leases.command_poll_interval_s, self._settings.look_back_s)

    def _follow_gauges(self) -> None:
        instruments = self._parts.instruments
        instruments.in_flight.follow(lambda: self.sending.in_flight)
        instruments.lanes.follow(lambda: len(self.board.lanes))
        instruments.payload_bytes.follow(lambda: self.board.budget.used)
        instruments.partitions_owned.follow(lambda: len(self.board.epochs))
        standings = self.board.admissions
        instruments.circuits_open.follow(lambda: sum(len(s.admission.open_circuits) for _, s in standings.items()))
        instruments.endpoints_throttled.follow(
            lambda: sum(s.admission.throttled_per_s is not None for _, s in standings.items())
        )
        instruments.deliveries_parked.follow(lambda: sum(lane.parked_count for lane in self.board.lanes.values()))
        instruments.lanes_halted.follow(lambda: sum(lane.is_halted for lane in self.board.lanes.values()))
        instruments.flush_lag_s.follow(lambda: self.flusher.oldest_wait_s(self._parts.clocks.monotonic()))


def _resume_of(chance: random.Random, clocks: Clocks, runtime: EndpointRuntime) -> Resume:
    return resume_of(runtime.policies.retry, chance, clocks)


def _scheduler_limits(s: DeliverySettings) -> SchedulerLimits:
    return SchedulerLimits(
        in_flight_max=s.in_flight_max,
        tenant_in_flight_max=s.tenant_in_flight_max,
        slow_in_flight_max=s.slow_in_flight_max,
        slow_threshold_s=s.slow_threshold_s,
    )


def _keeper_settings(settings: EngineSettings) -> KeeperSettings:
    return KeeperSettings(
        lease_ttl_s=settings.leases.lease_ttl_s,
        lease_send_margin_s=settings.leases.lease_send_margin_s,
        release_timeout_s=2 * settings.drain_s + RELEASE_SLACK_S,
    )


def failure_defaults(retry: RetrySettings, failure: FailureSettings) -> FailureDefaults:
    """What the settings say of failures."""
    return FailureDefaults(
        retry=retry.retry_defaults,
        circuit=CircuitPolicy(
            failure_ratio=failure.circuit_failure_ratio,
            window_s=failure.circuit_window_s,
            attempts_min=failure.circuit_attempts_min,
            open_s=failure.circuit_open_s,
        ),
        throttle=ThrottlePolicy(failure.throttle_floor_per_s, failure.throttle_recovery_s),
        disable=DisablePolicy(failure.auto_disable_failing_s, failure.auto_disable_exhausted_heads),
    )
