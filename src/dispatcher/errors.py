"""Errors the service tells its callers about, free of any transport.

Each class is one gRPC status in `api.errors`; `reason` is the stable machine-readable word of its ErrorInfo
(AIP-193), `metadata` its details. Messages never hold a secret or a payload.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class DispatcherError(Exception):
    """Root of all errors that may reach a caller; anything else is a bug and is answered as opaque INTERNAL."""

    default_reason = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: dict[str, str] = dict(metadata or {})


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field: `field` is its path in the request (`event_types[2]`), `description` says what to send instead."""

    field: str
    description: str


class InvalidRequestError(DispatcherError):
    """The request is wrong whatever the state of the service: INVALID_ARGUMENT with BadRequest."""

    default_reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[FieldViolation], *, reason: str | None = None) -> None:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(f"{first.field}: {first.description}{more}", reason=reason)
        self.violations = tuple(violations)


class UnauthenticatedError(DispatcherError):
    """It is not known who calls: UNAUTHENTICATED. Nothing was looked at, nothing was written."""

    default_reason = "CREDENTIALS_MISSING"


class PermissionDeniedError(DispatcherError):
    """The caller is known and may not: PERMISSION_DENIED, with the permission that is missing in `metadata`."""

    default_reason = "PERMISSION_MISSING"


class NotFoundError(DispatcherError):
    """A named resource does not exist: NOT_FOUND with ResourceInfo. `resource_name` is its full name."""

    default_reason = "RESOURCE_NOT_FOUND"

    def __init__(self, resource_type: str, resource_name: str) -> None:
        super().__init__(f"{resource_type} {resource_name!r} does not exist", metadata={"resource": resource_name})
        self.resource_type = resource_type
        self.resource_name = resource_name


class AlreadyExistsError(DispatcherError):
    """A name or event id is taken: ALREADY_EXISTS."""

    default_reason = "RESOURCE_EXISTS"


class EtagMismatchError(DispatcherError):
    """The resource changed since the caller read it (AIP-154): ABORTED."""

    default_reason = "ETAG_MISMATCH"


class PreconditionError(DispatcherError):
    """The state of the service forbids the call for now: FAILED_PRECONDITION with PreconditionFailure.

    `subject` names what is in the way (a resource name), `reason` is the type of the violation.
    """

    default_reason = "FAILED_PRECONDITION"

    def __init__(
        self, message: str, *, reason: str, subject: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.subject = subject


class OverloadedError(DispatcherError):
    """A bounded queue is full: RESOURCE_EXHAUSTED with RetryInfo. Nothing was written."""

    default_reason = "PUBLISH_QUEUE_FULL"

    def __init__(self, message: str, *, retry_after_s: float, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.retry_after_s = retry_after_s


class QuotaExceededError(OverloadedError):
    """A tenant's publish quota is used up: RESOURCE_EXHAUSTED with QuotaFailure and RetryInfo. Nothing was written."""

    default_reason = "PUBLISH_QUOTA_EXCEEDED"

    def __init__(self, message: str, *, retry_after_s: float, subject: str) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.subject = subject


class UnavailableError(DispatcherError):
    """This instance drains or its database is away: UNAVAILABLE with RetryInfo. Nothing was written."""

    default_reason = "DATABASE_UNAVAILABLE"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.retry_after_s = retry_after_s


class DatabaseBusyError(UnavailableError):
    """The database answers, but another session was in the way or the statement took too long: RESOURCE_EXHAUSTED.

    For loops of ours it is as good as being away; a proxy, though, would eject an instance that answers UNAVAILABLE.
    """

    default_reason = "DATABASE_BUSY"


class CommitUnknownError(UnavailableError):
    """The reply to a commit was lost: the event may or may not be stored. A retry with the same id is safe."""

    default_reason = "COMMIT_UNKNOWN"


class DeadlineTooShortError(DispatcherError):
    """The caller's deadline leaves no time to commit: DEADLINE_EXCEEDED, before anything was written."""

    default_reason = "DEADLINE_TOO_SHORT"


class CommandPendingError(DispatcherError):
    """A command was appended and its owner has not answered in time: DEADLINE_EXCEEDED. It may still be executed."""

    default_reason = "COMMAND_PENDING"
