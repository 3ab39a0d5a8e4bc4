"""Errors on the wire: codes, details, and that they stay small."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from dispatcher import errors as domain
from dispatcher.api.errors import DETAILS_KEY, STATUS_BYTES_MAX, carried_by, code_in, code_of, to_status
from dispatcher.routing.publisher import ChainBrokenError

Code = grpc.StatusCode
VIOLATION = domain.FieldViolation("a", "b")


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (domain.InvalidRequestError([VIOLATION]), Code.INVALID_ARGUMENT, ["ErrorInfo", "BadRequest"]),
        (domain.NotFoundError("t", "n"), Code.NOT_FOUND, ["ErrorInfo", "ResourceInfo"]),
        (domain.AlreadyExistsError("m"), Code.ALREADY_EXISTS, ["ErrorInfo"]),
        (domain.EtagMismatchError("m"), Code.ABORTED, ["ErrorInfo"]),
        (ChainBrokenError("m"), Code.ABORTED, ["ErrorInfo"]),
        (domain.PreconditionError("m", reason="R"), Code.FAILED_PRECONDITION, ["ErrorInfo", "PreconditionFailure"]),
        (domain.OverloadedError("m", retry_after_s=1), Code.RESOURCE_EXHAUSTED, ["ErrorInfo", "RetryInfo"]),
        (domain.DatabaseBusyError("m"), Code.RESOURCE_EXHAUSTED, ["ErrorInfo", "RetryInfo"]),
        (domain.UnavailableError("m"), Code.UNAVAILABLE, ["ErrorInfo", "RetryInfo"]),
        (domain.CommitUnknownError("m"), Code.UNAVAILABLE, ["ErrorInfo", "RetryInfo"]),
        (domain.DeadlineTooShortError("m"), Code.DEADLINE_EXCEEDED, ["ErrorInfo"]),
        (domain.DispatcherError("secret"), Code.INTERNAL, ["ErrorInfo"]),
    ],
)
def test_each_error_has_its_code_and_details(error: domain.DispatcherError, code: Code, details: list[str]) -> None:
    status = to_status(error)
    assert (code_of(error), status.code) == (code, code.value[0])
    assert [detail.type_url.rpartition(".")[2] for detail in status.details] == details
    assert "secret" not in str(status)


def _leaves(kind: type[domain.DispatcherError]) -> set[type[domain.DispatcherError]]:
    return {kind}.union(*(_leaves(sub) for sub in kind.__subclasses__()))


def test_every_class_of_errors_but_the_root_has_a_code_of_its_own() -> None:
    callers = {kind for kind in _leaves(domain.DispatcherError) if kind.__module__ == domain.__name__}
    for kind in callers - {domain.DispatcherError}:
        assert code_of(kind.__new__(kind)) is not Code.INTERNAL, kind


def test_of_many_violations_20_are_told_and_all_are_counted() -> None:
    status = to_status(domain.InvalidRequestError([VIOLATION] * 1000))
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    status.details[0].Unpack(info)
    status.details[1].Unpack(bad)
    assert (info.metadata["violation_count"], len(bad.field_violations)) == ("1000", 20)


@pytest.mark.parametrize(
    "error",
    [
        domain.InvalidRequestError([domain.FieldViolation("🙂" * 5000, "🙂" * 5000)] * 100),
        domain.NotFoundError("t", "🙂" * 100_000),
        domain.PreconditionError("🙂" * 100_000, reason="R", subject="🙂" * 100_000),
        domain.AlreadyExistsError("🙂" * 100_000, metadata={"resource": "🙂" * 100_000}),
    ],
)
def test_a_status_never_exceeds_4_kb(error: domain.DispatcherError) -> None:
    assert to_status(error).ByteSize() <= STATUS_BYTES_MAX


OTHER, UNKNOWN = (status_pb2.Status(code=code).SerializeToString() for code in (7, 99))


@pytest.mark.parametrize("packed", [b"\xff\xff\xff", b"", OTHER, UNKNOWN])
def test_what_a_failed_call_carries_is_believed_only_where_it_says_the_same_code(packed: bytes) -> None:
    trailers = grpc.aio.Metadata((DETAILS_KEY, packed))
    failed = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), trailers, "away")
    status = carried_by(failed)
    assert (code_in(status), status.message) == (grpc.StatusCode.UNAVAILABLE, "away")
