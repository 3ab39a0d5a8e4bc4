"""Processes that end with us, and questions about processes that we did not start."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from dispatcher.embedded.binaries import Identity

POLL_INTERVAL_S = 0.01
PS_TIMEOUT_S = 10.0

# The shell forks a watcher and becomes the server, so the server's process id is the shell's. The watcher reads a pipe
# whose other end only we hold: a line means "all is well, go"; its end means that we are gone, however that happened.
# PR_SET_PDEATHSIG would not do: it is cleared when unshare changes the credentials, fires when the *thread* that
# started the server ends, and exists on Linux only. The watcher is forked twice, so that the server never sees it die.
WATCHED = """
exec 3<&0 </dev/null
( ( read -r _ <&3 || kill -INT $$ ) & )
exec 3<&-
exec "$@"
"""


class WatchedProcess:
    """A server that gets SIGINT when this process ends, even by SIGKILL. It runs in a session of its own, so that
    Ctrl-C in a terminal reaches only us."""

    def __init__(self, command: Sequence[str], *, identity: Identity, log: IO[bytes], env: dict[str, str]) -> None:
        read_end, self._write_end = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the shell text is a constant; the command is ours
                ["/bin/sh", "-c", WATCHED, "sh", *identity.prefix, *command],
                stdin=read_end, stdout=log, stderr=log, env=env, umask=0o077, start_new_session=True,
                user=identity.uid, group=identity.gid, extra_groups=None if identity.uid is None else [],
            )  # fmt: skip
        except BaseException:
            os.close(self._write_end)
            raise
        finally:
            os.close(read_end)

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._release_watcher()
        return code

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> bool:
        """True once it has ended, False when `timeout_s` passed first."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        self._release_watcher()
        return True

    def kill_with_children(self) -> None:
        """SIGKILL for it and all its children. It is stopped first, so that it starts no further ones meanwhile."""
        self.signal(signal.SIGSTOP)
        children = child_pids(self.pid)
        self.signal(signal.SIGKILL)
        for pid in children:
            _kill(pid)
        self._process.wait()
        self._release_watcher()
        while any(is_running(pid) for pid in children):  # SIGKILL cannot be refused: this ends
            time.sleep(POLL_INTERVAL_S)

    def _release_watcher(self) -> None:
        if self._write_end < 0:
            return
        try:
            os.write(self._write_end, b"\n")
        except BrokenPipeError:
            pass  # the watcher is gone already
        finally:
            os.close(self._write_end)
            self._write_end = -1


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _ps() -> list[tuple[int, int, str, str]]:
    """(pid, parent, state, command line) of every process."""
    if Path("/proc/self/stat").exists():
        return [row for entry in Path("/proc").iterdir() if entry.name.isdigit() and (row := _proc_row(entry))]
    text = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,state=,command="],  # noqa: S607 - the system's own ps, where there is no /proc
        capture_output=True, text=True, timeout=PS_TIMEOUT_S, check=True,
    ).stdout  # fmt: skip
    rows = (line.split(None, 3) for line in text.splitlines())
    return [(int(row[0]), int(row[1]), row[2][0], row[3] if len(row) > 3 else "") for row in rows]


def _proc_row(entry: Path) -> tuple[int, int, str, str] | None:
    try:
        stat = (entry / "stat").read_text(errors="replace")
        command = (entry / "cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return None  # it ended while we looked
    state, parent = stat.rpartition(")")[2].split()[:2]  # the name before may hold spaces and parentheses
    return int(entry.name), int(parent), state, command


def child_pids(pid: int) -> list[int]:
    """Process ids of its direct children."""
    return [child for child, parent, _, _ in _ps() if parent == pid]


def is_running(pid: int) -> bool:
    """Whether it exists and is more than a zombie."""
    return any(pid == other and state not in "ZX" for other, _, state, _ in _ps())


def command_line(pid: int) -> str:
    """Its command line, empty when there is no such process."""
    return next((command for other, _, state, command in _ps() if other == pid and state not in "ZX"), "")


def working_folder(pid: int) -> Path | None:
    """Its current folder, or None where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None
