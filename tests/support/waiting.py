"""Waiting for conditions of other processes, with a bounded deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

POLL_S = 0.01


async def until(holds: Callable[[], Awaitable[object]], timeout_s: float = 5.0) -> None:
    """Return once `holds` answers something true; TimeoutError when it does not in time."""
    async with asyncio.timeout(timeout_s):  # the state of another process has no event to wait on
        while not await holds():
            await asyncio.sleep(POLL_S)
