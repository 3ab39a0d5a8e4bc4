"""Background tasks and bounded waits for tests: nothing sleeps to hide a race, nothing waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

WAIT_S = 10.0


@contextlib.asynccontextmanager
async def running(coroutine: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Run a service loop for the time of the block; what it dies of is raised at the end."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def repeating(step: Callable[[], Awaitable[None]], pause_s: float) -> AsyncIterator[None]:
    """Do it again and again beside the block, and end with the last step begun in it done."""
    stopping = asyncio.Event()

    async def repeat() -> None:
        while not stopping.is_set():
            await step()
            await asyncio.sleep(pause_s)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(repeat())
        try:
            yield
        except BaseException:
            task.cancel()
            raise
        stopping.set()


async def until(condition: Callable[[], object], what: str) -> None:
    """Let the loop run until `condition` holds; fails after 10 s, naming `what` was awaited."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"never came: {what}") from None
