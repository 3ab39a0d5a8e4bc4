"""Which of our processes sent a request: whose file descriptors hold the socket at its other end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from tests.support.receiver import Request

_LOCAL, _INODE = 1, 9
"""Columns of /proc/net/tcp."""


def sender_of(request: Request, pids: Iterable[int]) -> int | None:
    """The process id among `pids`; None where it was another, or is gone."""
    inode = _inode_of(request.peer_port)
    if inode is None:
        return None
    return next((pid for pid in pids if _holds(pid, f"socket:[{inode}]")), None)


def _inode_of(port: int) -> str | None:
    wanted = f"0100007F:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[_LOCAL] == wanted:
            return columns[_INODE]
    return None


def _holds(pid: int, target: str) -> bool:
    folder = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for link in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(link.readlink()) == target:
                    return True
    return False
