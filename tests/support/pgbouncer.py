"""PgBouncer from Debian's package, in transaction mode, before the server of a test."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dispatcher.embedded.binaries import choose_identity
from dispatcher.embedded.processes import WatchedProcess
from tests.support.process import free_ports
from tests.support.proxy import place_of

READY_S = 10.0
POOL_SIZE = 6
"""Fewer than its clients have connections, so that they do share."""
CONFIG = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
ignore_startup_parameters = extra_float_digits
"""


@contextlib.contextmanager
def pooled(dsn: str, folder: Path) -> Iterator[str]:
    """The DSN of the same database through PgBouncer. Skips the test where the package is not installed."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        pytest.skip("PgBouncer is not installed (Debian, Ubuntu: apt-get install pgbouncer)")
    (listen_port,) = free_ports(1)
    host, port = place_of(dsn)
    parts = urlsplit(dsn)
    user = parts.username or "postgres"
    config = folder / "pgbouncer.ini"
    config.write_text(CONFIG.format(host=host, port=port, user=user, listen_port=listen_port, pool_size=POOL_SIZE))
    identity = choose_identity()
    identity.own(folder)
    identity.own(config)
    with (folder / "pgbouncer.log").open("wb") as log:
        process = WatchedProcess([program, str(config)], identity=identity, log=log, env={"PATH": "/usr/bin:/bin"})
    try:
        _wait_ready(process, listen_port, folder)
        yield f"postgresql://{user}@127.0.0.1:{listen_port}{parts.path}"
    finally:
        process.kill_with_children()


def _wait_ready(process: WatchedProcess, port: int, folder: Path) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        said = (folder / "pgbouncer.log").read_text()
        assert process.poll() is None, f"PgBouncer ended:\n{said}"
        assert time.monotonic() < deadline, f"PgBouncer does not listen:\n{said}"
        time.sleep(0.02)
