"""Keeps so many workers running: one that dies or falls silent is replaced, all of them end in order.

   ┌──────────── pause, longer each time ◀── died, or was silent too long and was killed ◀──┐
   ▼                                                                                        │
spawned ──▶ answers /livez ──▶ up ──────────────────────────────────────────────────────────┤
   │                                                                                        │
   └── ended before any worker was up: the service can't start, all end                     └── stop() ──▶ ended
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from dispatcher.workers.process import Worker

log = logging.getLogger(__name__)

Probe = Callable[[Path], Awaitable[bool]]
"""Whether the worker whose ops socket this is answers /livez, within a bounded time."""
STARTING_MAX_S = 60.0
"""A worker that has never answered is given so long, on a busy machine too."""
STEADY_S = 60.0
"""A worker that lived so long had a good start: the next pause is a short one again."""


class WorkerFailedError(Exception):
    """A worker ended before any was up: it has said why. `exit_code` is its own."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"a worker ended at its start, with exit code {exit_code}")
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """`drain_s`: how long the orderly end of a worker may take before it is killed."""

    count: int
    folder: Path
    grpc_listen: str
    silent_max_s: float
    restart_min_s: float
    restart_max_s: float
    drain_s: float
    probe_interval_s: float = 0.25


class WorkerPool:
    """`run` is the task; `stop` ends it. `workers` are those that run now."""

    def __init__(self, options: PoolOptions, probe: Probe, *, on_death: Callable[[], None]) -> None:
        self._options = options
        self._probe = probe
        self._on_death = on_death
        self._stopping = asyncio.Event()
        self._workers: dict[int, Worker] = {}
        self._any_up = False

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Those that run now, by number."""
        return tuple(worker for _, worker in sorted(self._workers.items()) if worker.is_running)

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        """Begin the orderly end of all. Idempotent."""
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`. Raises WorkerFailedError where the service can't start; no worker is left behind, ever."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._options.count):
                    group.create_task(self._keep(number), name=f"worker-{number}")
        except* WorkerFailedError as failed:
            raise failed.exceptions[0] from None
        finally:
            for worker in self.workers:
                worker.kill()

    async def _keep(self, number: int) -> None:
        pause_s = self._options.restart_min_s
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run_one(number)
            if self._stopping.is_set():
                return
            if not self._any_up:
                raise WorkerFailedError(code)
            self._on_death()
            if time.monotonic() - began > STEADY_S:
                pause_s = self._options.restart_min_s
            log.error(
                "a worker ended; it is replaced",
                extra={"worker": number, "exit_code": code, "pause_s": round(pause_s, 2)},
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            pause_s = min(pause_s * 2, self._options.restart_max_s)

    async def _run_one(self, number: int) -> int:
        """One life of a worker; its exit code."""
        options = self._options
        worker = await Worker.spawn(number, options.folder / str(number), options.grpc_listen)
        self._workers[number] = worker
        watching = asyncio.create_task(self._watch(worker), name=f"watch-{number}")
        stopped = asyncio.create_task(self._stopping.wait())
        ended = asyncio.create_task(worker.ended())
        try:
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                worker.terminate()
                if not await worker.ended_within(options.drain_s):
                    log.error("a worker did not end in time and was killed", extra={"worker": number})
            return await ended
        finally:
            worker.kill()
            for task in (watching, stopped, ended):
                task.cancel()
            self._workers.pop(number, None)

    async def _watch(self, worker: Worker) -> None:
        """Kill it where it answers nothing for too long, as one that is stopped or spins does."""
        killed_at = time.monotonic() + STARTING_MAX_S
        while True:
            await asyncio.sleep(self._options.probe_interval_s)
            if await self._probe(worker.ops_socket):
                killed_at = time.monotonic() + self._options.silent_max_s
                self._any_up = True
            elif time.monotonic() > killed_at:
                log.error("a worker is silent and is killed", extra={"worker": worker.number, "pid": worker.pid})
                worker.kill()
                return
