"""The process that `serve --workers N` starts: it serves no caller, it looks after those who do.

It holds the gRPC port, without listening, so that its workers can share it and nobody else takes it; it owns the
operators' port and the ops port, and answers there for all workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from uuid_utils.compat import uuid7

from dispatcher import __version__
from dispatcher.api.front import AdminFrontServer
from dispatcher.config import Settings, environment
from dispatcher.config.groups import split_address
from dispatcher.ops.server import OpsServer, tenant_metrics
from dispatcher.ops.workers import WorkerOps, WorkerPages
from dispatcher.security.access import Access, load_access
from dispatcher.signals import stop_on_signals
from dispatcher.telemetry import ExportPlan, Telemetry, configure_logging, start_telemetry
from dispatcher.workers.pool import PoolOptions, WorkerPool

log = logging.getLogger(__name__)

RESTART_MIN_S = 0.1


async def supervise(settings: Settings) -> None:
    """Run `settings.workers` workers until SIGTERM or SIGINT.

    Raises OSError where a port can't be had, WorkerFailedError where no worker starts.
    """
    configure_logging(settings)
    telemetry = start_telemetry(ExportPlan.load(environment()), version=__version__, instance_id=str(uuid7()))
    try:
        with (
            reserved_port(settings.grpc_listen) as address,
            # Its workers share that one, too; they are told of it by their settings.
            reserved_port(settings.scaler_listen) if settings.scaler_listen else contextlib.nullcontext(),
            tempfile.TemporaryDirectory(prefix="dispatcher-") as folder,
        ):
            async with WorkerOps() as ops:
                pool = WorkerPool(
                    _pool_options(settings, Path(folder), address),
                    ops.is_alive,
                    on_death=telemetry.instruments.worker_ended,
                )
                telemetry.instruments.workers.follow(lambda: len(pool.workers))
                await _run(settings, pool, ops, telemetry)
    finally:
        await telemetry.shutdown(settings.telemetry_flush_timeout_s)


async def _run(settings: Settings, pool: WorkerPool, ops: WorkerOps, telemetry: Telemetry) -> None:
    stop_on_signals(pool.stop)
    access = load_access(settings)
    pages = WorkerPages(
        ops, lambda: {w.number: w.ops_socket for w in pool.workers}, telemetry.registry, lambda: pool.is_stopping
    )
    async with (
        OpsServer(settings.ops_listen, pages, tenant_metrics(settings)),
        AdminFrontServer(settings, lambda: [w.admin_target for w in pool.workers], access),
        following(access, pool.stop),
    ):
        await pool.run()
        log.info("stopped")


@contextlib.asynccontextmanager
async def following(access: Access, stop: Callable[[], None]) -> AsyncIterator[None]:
    """Keep what decides about callers fresh; should that ever end by itself, everything does."""
    task = asyncio.create_task(access.run(), name="access")
    task.add_done_callback(lambda _: stop())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def _pool_options(settings: Settings, folder: Path, address: str) -> PoolOptions:
    return PoolOptions(
        count=settings.workers,
        folder=folder,
        grpc_listen=address,
        silent_max_s=settings.worker_silent_max_s,
        restart_min_s=min(RESTART_MIN_S, settings.worker_restart_max_s),
        restart_max_s=settings.worker_restart_max_s,
        drain_s=settings.process_stop_max_s,
    )


@contextlib.contextmanager
def reserved_port(listen: str) -> Iterator[str]:
    """Hold an address for processes that share it; yields it with the port that was bound. Raises OSError.

    A first look without SO_REUSEPORT finds any other service there, which the shared binding would not.
    """
    host, port = split_address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if port:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    with socket.socket(family) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
        bound = held.getsockname()[1]
        yield f"[{host}]:{bound}" if family is socket.AF_INET6 else f"{host}:{bound}"
