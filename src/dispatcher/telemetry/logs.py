"""Logs: one JSON object per line with trace ids, or readable text in a terminal. Bounded, and free of secrets.

Fields come by `extra={...}`. Values under names that sound secret, passwords in URLs and signing secrets are masked
wherever they stand, the exception's text included: the last net, not a licence.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson
from opentelemetry import trace

from dispatcher.config.groups import ObservabilitySettings

MESSAGE_CHARS_MAX = 4096
FIELD_CHARS_MAX = 1024
FIELDS_MAX = 32
STACK_CHARS_MAX = 8192

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRET_NAME = re.compile(r"(?i)secret|password|passwd|authorization|cookie|token|private_key|(^|_)dsn$|database_url")
_SECRET_TEXT = re.compile(
    r"(?P<head>[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s/@:]{0,128}:)[^\s@]{1,512}(?=@)|(?P<kind>whs(?:ec|k)_)[A-Za-z0-9+/=_-]+"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LEVEL_COLOURS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1", logging.DEBUG: "2"}
_QUIET_LIBRARIES = ("aiohttp.access", "asyncio", "grpc", "urllib3")


def redact(text: str) -> str:
    """`text` with passwords of URLs and Standard Webhooks secrets masked."""
    return _SECRET_TEXT.sub(lambda found: f"{found['head'] or found['kind']}***", text)


def _clip(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else f"{text[:chars_max]}… ({len(text)} characters)"


def _plain(name: str, value: object) -> object:
    if _SECRET_NAME.search(name):
        return "***"
    if value is None or isinstance(value, bool | int | float):
        return value
    return _clip(redact(str(value)), FIELD_CHARS_MAX)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What was given as `extra`, made plain, masked and bounded; names are as given."""
    given = [(name, value) for name, value in vars(record).items() if name not in _STANDARD]
    return {name: _plain(name, value) for name, value in given[:FIELDS_MAX]}


def trace_ids() -> dict[str, str]:
    """`trace_id` and `span_id` in hex of the span that is current, empty if none is."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}


def _message(record: logging.LogRecord) -> str:
    return _clip(redact(record.getMessage()), MESSAGE_CHARS_MAX)


def _stack(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    text = redact("".join(traceback.format_exception(*record.exc_info)))
    return text if len(text) <= STACK_CHARS_MAX else f"…{text[-STACK_CHARS_MAX:]}"  # the end says what was raised


class JsonFormatter(logging.Formatter):
    """One line: time, level, logger, message, trace_id, span_id, the fields, and on errors exception and stack.

    `constant` fields stand in every line.
    """

    def __init__(self, constant: Mapping[str, object]) -> None:
        super().__init__()
        self._constant = dict(constant)

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **self._constant,
            **trace_ids(),
        }
        for name, value in fields_of(record).items():
            line.setdefault(name, value)
        if stack := _stack(record):
            raised = record.exc_info[0] if record.exc_info else None
            line |= {"exception": raised.__name__ if raised else "", "stack": stack}
        try:
            return orjson.dumps(line).decode()
        except orjson.JSONEncodeError:  # lone surrogates, integers beyond 64 bits
            return json.dumps(line)


class TextFormatter(logging.Formatter):
    """Time, level, message, fields; for people. Control characters are escaped, so that no input forges a line."""

    def __init__(self, constant: Mapping[str, object], *, colours: bool) -> None:
        super().__init__()
        self._constant = dict(constant)
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, with the stack below it on errors."""
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        told = {**self._constant, **fields_of(record), **trace_ids()}
        fields = "".join(f" {name}={value}" for name, value in told.items())
        body = _CONTROL.sub(lambda found: repr(found[0])[1:-1], f"{_message(record)}{fields}")
        level = f"{record.levelname:<7}"
        if self._colours and (colour := _LEVEL_COLOURS.get(record.levelno)):
            level = f"\x1b[{colour}m{level}\x1b[0m"
        stack = _stack(record)
        return f"{clock} {level} {record.name}: {body}" + (f"\n{stack.rstrip()}" if stack else "")


def configure_logging(
    settings: ObservabilitySettings, stream: TextIO | None = None, *, worker: int | None = None
) -> None:
    """Send all logs to `stream` (stderr) in the form that the settings ask for, in place of any former handler.

    `worker`: one of several processes that write to the same place; every line has its number.
    """
    out = stream or sys.stderr
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and out.isatty())
    handler = logging.StreamHandler(out)
    constant = {} if worker is None else {"worker": worker}
    handler.setFormatter(TextFormatter(constant, colours=out.isatty()) if as_text else JsonFormatter(constant))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for library in _QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))
