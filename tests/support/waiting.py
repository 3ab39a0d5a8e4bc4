"""Waiting for conditions of other processes, with a bounded deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

POLL_S = 0.01


class Asked(Protocol):
    """A connection, or a pool of them."""

    async def fetchval(self, query: str, /) -> Any: ...


async def until(holds: Callable[[], Awaitable[object]], timeout_s: float = 5.0) -> None:
    """Return once `holds` answers something true; TimeoutError when it does not in time."""
    async with asyncio.timeout(timeout_s):  # the state of another process has no event to wait on
        while not await holds():
            await asyncio.sleep(POLL_S)


async def until_blocked(asked: Asked, timeout_s: float = 5.0) -> int:
    """Wait until a session of the database waits for a lock; its process id."""
    sql = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(timeout_s):
        while not (pid := await asked.fetchval(sql)):
            await asyncio.sleep(POLL_S)
    return int(pid)
