"""Receivers that are no bottleneck: nginx where it is installed, else a few lines on uvloop, in a process of its own.

Both answer every POST with 204 at once. `python -m tests.benchmarks.receivers PORT` is the second one.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.processes import ROOT, clean_environ, wait_for_port
from tests.support.process import free_ports

STOP_TIMEOUT_S = 10.0
BUFFER_BYTES_MAX = 1 << 20
NGINX_CONF = """
daemon off; master_process off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s; client_body_temp_path {folder};
  server {{ listen 127.0.0.1:{port} backlog=4096; tcp_nodelay on; location / {{ return 204; }} }}
}}
"""


@dataclass(frozen=True, slots=True)
class FastReceiver:
    """One that runs; `kind` says which."""

    kind: str
    port: int
    pid: int

    def url(self, path: str) -> str:
        """An address on it."""
        return f"http://127.0.0.1:{self.port}/{path}"


@contextlib.contextmanager
def fast_receiver(folder: Path, *, own: bool = False) -> Iterator[FastReceiver]:
    """Start one; `own` does without nginx."""
    (port,) = free_ports(1)
    nginx = None if own else shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if nginx is None:
        command, kind = [sys.executable, "-m", "tests.benchmarks.receivers", str(port)], "own"
    else:
        conf = folder / "nginx.conf"
        conf.write_text(NGINX_CONF.format(folder=folder, port=port))
        command, kind = [nginx, "-p", str(folder), "-c", str(conf)], "nginx"
    with (folder / "receiver.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=clean_environ(), stdout=log, stderr=log)
    try:
        wait_for_port(port, process)
        yield FastReceiver(kind, port, process.pid)
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


class _Answering(asyncio.Protocol):
    """As little HTTP/1.1 as these clients need: a head, a body of known length, 204."""

    def connection_made(self, transport: Any) -> None:
        self._transport, self._buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            head = buffer[:end].lower()
            start = head.find(b"\r\ncontent-length:")
            length = int(head[start + 17 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
            if len(buffer) < end + 4 + length:
                break
            buffer = buffer[end + 4 + length :]
            self._transport.write(b"HTTP/1.1 204 No Content\r\nserver: bench\r\n\r\n")
        if len(buffer) > BUFFER_BYTES_MAX:
            self._transport.abort()
        self._buffer = buffer


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Answering, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve(int(sys.argv[1])))
