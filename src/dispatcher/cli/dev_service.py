"""The service as `dispatcher dev` runs it: in this process, on loopback, on the local database."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from dispatcher.cli.failure import CliError, ExitCode, UsageError
from dispatcher.config import Settings, variable_of
from dispatcher.config.groups import split_address

if TYPE_CHECKING:
    from dispatcher.app import Core, Ports

LISTENS = ("grpc_listen", "admin_listen", "ops_listen")
OURS = ("database_url", "database_direct_url", "secret_keys")
"""Settings that this command makes itself, for its folder."""

DEFAULTS: Mapping[str, str] = {
    "grpc_listen": "127.0.0.1:50051",
    "admin_listen": "127.0.0.1:50052",
    "ops_listen": "127.0.0.1:8080",
    "auth_mode": "none",
    "egress_allowed_networks": "127.0.0.0/8,::1/128",
    "egress_allowed_ports": "1-65535",
    # An injected failure shall be seen to be retried, not wait for seconds.
    "retry_min_s": "0.1",
    "retry_max_s": "10",
    "retry_schedule_s": "0.1,0.5,2,10,60,300,1800,7200",
    # A run that was killed leaves its leases behind; the next one shall not wait long for them.
    "lease_ttl_s": "3",
    # Together below the 5 s in which Ctrl-C has to end everything.
    "grpc_drain_s": "0.5",
    "delivery_drain_s": "1",
    "telemetry_flush_timeout_s": "0.5",
    # Nobody reads the demo's events of the day before yesterday: the folder stays small.
    "retention_s": "86400",
    "delivery_age_max_s": "86400",
}
"""What `dispatcher dev` prefers to the defaults; variables that are set win."""
ANY_PORT: Mapping[str, str] = dict.fromkeys(LISTENS, "127.0.0.1:0")
"""For a run that nobody connects to from outside."""


@dataclass(frozen=True, slots=True)
class LocalService:
    """A running service: where it listens, and the task that ends when it does."""

    ports: Ports
    task: asyncio.Task[None]


def preferences(*, any_port: bool) -> dict[str, str]:
    """The settings of this command by name; with `any_port` it listens wherever there is room."""
    return {**DEFAULTS, **(ANY_PORT if any_port else {})}


def local_settings(environ: Mapping[str, str], *, preferred: Mapping[str, str], **made: str) -> Settings:
    """The settings of the local service: `made` (by name) win over variables, and those over what is `preferred`.

    ConfigError where a variable is wrong.
    """
    given = {variable: value for variable, value in environ.items() if value}
    return Settings.load({**_variables(preferred), **given, **_variables(made)}, required=made)


def refuse_authentication(environ: Mapping[str, str]) -> None:
    """UsageError where callers are to be known: this command's own publisher is nobody, and must not be let in by a
    policy that was meant for something else."""
    variable = variable_of("auth_mode")
    if environ.get(variable, "none") not in ("", "none"):
        raise UsageError(
            f"{variable} is set, but `dispatcher dev` lets everybody in",
            details=("Unset it, or run the service: dispatcher migrate && dispatcher serve",),
        )


def _variables(values: Mapping[str, str]) -> dict[str, str]:
    return {variable_of(name): value for name, value in values.items()}


def refuse_other_database(environ: Mapping[str, str]) -> None:
    """UsageError where a database or its keys are set: a demo must not go there, nor they be passed over."""
    variables = [variable for name in OURS for variable in (variable_of(name), f"{variable_of(name)}_FILE")]
    for variable in variables:
        if environ.get(variable):
            raise UsageError(
                f"{variable} is set, but `dispatcher dev` brings a database and keys of its own",
                details=("Unset it, or run the service on that database: dispatcher migrate && dispatcher serve",),
            )


def check_ports(settings: Settings) -> None:
    """CliError where a port is taken, naming it and the setting; asked before anything is started."""
    for name in LISTENS:
        address = getattr(settings, name)
        host, port = split_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen(1)
            except OSError as error:
                raise _port_error(name, address, error) from error


def _port_error(name: str, address: str, error: OSError) -> CliError:
    host, port = split_address(address)
    taken = error.errno == errno.EADDRINUSE
    problem = f"port {port} is in use by another program" if taken else f"cannot listen on {address}: {error.strerror}"
    shown = f"[{host}]" if ":" in host else host
    return CliError(
        problem,
        code=ExitCode.CONFLICT if taken else ExitCode.USAGE,
        details=(f"Stop that program, or choose another port: {variable_of(name)}={shown}:{min(port + 1000, 65535)}",),
    )


@asynccontextmanager
async def running_service(settings: Settings, log: TextIO) -> AsyncIterator[LocalService]:
    """The service, serving while entered; leaving it drains and stops it. Its logs go to `log`."""
    from dispatcher.app import serve
    from dispatcher.errors import DispatcherError

    stop = asyncio.Event()
    ready: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()

    def on_ready(_: Core, ports: Ports) -> None:
        ready.set_result(ports)

    task = asyncio.create_task(serve(settings, stop=stop, on_ready=on_ready, log_stream=log), name="service")
    try:
        waited_for: set[asyncio.Future[object]] = {task, ready}  # type: ignore[arg-type]  # a set of both kinds
        await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            yield LocalService(ready.result(), task)
    finally:
        stop.set()
        try:
            await task
        except OSError as error:
            raise CliError(f"the service did not start: {error.strerror or error}") from error
        except DispatcherError as error:
            raise CliError(f"the service ended: {error.message}") from error
