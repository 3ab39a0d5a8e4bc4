"""Calls that cost much: few at a time, a few more that wait for their turn, the rest refused at once; of one tenant no
more than a share, so that none keeps the others out."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from dispatcher.errors import OverloadedError

RETRY_S = 1.0


class Turns:
    """`at_once` have a turn, `waiting_max` wait; of one tenant `each_max` do either. Others are refused with `reason`,
    and so is who waits too long."""

    def __init__(self, at_once: int, waiting_max: int, each_max: int, *, reason: str) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._waiting_max = waiting_max
        self._waiting = 0
        self._each_max = each_max
        self._open: Counter[str] = Counter()
        self._reason = reason

    @contextlib.asynccontextmanager
    async def turn(self, tenant: str, deadline: float) -> AsyncIterator[None]:
        """One turn, waited for until `deadline` by the loop's clock. Raises OverloadedError."""
        if self._open[tenant] >= self._each_max:
            raise self._refused()
        self._open[tenant] += 1
        try:
            await self._wait(deadline)
            try:
                yield
            finally:
                self._free.release()
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]

    async def _wait(self, deadline: float) -> None:
        if self._free.locked() and self._waiting >= self._waiting_max:
            raise self._refused()
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._free.acquire()
        except TimeoutError as error:
            raise self._refused() from error
        finally:
            self._waiting -= 1

    def _refused(self) -> OverloadedError:
        return OverloadedError("too many of these calls are open", retry_after_s=RETRY_S, reason=self._reason)
