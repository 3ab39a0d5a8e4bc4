"""Processes of a benchmark: a clean environment, their CPU time and memory, a port that answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PORT_TIMEOUT_S = 10.0
_CORES = os.sched_getaffinity(0)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def clean_environ() -> dict[str, str]:
    """What a process needs to find this tree, and nothing of the caller's settings."""
    paths = [str(ROOT / "src"), str(ROOT / "src/generated"), str(ROOT)]
    known = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return known | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this tree."""
    return [sys.executable, "-m", module, *arguments]


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until 127.0.0.1:port takes connections. AssertionError if the process ends or it takes too long."""
    deadline = time.monotonic() + PORT_TIMEOUT_S
    while True:
        assert process.poll() is None, f"{process.args} ended with {process.poll()}"
        assert time.monotonic() < deadline, f"{process.args} does not listen"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return


async def ended_output(process: asyncio.subprocess.Process) -> bytes:
    """End a process by SIGTERM, if it has not ended by itself, and what it has printed."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    out, _ = await process.communicate()
    return out


def measured_cores() -> set[int]:
    """The core of the process that is measured, where there are two or more; else whatever there is."""
    return set(sorted(_CORES)[:1]) if len(_CORES) > 1 else _CORES


def other_cores() -> set[int]:
    """Those of database, receiver and all else, which in a deployment are on other machines."""
    return _CORES - measured_cores() or _CORES


def all_cores() -> set[int]:
    """Whatever there is."""
    return _CORES


def pin(pid: int, cores: set[int]) -> None:
    """Keep a process and all its present threads and children to these cores; what they start inherits that."""
    for member in _family(pid, _stats()):
        with contextlib.suppress(OSError):  # it has just ended
            for task in Path(f"/proc/{member}/task").iterdir():
                os.sched_setaffinity(int(task.name), cores)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, with those of its children, living or gone."""
    total = 0.0
    for line in _with_children(pid):
        fields = line.rpartition(")")[2].split()
        total += sum(int(ticks) for ticks in fields[11:15]) / TICKS_PER_S
    return total


def memory_mb(pid: int) -> float:
    """Resident memory of one process in MB (10^6 bytes)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 1e6


def peak_memory_mb(pid: int) -> float:
    """The most it ever had, in MB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _with_children(pid: int) -> list[str]:
    stats = _stats()
    return [stats[member] for member in _family(pid, stats) if member in stats]


def _stats() -> dict[int, str]:
    stats = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended; its parent has its times
                stats[int(folder.name)] = (folder / "stat").read_text()
    return stats


def _family(pid: int, stats: Mapping[int, str]) -> set[int]:
    family = {pid}
    while grown := {child for child, line in stats.items() if _parent(line) in family} - family:
        family |= grown
    return family


def _parent(stat: str) -> int:
    return int(stat.rpartition(")")[2].split()[1])
