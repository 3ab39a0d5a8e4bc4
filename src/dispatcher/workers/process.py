"""One worker: a process of its own, spawned (gRPC does not survive a fork), that ends when its supervisor does.

spawn ──> running ──terminate()──> draining ──> ended
              └──────── kill() ────────────────────┘

Its standard input is a pipe that nobody writes to: when it closes, whoever held it is gone, and the worker drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import Self

from dispatcher.config import Settings
from dispatcher.config.groups import UNIX_PREFIX

ADMIN_SOCKET = "admin"
OPS_SOCKET = "ops"
KILLED_WAIT_S = 5.0


class Worker:
    """A running worker. `folder` is its own: its sockets are in there."""

    def __init__(self, process: asyncio.subprocess.Process, number: int, folder: Path) -> None:
        self._process = process
        self.number = number
        self.folder = folder

    @classmethod
    async def spawn(cls, number: int, folder: Path, grpc_listen: str) -> Self:
        """Start worker `number`; it inherits the environment, standard output and standard error.

        In a session of its own: Ctrl-C in a terminal is for the supervisor alone. Raises OSError.
        """
        _clear(folder)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dispatcher", "worker", str(number), str(folder), grpc_listen),
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        return cls(process, number, folder)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    @property
    def ops_socket(self) -> Path:
        """Where it serves /livez, /readyz and /metrics."""
        return self.folder / OPS_SOCKET

    @property
    def admin_target(self) -> str:
        """Where it serves AdminService, as a gRPC target."""
        return f"{UNIX_PREFIX}{self.folder / ADMIN_SOCKET}"

    def terminate(self) -> None:
        """Begin its orderly end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now; what it leaves behind is what a crash leaves."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> int:
        """Its exit code; negative is the number of the signal that ended it."""
        return await self._process.wait()

    async def ended_within(self, timeout_s: float) -> bool:
        """Whether it ends by itself in that time; it is killed where it does not."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.ended()
        except TimeoutError:
            self.kill()
            async with asyncio.timeout(KILLED_WAIT_S):
                await self.ended()
            return False
        return True


def _clear(folder: Path) -> None:
    """A killed worker leaves its sockets behind."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in (ADMIN_SOCKET, OPS_SOCKET):
        (folder / name).unlink(missing_ok=True)


def worker_settings(settings: Settings, folder: Path, grpc_listen: str) -> Settings:
    """The service's settings as a worker has them: its own ports are sockets, which only its supervisor sees."""
    return settings.model_copy(
        update={
            "workers": 1,
            "grpc_listen": grpc_listen,
            "admin_listen": f"{UNIX_PREFIX}{folder / ADMIN_SOCKET}",
            "ops_listen": f"{UNIX_PREFIX}{folder / OPS_SOCKET}",
        }
    )


async def supervisor_gone() -> None:
    """For a worker: return when the pipe on standard input closes."""
    gone = asyncio.StreamReader(limit=1024)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(gone), sys.stdin)
    try:
        while await gone.read(1024):
            pass
    finally:
        transport.close()
