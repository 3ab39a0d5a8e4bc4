"""Errors on the wire: google.rpc.Status with details (AIP-193), small enough for a trailer.

Every answer that is not OK carries an ErrorInfo (reason, domain, metadata) and what its class adds. gRPC's own errors,
such as a message larger than the limit, are exempt: no code of ours sees them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from dispatcher.errors import (
    AlreadyExistsError,
    CommandPendingError,
    DatabaseBusyError,
    DeadlineTooShortError,
    DispatcherError,
    EtagMismatchError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    PreconditionError,
    QuotaExceededError,
    UnauthenticatedError,
    UnavailableError,
)
from dispatcher.routing.publisher import ChainBrokenError

DOMAIN = "webhooks.dispatcher"
DETAILS_KEY = "grpc-status-details-bin"
VIOLATIONS_MAX = 20
STATUS_BYTES_MAX = 4096
"""The whole Status, message included: clients refuse more than 8 KiB of metadata, and base64 adds a third."""
MESSAGE_CHARS_MAX = 300
TEXT_CHARS_MAX = 200
METADATA_MAX = 8
INTERNAL_MESSAGE = "internal error"

# The first class that fits is taken, so subclasses stand before their bases.
_CODES: tuple[tuple[type[DispatcherError], grpc.StatusCode], ...] = (
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (AlreadyExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (EtagMismatchError, grpc.StatusCode.ABORTED),
    (ChainBrokenError, grpc.StatusCode.ABORTED),
    (PreconditionError, grpc.StatusCode.FAILED_PRECONDITION),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DatabaseBusyError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (DeadlineTooShortError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (CommandPendingError, grpc.StatusCode.DEADLINE_EXCEEDED),
)


def code_of(error: DispatcherError) -> grpc.StatusCode:
    """The gRPC code of an error; INTERNAL for one that no caller should see."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def is_internal(error: DispatcherError) -> bool:
    """Whether callers learn nothing but INTERNAL of it, so that it must be logged here."""
    return code_of(error) is grpc.StatusCode.INTERNAL


def to_status(error: DispatcherError) -> status_pb2.Status:
    """The Status that tells a caller of `error`, at most 4 kB in all."""
    code = code_of(error)
    if code is grpc.StatusCode.INTERNAL:
        return internal_status()
    status = status_pb2.Status(code=code.value[0], message=_short(error.message, MESSAGE_CHARS_MAX))
    violations = error.violations if isinstance(error, InvalidRequestError) else ()
    metadata = {**error.metadata, **({"violation_count": str(len(violations))} if violations else {})}
    _add(status, _error_info(error.reason, metadata))
    for detail in _details(error):
        _add(status, detail)
    if violations:
        _add_bad_request(status, violations)
    return status


def internal_status(trace_id: str = "") -> status_pb2.Status:
    """What a caller learns of a bug: nothing but the trace id that the log line bears."""
    status = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message=INTERNAL_MESSAGE)
    _add(status, _error_info(DispatcherError.default_reason, {"trace_id": trace_id} if trace_id else {}))
    return status


def trailers(status: status_pb2.Status) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries the details of a Status."""
    return ((DETAILS_KEY, status.SerializeToString()),)


def carried_by(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The Status of a call that failed; without details where gRPC itself ended it, or they are not what it says."""
    code, packed = error.code(), dict(error.trailing_metadata() or ()).get(DETAILS_KEY)
    if isinstance(packed, bytes):
        with contextlib.suppress(DecodeError):
            status = status_pb2.Status.FromString(packed)
            if status.code == code.value[0]:
                return status
    return status_pb2.Status(code=code.value[0], message=error.details() or "")


def code_in(status: status_pb2.Status) -> grpc.StatusCode:
    """Its code as gRPC's."""
    return next(code for code in grpc.StatusCode if code.value[0] == status.code)


def _error_info(reason: str, metadata: Mapping[str, str]) -> error_details_pb2.ErrorInfo:
    shown = {key: _short(value, TEXT_CHARS_MAX) for key, value in list(metadata.items())[:METADATA_MAX]}
    return error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=shown)


def _details(error: DispatcherError) -> Sequence[Message]:
    match error:
        case NotFoundError():
            return [
                error_details_pb2.ResourceInfo(
                    resource_type=error.resource_type,
                    resource_name=_short(error.resource_name, TEXT_CHARS_MAX),
                    description="does not exist",
                )
            ]
        case PreconditionError():
            violation = error_details_pb2.PreconditionFailure.Violation(
                type=error.reason,
                subject=_short(error.subject, TEXT_CHARS_MAX),
                description=_short(error.message, MESSAGE_CHARS_MAX),
            )
            return [error_details_pb2.PreconditionFailure(violations=[violation])]
        case QuotaExceededError():
            quota_violation = error_details_pb2.QuotaFailure.Violation(
                subject=_short(error.subject, TEXT_CHARS_MAX), description=_short(error.message, MESSAGE_CHARS_MAX)
            )
            return [error_details_pb2.QuotaFailure(violations=[quota_violation]), _retry_info(error.retry_after_s)]
        case OverloadedError() | UnavailableError():
            return [_retry_info(error.retry_after_s)]
        case _:
            return []


def _retry_info(retry_after_s: float) -> error_details_pb2.RetryInfo:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromNanoseconds(round(retry_after_s * 1e9))
    return retry


def _add_bad_request(status: status_pb2.Status, violations: Sequence[FieldViolation]) -> None:
    """The first violations, fewer than 20 where their texts are long."""
    detail = error_details_pb2.BadRequest()
    size = status.ByteSize() + 64  # the name of the detail's type and the lengths around it
    for violation in violations[:VIOLATIONS_MAX]:
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_short(violation.field, TEXT_CHARS_MAX), description=_short(violation.description, TEXT_CHARS_MAX)
        )
        size += entry.ByteSize() + 4
        if size > STATUS_BYTES_MAX:
            break
        detail.field_violations.append(entry)
    _add(status, detail)


def _add(status: status_pb2.Status, detail: Message) -> None:
    status.details.add().Pack(detail)


def _short(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"
