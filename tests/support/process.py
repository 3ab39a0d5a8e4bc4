"""Dispatchers as own processes: `python -m dispatcher serve` on free ports, killed at the latest with the test.

Blocking where it must wait; async tests use the methods that are coroutines.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.node import QUICK
from tests.support.postgres import ONE_TENANT_VARIABLE

ROOT = Path(__file__).parents[2]
READY_TIMEOUT_S = 20.0
POLL_S = 0.02
PORTS = range(20_000, 32_000)
"""Below what Linux gives to outgoing connections, so that a port stays free between a process's end and its restart."""
LOG_TAIL_LINES = 40
_names = itertools.count(1)


class Served:
    """One `dispatcher serve`, which may be stopped and started again on the same ports.

    `variables` are settings in full (`DISPATCHER_…`, `OTEL_…`), on top of `base`; nothing else of the environment is
    passed on.
    """

    def __init__(
        self,
        dsn: str,
        folder: Path,
        variables: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        module: str = "dispatcher",
        base: Mapping[str, str] = QUICK,
    ) -> None:
        self.dsn = dsn
        self._arguments, self._module = tuple(arguments), module
        self.grpc_port, self.admin_port, self.ops_port = free_ports(3)
        self.log_file = folder / f"serve-{next(_names)}.log"
        self._environ = (
            _environ() | dict(base) | self._listen() | {"DISPATCHER_DATABASE_URL": dsn} | dict(variables or {})
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, variables: Mapping[str, str] | None = None) -> None:
        """Start and return at once; see `wait_ready`. `variables` are added for this time."""
        assert self._process is None or self._process.poll() is not None, "it runs"
        with self.log_file.open("ab") as log:
            environ = self._environ | dict(variables or {})
            command = [sys.executable, "-m", self._module, "serve", *self._arguments]
            self._process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Until /readyz says so; AssertionError with the end of the log when it does not, or the process ends."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while self.readiness() != 200:
            assert self._process is not None
            assert self._process.poll() is None, f"ended with {self._process.poll()}:\n{self.log_tail()}"
            assert time.monotonic() < deadline, f"not ready:\n{self.log_tail()}"
            time.sleep(POLL_S)

    async def started(self, variables: Mapping[str, str] | None = None) -> None:
        """Start, as `start` does, and wait until it is ready."""
        self.start(variables)
        await asyncio.to_thread(self.wait_ready)

    def readiness(self) -> int | None:
        """The status that /readyz answers with; None while nobody answers."""
        return self.page("/readyz")[0]

    def page(self, path: str, token: str = "") -> tuple[int | None, str]:
        """Status and text of a page of the ops port, asked with a bearer token; None while nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ops_port, timeout=5)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return None, ""
        finally:
            connection.close()

    def terminate(self) -> None:
        """SIGTERM: the orderly end begins."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    async def exit_code(self, timeout_s: float) -> int:
        """Wait for the end, at most `timeout_s`."""
        assert self._process is not None
        try:
            return await asyncio.to_thread(self._process.wait, timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {timeout_s} s:\n{self.log_tail()}") from None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Nothing happens to one that has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def is_stopped(self) -> bool:
        """Whether SIGSTOP holds it."""
        return ") T " in Path(f"/proc/{self.pid}/stat").read_text()

    def records(self) -> list[dict[str, Any]]:
        """What it has logged, one JSON object a line."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()] if self.log_file.exists() else []

    def troubles(self) -> list[dict[str, Any]]:
        """What it has logged as an error."""
        return [record for record in self.records() if record["level"] in ("error", "critical")]

    def remarks(self) -> list[str]:
        """The end of its log without what it says in ordinary work."""
        records = [record for record in self.records() if record["message"] != "a delivery is dead-lettered"]
        return [json.dumps(record) for record in records[-LOG_TAIL_LINES:]]

    def log_tail(self) -> str:
        """The end of its log."""
        text = self.log_file.read_text() if self.log_file.exists() else "(no log)"
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])

    def _listen(self) -> dict[str, str]:
        ports = {"GRPC": self.grpc_port, "ADMIN": self.admin_port, "OPS": self.ops_port}
        return {f"DISPATCHER_{name}_LISTEN": f"127.0.0.1:{port}" for name, port in ports.items()}


@contextlib.contextmanager
def processes(
    dsn: str,
    folder: Path,
    count: int = 1,
    variables: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> Iterator[tuple[Served, ...]]:
    """So many dispatchers on a migrated database, ready. All are killed at the end, and their logs shown by pytest
    where the test fails."""
    served = tuple(Served(dsn, folder, variables, arguments) for _ in range(count))
    try:
        for each in served:
            each.start()
        for each in served:
            each.wait_ready()
        yield served
    finally:
        for each in served:
            each.kill()
            print(f"--- {each.log_file.name}\n{each.log_tail()}")


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on."""
    found: set[int] = set()
    while len(found) < count:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.add(port)
    return list(found)


def _environ() -> dict[str, str]:
    forced = {"DISPATCHER_DATABASE_ONE_TENANT": "true"} if os.environ.get(ONE_TENANT_VARIABLE) else {}
    kept = forced | {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return kept | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'src' / 'generated'}", "DISPATCHER_LOG_FORMAT": "json"}
