"""`dispatcher` as it is, in a process that ends or freezes itself at one place, or tells what else nobody would see.

    CHAOS_AT=in_flush:SIGKILL python -m tests.support.chaos.launch serve

SIGUSR1 arms it: at the `HITS`th call of that place from then on it gets the signal, once. Nothing is raised.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, assert_never

from dispatcher.cli.main import main
from dispatcher.delivery.client import WebhookClient
from dispatcher.store import attempts, cursors, decisions
from dispatcher.store.writer import PublishWriter

HITS = 5
UNDER_WAY_S = 0.0005
"""How long a call to the database has been under way when the signal comes in the middle of it."""
FENCED = "chaos: a write was fenced"
_log = logging.getLogger("dispatcher.chaos")

Call = Callable[..., Awaitable[Any]]


class When(enum.Enum):
    """On which side of the call the signal comes."""

    BEFORE = "before"
    IN = "in"
    AFTER = "after"


POINTS: Mapping[str, tuple[Any, str, When]] = {
    "before_send": (WebhookClient, "post", When.BEFORE),
    "after_2xx": (WebhookClient, "post", When.AFTER),
    "before_flush": (attempts, "append", When.BEFORE),
    "in_flush": (attempts, "append", When.IN),
    "after_flush": (attempts, "append", When.AFTER),
    "before_decision": (decisions, "commit", When.BEFORE),
    "after_decision": (decisions, "commit", When.AFTER),
    "before_checkpoint": (cursors, "advance", When.BEFORE),
    "in_publish": (PublishWriter, "write", When.IN),
    "after_publish": (PublishWriter, "write", When.AFTER),
}
"""Where a process can be told to end, and what is replaced there."""


class Fuse:
    """Burns down by one at each call once it is armed; the signal comes when it is through."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number
        self._left: int | None = None

    def arm(self, *_: object) -> None:
        self._left = HITS

    def is_through(self) -> bool:
        if self._left is None:
            return False
        self._left -= 1
        return self._left == 0

    def signal(self) -> None:
        os.kill(os.getpid(), self._number)


def signalling(call: Call, when: When, fuse: Fuse) -> Call:
    """The same call, which signals its own process when the fuse is through."""

    @functools.wraps(call)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not fuse.is_through():
            return await call(*args, **kwargs)
        match when:
            case When.BEFORE:
                fuse.signal()
                return await call(*args, **kwargs)
            case When.IN:
                made = asyncio.ensure_future(call(*args, **kwargs))
                await asyncio.sleep(UNDER_WAY_S)
                fuse.signal()
                return await made
            case When.AFTER:
                answer = await call(*args, **kwargs)
                fuse.signal()
                return answer
            case _:
                assert_never(when)

    return wrapped


def telling(call: Call) -> Call:
    """The same fenced write, which says so where the fence kept something out."""

    @functools.wraps(call)
    async def wrapped(db: Any, epochs: Mapping[int, int], *args: Any, **kwargs: Any) -> Any:
        held = await call(db, epochs, *args, **kwargs)
        if len(held) < len(epochs):
            _log.info(FENCED)
        return held

    return wrapped


def plant(environ: Mapping[str, str]) -> None:
    """Put everything into its place, as the environment says."""
    for module, name in ((decisions, "commit"), (cursors, "advance")):
        setattr(module, name, telling(getattr(module, name)))
    if at := environ.get("CHAOS_AT"):
        point, _, number = at.partition(":")
        owner, name, when = POINTS[point]
        fuse = Fuse(signal.Signals[number])
        setattr(owner, name, signalling(getattr(owner, name), when, fuse))
        signal.signal(signal.SIGUSR1, fuse.arm)


if __name__ == "__main__":
    plant(os.environ)
    main(sys.argv[1:])
