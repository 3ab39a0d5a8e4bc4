"""What the API needs of parts it may not import: small interfaces that `app` fills in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from dispatcher.model import EndpointKey, Instance, ProbeResult


class EndpointProber(Protocol):
    """Sends the ping of TestEndpoint."""

    async def ping(self, key: EndpointKey) -> ProbeResult:
        """Ping now with the endpoint's present settings, whatever its state; a receiver that fails is a result."""


class EndpointListener(Protocol):
    """Told after a change of an endpoint or its keys was committed, on the event loop. Only a shortcut for delivery,
    which also looks for changes by itself; it may neither block nor raise."""

    def __call__(self, key: EndpointKey, /) -> None: ...


class CommandListener(Protocol):
    """Told after a command on an endpoint was committed. Only a shortcut for its owner, who also looks by itself; it
    may neither block nor raise."""

    def __call__(self, key: EndpointKey, /) -> None: ...


class RowListener(Protocol):
    """Told after a delivery was appended that is no publish, with its sequence. Only a shortcut; it may neither block
    nor raise."""

    def __call__(self, key: EndpointKey, seq: int, /) -> None: ...


def tell_nobody_of_rows(key: EndpointKey, seq: int, /) -> None:
    """For a process that delivers nothing."""


def tell_nobody(key: EndpointKey, /) -> None:
    """For a process that delivers nothing."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """How this instance is doing now. `flush_lag_s` is the age of the oldest result not yet written."""

    instance_id: UUID
    version: str
    start_time: datetime
    partitions: tuple[int, ...]
    in_flight: int
    flush_lag_s: float
    draining: bool


class InstanceControl(Protocol):
    """What AdminService asks of the instance that it runs in."""

    def status(self) -> ServiceStatus:
        """The present status, from memory."""

    def instance(self) -> Instance:
        """The same as the fleet sees it."""

    def drain(self) -> None:
        """Begin to hand over all partitions, for good, and turn readiness off. Idempotent."""

    async def drained(self) -> None:
        """Return once nothing is left to hand over. The caller bounds it."""
