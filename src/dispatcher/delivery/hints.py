"""Hints between instances: who has committed rows for an endpoint of another owner tells it, coalesced, after commit.

A lost hint costs time, not events: the owner's sweep finds the rows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from uuid import UUID

from dispatcher.model import EndpointKey
from dispatcher.store import listen
from dispatcher.store.database import Database

log = logging.getLogger(__name__)

HINTS_PENDING_MAX = 50_000
"""Endpoints waiting to be told of; beyond it the sweep has to find them."""


class HintSender:
    """Coalesces hints per owner; `run` sends them, on connections that publish does not wait for."""

    def __init__(self, database: Database, owner_of: Callable[[int], UUID | None], own_id: UUID) -> None:
        self._database = database
        self._owner_of = owner_of
        self._own_id = own_id
        self._pending: dict[EndpointKey, int] = {}
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, highest: Mapping[EndpointKey, int]) -> None:
        for key, seq in highest.items():
            if len(self._pending) >= HINTS_PENDING_MAX and key not in self._pending:
                return
            self._pending[key] = max(seq, self._pending.get(key, 0))
        if self._pending:
            self._idle.clear()
            self._arrived.set()

    async def sent(self) -> None:
        """Wait until nothing is left to be told. The caller bounds it."""
        await self._idle.wait()

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            pending, self._pending = self._pending, {}
            try:
                await self._send(pending)
            except listen.LOST as error:
                log.info("hints were lost; the sweep will find the rows", extra={"error": str(error)})
            if not self._pending:
                self._idle.set()

    async def _send(self, pending: Mapping[EndpointKey, int]) -> None:
        by_owner: dict[UUID, list[tuple[EndpointKey, int]]] = {}
        for key, seq in pending.items():
            owner = self._owner_of(key.partition)
            if owner is not None and owner != self._own_id:
                by_owner.setdefault(owner, []).append((key, seq))
        for owner, hints in by_owner.items():
            for payload in listen.encode_hints(hints):
                await listen.notify(self._database, listen.channel_of(owner), payload)
