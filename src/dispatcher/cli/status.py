"""What the service answers when it refuses, read out of google.rpc.Status (AIP-193) and free of gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """The codes of google.rpc.Code, all of them."""

    OK = "OK"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"


@dataclass(frozen=True, slots=True)
class Violation:
    """One line of BadRequest (`field` is a path in the request) or PreconditionFailure (`field` is the subject)."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """A status with its details. `reason` is empty where no ErrorInfo came: then gRPC itself failed, not the service.

    `retry_delay_s` is that of RetryInfo, None without one.
    """

    code: Code
    message: str = ""
    reason: str = ""
    violations: tuple[Violation, ...] = ()
    retry_delay_s: float | None = None


OK_STATUS = ServiceStatus(Code.OK)


class ServiceError(Exception):
    """A call ended with a status other than OK. `method` is such as TenantService.GetTenant, `target` is host:port."""

    def __init__(self, status: ServiceStatus, *, method: str, target: str) -> None:
        super().__init__(f"{method}: {status.code}: {status.message}")
        self.status = status
        self.method = method
        self.target = target
