"""Ports of loopback."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

FILLERS_MAX = 8
FULL_S = 0.2


def closed_port() -> int:
    """A port on which nothing listens: it was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port that neither takes nor refuses a connection: its backlog is full and nobody accepts, so no SYN counts."""
    with contextlib.ExitStack() as sockets:
        listening = sockets.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(FILLERS_MAX):
            filler = sockets.enter_context(socket.socket())
            filler.settimeout(FULL_S)
            try:
                filler.connect(listening.getsockname())
            except TimeoutError:
                yield listening.getsockname()[1]
                return
        raise AssertionError("the backlog does not fill")
