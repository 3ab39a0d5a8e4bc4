"""Hints between instances by LISTEN and NOTIFY: they only speed up, the sweep finds what a lost one missed.

Each instance listens on a channel of its own; a publisher notifies the owner after its commit, on another connection
(NOTIFY inside the publish transaction would serialise all commits). A transaction pooler cannot LISTEN: with
`DatabaseOptions.pooled` run no `Listener` and poll.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import UUID

import asyncpg

from dispatcher.errors import UnavailableError
from dispatcher.model import EndpointKey
from dispatcher.store.database import AWAY_ERRORS, Database

PAYLOAD_BYTES_MAX = 7999
"""PostgreSQL takes payloads shorter than 8000 bytes."""
HINTS_PER_PAYLOAD = 90
"""A hint is at most 64 + 16 + 1 characters, see `encode_hints`."""

LOST: tuple[type[BaseException], ...] = (UnavailableError, asyncpg.PostgresError, *AWAY_ERRORS)

log = logging.getLogger(__name__)


def channel_of(instance_id: UUID) -> str:
    """The channel of one instance; an identifier under 63 bytes."""
    return f"dispatcher_{instance_id.hex}"


NOTIFY = "SELECT pg_notify($1, $2)"


async def notify(db: Database, channel: str, payload: str) -> None:
    """Send a hint on a pooled connection. Raises ValueError for a payload over the limit."""
    if len(payload.encode()) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a notification carries at most {PAYLOAD_BYTES_MAX} bytes")
    await db.execute(NOTIFY, channel, payload)


def encode_hints(hints: Iterable[tuple[EndpointKey, int]]) -> Iterator[str]:
    """Pack (endpoint, highest sequence) into few payloads: tenant, endpoint and sequence in hex, comma-separated.

    All of them are fixed-width but the sequence, so no separator stands between.
    """
    words = [f"{key.tenant_id.hex}{key.endpoint_id.hex}{seq:x}" for key, seq in hints]
    for start in range(0, len(words), HINTS_PER_PAYLOAD):
        yield ",".join(words[start : start + HINTS_PER_PAYLOAD])


def decode_hints(payload: str) -> list[tuple[EndpointKey, int]]:
    """Read a payload of `encode_hints`. Raises ValueError for anything else: whoever may connect may notify."""
    return [(EndpointKey(UUID(w[:32]), UUID(w[32:64])), int(w[64:], 16)) for w in payload.split(",")]


class Listener:
    """Listens on one channel over a connection of its own, and reconnects for ever.

    `on_payload` gets each payload; `on_connected` is called whenever listening has (again) begun: hints sent before may
    be lost, so the owner sweeps. Both run in the event loop and must not block. A half-open connection is found by a
    probe every `probe_s`.
    """

    def __init__(
        self,
        db: Database,
        channel: str,
        *,
        on_payload: Callable[[str], None],
        on_connected: Callable[[], None],
        retry_s: float = 1.0,
        probe_s: float = 5.0,
    ) -> None:
        self._db = db
        self._channel = channel
        self._on_payload = on_payload
        self._on_connected = on_connected
        self._retry_s = retry_s
        self._probe_s = probe_s
        self.is_connected = False

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                await self._listen()
            except LOST as error:
                log.warning("the listener lost its connection", extra={"error": str(error)})
            await asyncio.sleep(self._retry_s)

    async def _listen(self) -> None:
        """One connection's life; returns when the server has closed it."""
        connection = await self._db.connect()
        closed = asyncio.Event()
        connection.add_termination_listener(lambda _connection: closed.set())
        try:
            await connection.add_listener(self._channel, self._received)
            self.is_connected = True
            self._on_connected()
            while not closed.is_set():
                await self._probe(connection, closed)
        finally:
            self.is_connected = False
            connection.terminate()

    async def _probe(self, connection: asyncpg.Connection, closed: asyncio.Event) -> None:
        """Wait for the end of the connection; after `probe_s` without one ask the server whether it is still there."""
        try:
            async with asyncio.timeout(self._probe_s):
                await closed.wait()
        except TimeoutError:
            await connection.execute("SELECT", timeout=self._db.options.connect_timeout_s)

    def _received(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        self._on_payload(str(payload))
