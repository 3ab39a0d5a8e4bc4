"""A publisher that asks once: what it was refused for certain must never be received."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import grpc.aio

from tests.support.callers import Caller, event, reason_of
from tests.support.tasks import repeating

NOTHING_WRITTEN = frozenset(
    {
        "DATABASE_UNAVAILABLE",
        "DATABASE_BUSY",
        "DATABASE_EXHAUSTED",
        "ENDPOINTS_LOCKED",
        "PUBLISH_QUEUE_FULL",
        "DRAINING",
        "DEADLINE_TOO_SHORT",
    }
)
"""Reasons that say so; any other error, and one of gRPC's own, leaves it open."""
PAUSE_S = 0.05
TIMEOUT_S = 5.0


@dataclass
class Doubter:
    """Publishes `{name}-0`, `{name}-1`, … one at a time, through one replica after the other, and never again."""

    name: str
    callers: Sequence[Caller]
    ids: list[str] = field(default_factory=list)
    """Acknowledged, in that order."""
    refused: list[str] = field(default_factory=list)
    """Of these it was told that nothing was written."""
    unknown: list[str] = field(default_factory=list)

    def keep(self, kept: Sequence[bool]) -> int:
        """Forget the acknowledgements that are not kept; how many those are."""
        before = len(self.ids)
        self.ids = [event_id for event_id, keep in zip(self.ids, kept, strict=True) if keep]
        return before - len(self.ids)

    def streaming(self) -> AbstractAsyncContextManager[None]:
        """Publish beside the block."""
        numbers = itertools.count()
        return repeating(lambda: self._ask(next(numbers)), PAUSE_S)

    async def _ask(self, number: int) -> None:
        event_id = f"{self.name}-{number}"
        caller = self.callers[number % len(self.callers)]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await caller.publish(event(event_id, b"{}"))
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            reason = reason_of(error) if isinstance(error, grpc.aio.AioRpcError) else ""
            (self.refused if reason in NOTHING_WRITTEN else self.unknown).append(event_id)
        else:
            self.ids.append(event_id)
