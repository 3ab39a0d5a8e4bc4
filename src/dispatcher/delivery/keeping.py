"""Keeps how endpoints fare on record, tells of it, and disables those that fare too ill."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta

from dispatcher.clocks import SYSTEM_CLOCKS, Clocks
from dispatcher.delivery.admission import CircuitChange
from dispatcher.delivery.admissions import WELL, Standing, Summary
from dispatcher.delivery.board import Board
from dispatcher.delivery.circuit import Transition
from dispatcher.delivery.health import DisableReason, Trouble
from dispatcher.errors import UnavailableError
from dispatcher.model import EndpointKey
from dispatcher.store import health
from dispatcher.store.database import Database
from dispatcher.store.health import HealthRecord
from dispatcher.store.operational import OperationalEvent, OperationalType

log = logging.getLogger(__name__)

RECORDS_MAX = 1000
"""Endpoints written in one transaction."""
ILL_AFTER_S = 5.0
"""A failure that a success follows sooner is not worth a record."""
REASONS = {
    DisableReason.GONE: "GONE: the receiver answered 410",
    DisableReason.FAILING: "FAILING: all attempts have failed for too long",
    DisableReason.EXHAUSTED: "EXHAUSTED: too many deliveries in a row were given up",
}


@dataclass(frozen=True, slots=True)
class Disabling:
    """An endpoint to disable: the revision that fared so ill, and the event that showed it."""

    key: EndpointKey
    epoch: int
    revision: int
    reason: DisableReason
    event_type: str
    status_code: int | None


class HealthKeeper:
    """`run` is the task. `disable` may be called from anywhere on the loop."""

    def __init__(
        self,
        database: Database,
        board: Board,
        interval_s: float,
        *,
        clocks: Clocks = SYSTEM_CLOCKS,
    ) -> None:
        self._database = database
        self._board = board
        self._interval_s = interval_s
        self._clock = clocks.monotonic
        self._now = clocks.now
        self._disabling: dict[EndpointKey, Disabling] = {}
        self._wake = asyncio.Event()

    def disable(self, disabling: Disabling) -> None:
        """Stop sending at once; the record follows as soon as the database takes it."""
        standing = self._board.admissions.get(disabling.key)
        if standing is not None:
            standing.admission.is_shut = True
        self._disabling.setdefault(disabling.key, disabling)
        self._wake.set()

    async def run(self) -> None:
        """Write for ever. While the database is away, what is to be written waits, and shut endpoints stay shut."""
        while True:
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self.write()
            except UnavailableError as error:
                log.warning("the record of endpoints' health waits for the database", extra={"error": str(error)})
                await asyncio.sleep(self._interval_s)

    async def write(self) -> None:
        """One round. Raises UnavailableError and loses nothing."""
        dirty = [(key, standing) for key, standing in self._board.admissions.items() if self._is_due(standing)]
        for start in range(0, len(dirty), RECORDS_MAX):
            await self._write(dirty[start : start + RECORDS_MAX])
        for key, disabling in list(self._disabling.items()):
            await self._disable(disabling)
            del self._disabling[key]
        self._board.admissions.prune(lambda key: key in self._board.lanes)

    def _is_due(self, standing: Standing) -> bool:
        if standing.changes or standing.health.has_recovered:
            return True
        summary = standing.summary
        if summary == standing.recorded:
            return False
        since = summary.failing_since
        is_young = since is not None and self._now() - since < timedelta(seconds=ILL_AFTER_S)
        return not (is_young and standing.recorded == WELL and summary == Summary(failing_since=since))

    async def _write(self, part: list[tuple[EndpointKey, Standing]]) -> None:
        epochs = self._board.epochs
        held = [(key, standing) for key, standing in part if key.partition in epochs]
        told = [(len(standing.changes), standing.health.has_recovered, standing.summary) for _, standing in held]
        records = [
            self._record(key, epochs[key.partition], summary)
            for (key, _), (_, _, summary) in zip(held, told, strict=True)
        ]
        events = [event for key, standing in held for event in self._events(key, standing)]
        await health.write(self._database, {key.partition: epochs[key.partition] for key, _ in held}, records, events)
        for (_, standing), (changes, recovered, summary) in zip(held, told, strict=True):
            del standing.changes[:changes]
            standing.health.has_recovered = standing.health.has_recovered and not recovered
            standing.recorded = summary

    def _record(self, key: EndpointKey, epoch: int, summary: Summary) -> HealthRecord:
        now, wall = self._clock(), self._now()
        return HealthRecord(
            key=key,
            epoch=epoch,
            failing_since=summary.failing_since,
            exhausted_heads=summary.exhausted_heads,
            circuits=[
                {
                    "url_index": index,
                    "state": state.value,
                    "open_time": (wall - timedelta(seconds=now - opened_at)).isoformat(),
                    "probe_time": (wall + timedelta(seconds=probe_at - now)).isoformat(),
                }
                for index, state, opened_at, probe_at in summary.circuits
            ],
            throttle_per_s=summary.throttle_per_s,
            trouble=summary.trouble,
        )

    def _events(self, key: EndpointKey, standing: Standing) -> list[OperationalEvent]:
        events = [_circuit_event(key, change, cause) for change, cause in standing.changes]
        if standing.health.has_recovered:
            events.append(OperationalEvent(key, OperationalType.ENDPOINT_RECOVERED, {}))
        return events

    async def _disable(self, disabling: Disabling) -> None:
        key = disabling.key
        facts = {"reason": disabling.reason.value, "status_code": disabling.status_code}
        event = OperationalEvent(key, OperationalType.ENDPOINT_DISABLED, facts, cause_type=disabling.event_type)
        is_done = await health.disable(
            self._database, disabling.epoch, key, disabling.revision, REASONS[disabling.reason], event
        )
        if is_done:
            log.warning(
                "an endpoint is disabled; its backlog is held",
                extra={
                    "tenant": str(key.tenant_id),
                    "endpoint": str(key.endpoint_id),
                    "reason": disabling.reason.value,
                },
            )
        standing = self._board.admissions.get(key)
        if standing is not None:
            standing.admission.is_shut = False
            standing.health.trouble = Trouble.DISABLED if is_done else standing.health.trouble
        self._board.hold_until_read(key)


def _circuit_event(key: EndpointKey, change: CircuitChange, cause_type: str) -> OperationalEvent:
    kind = OperationalType.CIRCUIT_OPENED if change.transition is Transition.OPENED else OperationalType.CIRCUIT_CLOSED
    return OperationalEvent(key, kind, {"url_index": change.url_index}, cause_type=cause_type)
