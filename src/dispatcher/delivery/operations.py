"""Publishes the service's own events: from their record to the tenant's subscribers, through the same outbox.

operational_event ──oldest first──▶ publish() with its own id ──▶ deleted
                                       └── killed in between: published again, found as a duplicate, deleted
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from typing import Protocol

import orjson

from dispatcher.delivery.board import Board
from dispatcher.errors import DispatcherError, NotFoundError, OverloadedError, UnavailableError
from dispatcher.model import NewEvent, PublishedEvent
from dispatcher.routing.publisher import Publication
from dispatcher.store import operational
from dispatcher.store.database import Database
from dispatcher.store.operational import StoredOperationalEvent
from dispatcher.telemetry import Instruments

log = logging.getLogger(__name__)


class EventPublisher(Protocol):
    """`routing.publisher.Publisher`."""

    async def publish(self, publication: Publication) -> tuple[PublishedEvent, ...]: ...


class OperationalRelay:
    """`run` is the task. The owner of an endpoint's partition relays its events, in the order of their record."""

    def __init__(
        self,
        database: Database,
        board: Board,
        publisher: EventPublisher,
        instruments: Instruments,
        interval_s: float,
    ) -> None:
        self._database = database
        self._board = board
        self._publisher = publisher
        self._instruments = instruments
        self._interval_s = interval_s

    async def run(self) -> None:
        """Relay for ever. While the database is away, or the queue is full, what is recorded waits."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                while await self.relay() == operational.LOAD_ROWS_MAX:
                    pass
            except (UnavailableError, OverloadedError) as error:
                log.info("events of the service's own wait", extra={"error": str(error)})

    async def relay(self) -> int:
        """One round; returns how many rows it saw. Raises UnavailableError, OverloadedError."""
        waiting = await operational.load(self._database, list(self._board.epochs))
        for event in waiting:
            await self._publish(event)
        return len(waiting)

    async def _publish(self, event: StoredOperationalEvent) -> None:
        """A tenant that is gone has no subscribers; a row that can't be published must not hold up the others."""
        if event.tenant_name is not None:
            try:
                await self._publisher.publish(Publication(event.tenant_name, (_new_event(event),), is_own=True))
            except (UnavailableError, OverloadedError):
                raise
            except NotFoundError:
                pass
            except DispatcherError as error:
                log.error(  # noqa: TRY400 -- the reason says it all
                    "an event of the service's own could not be published",
                    extra={"event_id": event.event_id, "type": event.type, "error": str(error)},
                )
        await operational.delete(self._database, event)
        self._instruments.operational_event(event.type)


def _new_event(event: StoredOperationalEvent) -> NewEvent:
    """The ordering key keeps what is told of one endpoint in order, for subscribers ordered by key too."""
    data = orjson.dumps(_with_names(event))
    return NewEvent(
        event_id=event.event_id,
        digest=hashlib.sha256(data).digest(),
        type=event.type,
        data=data,
        content_type="application/json",
        ordering_key=str(event.key.endpoint_id),
        attributes={},
        source=None,
        subject=None,
        time=event.create_time,
        traceparent=None,
    )


def _with_names(event: StoredOperationalEvent) -> Mapping[str, object]:
    endpoint = f"tenants/{event.tenant_name}/endpoints/{event.endpoint_name}"
    return {**orjson.loads(event.data), "tenant": f"tenants/{event.tenant_name}", "endpoint": endpoint}
