"""How the command line fails: exit codes, and errors that are one clear paragraph instead of a traceback."""

from __future__ import annotations

from enum import IntEnum
from typing import assert_never

from dispatcher.cli.status import Code, ServiceError, ServiceStatus


class ExitCode(IntEnum):
    """What the shell sees. `dispatcher --help` lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    NOT_FOUND = 4
    CONFLICT = 5
    INTERRUPTED = 130


class CliError(Exception):
    """Ends the command: `message` is a sentence, `details` are further lines, one fact each."""

    def __init__(self, message: str, *, code: ExitCode = ExitCode.FAILED, details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = details


class UsageError(CliError):
    """What was typed, or a file that was given, is wrong."""

    def __init__(self, message: str, *, details: tuple[str, ...] = ()) -> None:
        super().__init__(message, code=ExitCode.USAGE, details=details)


def exit_code_of(code: Code) -> ExitCode:
    """The exit code for a call that ended with `code`."""
    match code:
        case Code.OK:
            return ExitCode.OK
        case Code.UNAVAILABLE | Code.DEADLINE_EXCEEDED | Code.RESOURCE_EXHAUSTED:
            return ExitCode.UNAVAILABLE
        case Code.NOT_FOUND:
            return ExitCode.NOT_FOUND
        case Code.ALREADY_EXISTS | Code.ABORTED | Code.FAILED_PRECONDITION:
            return ExitCode.CONFLICT
        case Code.INVALID_ARGUMENT | Code.OUT_OF_RANGE:
            return ExitCode.USAGE
        case (
            Code.CANCELLED
            | Code.UNKNOWN
            | Code.PERMISSION_DENIED
            | Code.UNIMPLEMENTED
            | Code.INTERNAL
            | Code.DATA_LOSS
            | Code.UNAUTHENTICATED
        ):
            return ExitCode.FAILED
        case _:
            assert_never(code)


def explain(error: ServiceError) -> CliError:
    """The error of a call as a paragraph: what was refused, why, which fields, and when to try again."""
    status = error.status
    if _never_arrived(status):
        return CliError(
            f"Cannot reach the service at {error.target}: {first_line(status.message)}",
            code=ExitCode.UNAVAILABLE,
            details=("Is it running? --target or DISPATCHER_CLIENT_TARGET says where to look.",),
        )
    if status.code is Code.DEADLINE_EXCEEDED and not status.reason:
        return CliError(
            f"{error.method} got no answer from {error.target} in time; --timeout allows more.",
            code=ExitCode.UNAVAILABLE,
        )
    return CliError(
        f"{error.method} was refused: {first_line(status.message) or status.code}",
        code=exit_code_of(status.code),
        details=details_of(status),
    )


WHO_YOU_ARE = "DISPATCHER_CLIENT_TOKEN, or DISPATCHER_CLIENT_CERTIFICATE_FILE and _KEY_FILE, say who you are."


def details_of(status: ServiceStatus) -> tuple[str, ...]:
    """The facts beside the message, one line each."""
    named = f"{status.code}, reason {status.reason}" if status.reason else str(status.code)
    fields = tuple(f"{violation.field}: {violation.description}" for violation in status.violations)
    retry = () if status.retry_delay_s is None else (f"Try again in {status.retry_delay_s:g} s.",)
    known = (WHO_YOU_ARE,) if status.code is Code.UNAUTHENTICATED else ()
    return (named, *fields, *retry, *known)


def first_line(message: str) -> str:
    """The first line of a message, without the end that gRPC's own messages sprawl into."""
    return message.strip().partition("\n")[0]


def _never_arrived(status: ServiceStatus) -> bool:
    return status.code is Code.UNAVAILABLE and not status.reason
