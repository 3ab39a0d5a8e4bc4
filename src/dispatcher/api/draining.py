"""Calls in flight, and the state in which no new one is taken.

open ──start()──▶ draining: new calls are refused, streams stop reading ──▶ idle: the last call has been answered
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dispatcher.errors import UnavailableError

REASON = "DRAINING"
RETRY_AFTER_S = 0.5
"""Another instance is one reconnect away."""
QUIET_S = 0.02
QUIET_WAIT_MAX_S = 0.5


def draining_error() -> UnavailableError:
    """What a call that comes too late is told."""
    return UnavailableError(
        "this instance is shutting down; nothing was written", retry_after_s=RETRY_AFTER_S, reason=REASON
    )


class Drain:
    """Shared by the servers of one process."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._calls = 0
        self._refused_at = 0.0

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call in flight. Errors: UnavailableError `DRAINING`."""
        if self.started.is_set():
            self._refused_at = time.monotonic()
            raise draining_error()
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()

    def start(self) -> None:
        """From now on no call is taken. Idempotent."""
        self.started.set()

    async def idle(self) -> None:
        """Wait until no call is in flight. The caller bounds it."""
        await self._idle.wait()

    async def quiet(self) -> None:
        """Wait for a pause between the calls that come too late, at most `QUIET_WAIT_MAX_S`.

        A call that has arrived but has not been looked at when a grpc server stops is answered CANCELLED, which tells
        its caller less than our refusal does.
        """
        end = time.monotonic() + QUIET_WAIT_MAX_S
        while (now := time.monotonic()) < end and now - self._refused_at < QUIET_S:  # noqa: ASYNC110 -- waits for silence
            await asyncio.sleep(QUIET_S / 4)
