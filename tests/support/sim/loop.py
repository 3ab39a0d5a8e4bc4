"""An event loop without waiting, and processes on it that may freeze, wake and die.

Time passes only when nothing is left to run. Every callback belongs to the process in whose context it was scheduled:
those of a frozen process wait for its thaw, those of a dead one never run. Callbacks of the world belong to none.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import heapq
from asyncio import events
from collections.abc import Callable
from typing import Any


class Stuck(Exception):  # noqa: N818 -- it is what happened, not a kind of error that is caught
    """Nothing runs, and nothing is ever going to."""


class Life(enum.Enum):
    """running ──freeze──▶ frozen ──thaw──▶ running; any ──kill──▶ dead."""

    RUNNING = "RUNNING"
    FROZEN = "FROZEN"
    DEAD = "DEAD"


class Process:
    """What a group of callbacks belongs to."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self._loop = loop
        self.name = name
        self.life = Life.RUNNING
        self.thawed_at = -1.0
        self.held: list[asyncio.Handle] = []
        self.context = contextvars.Context()
        self.context.run(CURRENT.set, self)

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Start a task that belongs to this process, and all that it starts."""
        task = self._loop.create_task(coroutine, context=self.context.copy())
        task._log_destroy_pending = False  # type: ignore[attr-defined] # a process that is killed leaves tasks behind
        return task

    def freeze(self) -> None:
        if self.life is Life.RUNNING:
            self.life = Life.FROZEN

    def thaw(self) -> None:
        if self.life is Life.FROZEN:
            self.life = Life.RUNNING
            self.thawed_at = self._loop.time()
            held, self.held = self.held, []
            self._loop.run_again(held)

    def kill(self) -> None:
        self.life = Life.DEAD
        self.held.clear()


CURRENT: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)
WORLD = contextvars.Context()
"""The context of what belongs to no process."""


def _may_run(handle: asyncio.Handle) -> bool:
    process = handle._context.get(CURRENT)  # type: ignore[attr-defined]
    if process is None or process.life is Life.RUNNING:
        return True
    if process.life is Life.FROZEN:
        process.held.append(handle)
    return False


class _Handle(asyncio.Handle):
    def _run(self) -> None:
        if _may_run(self):
            super()._run()  # type: ignore[misc]


class _TimerHandle(asyncio.TimerHandle):
    def _run(self) -> None:
        if _may_run(self):
            super()._run()  # type: ignore[misc]


class SimLoop(asyncio.BaseEventLoop):
    """Deterministic: callbacks run in the order in which they were scheduled, timers by their time."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = self
        self._now = 0.0
        self._is_over = False
        self.failures: list[dict[str, Any]] = []
        self.set_exception_handler(self._failed)

    def _failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback failed. That nobody looks at how a task or an answer ended is what a crash leaves."""
        if "handle" in context:
            self.failures.append(context)

    def time(self) -> float:
        """Seconds since the simulation began."""
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """What the loop takes for waiting."""
        if timeout is None:
            raise Stuck
        self._now += timeout
        return []

    def at(self, delay_s: float, action: Callable[[], object]) -> None:
        """Do something in the world, later."""
        self.call_at(self._now + delay_s, action, context=WORLD)

    def run_again(self, handles: list[asyncio.Handle]) -> None:
        """Callbacks that were held back."""
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def _process_events(self, _events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def __del__(self, _warn: Any = None) -> None:
        """It holds nothing that would have to be closed."""

    def _call_soon(self, callback: Any, args: Any, context: Any) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        if not self._is_over:
            self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        timer = _TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def abandon(self) -> None:
        """The simulation is over: whatever is still scheduled never runs. What is left of its tasks unwinds when it is
        collected, and may still call us."""
        self._is_over = True
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]


def run(main: Any) -> Any:
    """Run a coroutine of the world to its end on a loop of its own."""
    loop = SimLoop()
    events.set_event_loop(loop)
    try:
        task = WORLD.copy().run(loop.create_task, main(loop))
        return loop.run_until_complete(task)
    finally:
        loop.abandon()
        events.set_event_loop(None)
