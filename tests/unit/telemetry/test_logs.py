"""What logs promise: one line each, bounded, with trace ids, and no secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.trace import NoOpTracerProvider

from dispatcher.config import Settings
from dispatcher.telemetry import Tracing, configure_logging
from dispatcher.telemetry.logs import FIELDS_MAX, redact


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def out() -> io.StringIO:
    stream = io.StringIO()
    configure_logging(Settings(), stream)
    return stream


def line(out: io.StringIO) -> dict[str, Any]:
    (text,) = out.getvalue().splitlines()
    return json.loads(text)


log = logging.getLogger("dispatcher.test")


def test_a_line_is_one_json_object_with_its_fields(out: io.StringIO) -> None:
    log.info("leases %s", "renewed", extra={"partitions": 256, "owner": "pod-1"})
    written = line(out)
    assert written.pop("time").endswith("+00:00")
    assert written == {
        "level": "info",
        "logger": "dispatcher.test",
        "message": "leases renewed",
        "partitions": 256,
        "owner": "pod-1",
    }


def test_a_line_inside_a_span_has_its_trace_ids(out: io.StringIO) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    tracing = Tracing(NoOpTracerProvider().get_tracer("test"))
    with tracing.server_span("a.B/C", f"00-{trace_id}-b7ad6b7169203331-01"):
        log.warning("x")
    assert (line(out)["trace_id"], line(out)["span_id"]) == (trace_id, "b7ad6b7169203331")


def test_an_exception_is_part_of_the_line(out: io.StringIO) -> None:
    try:
        raise RuntimeError("could not reach postgresql://app:hunter2@db/app")
    except RuntimeError:
        log.exception("failed")
    written = line(out)
    assert written["exception"] == "RuntimeError"
    assert "RuntimeError: could not reach postgresql://app:***@db/app" in written["stack"]
    assert "hunter2" not in out.getvalue()


def test_no_secret_is_written(out: io.StringIO) -> None:
    log.info(
        "key whsec_aHVudGVyMg== of https://u:hunter2@h/",
        extra={
            "signing_secret": "hunter2",
            "database_url": "hunter2",
            "Authorization": "hunter2",
            "note": "whsk_hunter2",
        },
    )
    assert "hunter2" not in out.getvalue()
    assert "aHVudGVyMg" not in out.getvalue()
    assert line(out)["signing_secret"] == "***"


def test_what_is_written_is_bounded(out: io.StringIO) -> None:
    log.info("x" * 1_000_000, extra={f"field{n}": "y" * 100_000 for n in range(100)})
    assert len(out.getvalue()) < 50_000
    assert sum(name.startswith("field") for name in line(out)) == FIELDS_MAX


def test_a_field_cannot_replace_what_the_line_says_of_itself(out: io.StringIO) -> None:
    log.info("x", extra={"level": "debug", "time": "never"})
    assert line(out)["level"] == "info"


@pytest.mark.parametrize("value", ["\ud800", 2**70, float("nan"), b"\xff", object()])
def test_any_value_can_be_logged(out: io.StringIO, value: object) -> None:
    log.info("x", extra={"value": value})
    assert line(out)["message"] == "x"


def test_a_terminal_gets_readable_text_that_no_input_can_forge() -> None:
    terminal = Terminal()
    configure_logging(Settings(), terminal)
    log.error("bad\nINFO forged\x1b[2J", extra={"endpoint": "a\rb"})
    (text,) = terminal.getvalue().splitlines()
    assert "dispatcher.test: bad\\nINFO forged\\x1b[2J endpoint=a\\rb" in text


def test_the_form_and_the_level_can_be_chosen() -> None:
    out = io.StringIO()
    configure_logging(Settings(log_format="text", log_level="error"), out)
    log.warning("quiet")
    log.error("loud", extra={"a": 1})
    (text,) = out.getvalue().splitlines()
    assert text.endswith("ERROR   dispatcher.test: loud a=1")


def test_masking_is_linear_on_hostile_text() -> None:
    assert len(redact("a://" * 50_000)) == 200_000
