"""The bytes of a request, and when they go out."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.delivery.client.wire import Reading, Writes, request_head


def lines(head: bytes) -> list[str]:
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].decode().split("\r\n")


def test_a_head_has_the_headers_as_they_are_and_what_the_protocol_wants() -> None:
    head = request_head("/a?b=c", "h.example:8443", {"X-Team": "billing", "webhook-id": "evt_1"}, 12)
    assert lines(head) == [
        "POST /a?b=c HTTP/1.1",
        "X-Team: billing",
        "webhook-id: evt_1",
        "host: h.example:8443",
        "accept: */*",
        "accept-encoding: identity",
        "user-agent: dispatcher",
        "content-length: 12",
    ]


def test_what_is_given_is_not_said_twice_whatever_its_case() -> None:
    given = {"HOST": "other.example", "Accept": "application/json", "User-Agent": "dispatcher/1"}
    said = lines(request_head("/", "h.example", given, 0))
    assert [line.split(":")[0].lower() for line in said[1:]].count("host") == 1
    assert "HOST: other.example" in said
    assert "accept: */*" not in said
    assert "user-agent: dispatcher" not in said


@pytest.mark.parametrize("bad", ["a\r\nx-evil: 1", "a\nb", "a\rb", "a\0b", "a\x7fb"])
@pytest.mark.parametrize("place", ["name", "value", "target"])
def test_nothing_can_end_a_line(bad: str, place: str) -> None:
    target, headers = ("/" + bad, {}) if place == "target" else ("/", {bad: "v"} if place == "name" else {"n": bad})
    with pytest.raises(ValueError, match="control character"):
        request_head(target, "h.example", headers, 0)


def test_a_value_may_hold_a_tab_and_text_beyond_ascii() -> None:
    assert "x: a\tbü" in lines(request_head("/", "h.example", {"x": "a\tbü"}, 0))


class Transport(asyncio.Transport):
    """Keeps what is written; `error` is raised instead."""

    def __init__(self, *, closing: bool = False, error: Exception | None = None) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self._closing, self._error = closing, error

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._error is not None:
            raise self._error
        self.written.append(bytes(data))


class Waiting:
    """What a reader waits for."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def set_exception(self, error: BaseException) -> None:
        self.error = error


async def test_requests_go_out_together_after_what_is_ready_has_run() -> None:
    writes, transport, readings = Writes(), Transport(), [Reading(), Reading()]
    writes.add(readings[0], transport, b"one")
    writes.add(readings[1], transport, b"two")
    assert transport.written == []
    await asyncio.sleep(0)
    assert transport.written == [b"one", b"two"]
    assert all(reading.is_written for reading in readings)


async def test_a_connection_that_was_closed_meanwhile_is_not_written_to() -> None:
    writes, transport, reading = Writes(), Transport(closing=True), Reading()
    writes.add(reading, transport, b"one")
    await asyncio.sleep(0)
    assert transport.written == []
    assert not reading.is_written


async def test_one_that_cannot_be_written_to_fails_alone() -> None:
    writes, broken, well, waiting = Writes(), Transport(error=RuntimeError("closed")), Transport(), Waiting()
    reading = Reading()
    reading.protocol = waiting  # type: ignore[assignment]
    writes.add(reading, broken, b"one")
    writes.add(Reading(), well, b"two")
    await asyncio.sleep(0)
    assert isinstance(waiting.error, RuntimeError)
    assert well.written == [b"two"]
