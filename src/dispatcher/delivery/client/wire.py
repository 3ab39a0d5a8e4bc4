"""One POST on one connection: the bytes that go out, and the answer as far as it is read.

aiohttp's connections, their protocol and its parser are used as they are; its session, request and response are not,
since three quarters of a POST's CPU time went there (docs/benchmarks.md).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import aiohttp
from aiohttp import hdrs, http_exceptions
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDictProxy

from dispatcher.delivery.exchange import bounded_error

RETRY_AFTER_CHARACTERS_MAX = 64
READ_BYTES_MAX = 16_384
INTERIM_RESPONSES_MAX = 10
"""1xx answers before the real one (RFC 9110 section 15.2) that are passed over."""

# RFC 9110 section 5.5; a tab may stand in a value
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_DEFAULTS = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "dispatcher"}
_SWITCHING_PROTOCOLS = 101


@dataclass(frozen=True, slots=True)
class ResponseLimits:
    """Bounds of what is read of an answer."""

    body_bytes_max: int
    header_line_bytes_max: int
    header_count_max: int


@dataclass(slots=True)
class Reading:
    """What has been read of a response so far."""

    status_code: int | None = None
    retry_after: str | None = None
    body: bytes | bytearray = b""
    truncated: bool = False
    is_written: bool = False
    protocol: ResponseHandler | None = None
    content: aiohttp.StreamReader | None = None

    def take_head(self, status_code: int, headers: CIMultiDictProxy[str]) -> None:
        self.status_code = status_code
        retry_after = headers.get(hdrs.RETRY_AFTER)
        if retry_after is not None:
            self.retry_after = bounded_error(retry_after)[:RETRY_AFTER_CHARACTERS_MAX]

    def expire(self) -> None:
        """The time is over: whatever is waited for ends with TimeoutError."""
        self.fail(TimeoutError())

    def fail(self, error: Exception) -> None:
        """Whatever is waited for ends with `error`."""
        if self.protocol is not None:
            self.protocol.set_exception(error)
        if self.content is not None:
            self.content.set_exception(error)


class Writes:
    """Requests that go out together, at the end of the loop's round.

    Each system call wakes its receiver. One by one, between the work of other deliveries, every one of them does; close
    together, most find it awake (a tenth of a delivery's CPU time where both are on one machine).
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[tuple[Reading, asyncio.Transport, bytes]] = []

    def add(self, reading: Reading, transport: asyncio.Transport, data: bytes) -> None:
        """Write `data` soon, unless the connection is closed by then."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._write_all)
        self._waiting.append((reading, transport, data))

    def _write_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for reading, transport, data in waiting:
            if transport.is_closing():
                continue  # its reader knows
            reading.is_written = True
            try:
                transport.write(data)
            except Exception as error:  # noqa: BLE001 - of this connection alone: the others' requests go out all the same
                reading.fail(error)


def request_head(target: str, host: str, headers: Mapping[str, str], body_bytes: int) -> bytes:
    """Request line and headers (RFC 9112 section 3). `headers` go out as they are; `host` unless they have one.

    Raises ValueError for a character that could end a header.
    """
    lines = [f"POST {target} HTTP/1.1", *[f"{name}: {value}" for name, value in headers.items()]]
    if not "".join(lines).isprintable() and _FORBIDDEN.search("\t".join(lines)):
        raise ValueError("a header has a control character")
    lines += _missing(tuple(headers), host)
    lines.append(f"content-length: {body_bytes}\r\n\r\n")
    return "\r\n".join(lines).encode()


@lru_cache(maxsize=4096)
def _missing(names: tuple[str, ...], host: str) -> Sequence[str]:
    """The lines that go out beside headers of these names."""
    given = {name.lower() for name in names}
    wanted = {"host": host, **_DEFAULTS}
    return [f"{name}: {value}" for name, value in wanted.items() if name not in given]


async def converse(
    connection: Connection,
    head: bytes,
    body: bytes,
    writes: Writes,
    limits: ResponseLimits,
    reading: Reading,
    timeout_s: float,
) -> bool:
    """Write a request on a connection that was just handed out, and read its answer into `reading`.

    False where the connection is not fit for another request. Raises TimeoutError after `timeout_s`, OSError, aiohttp's
    errors. A timer of our own: `asyncio.timeout` would cost a tenth of a delivery.
    """
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None:
        raise aiohttp.ServerDisconnectedError
    protocol.set_response_params(
        read_until_eof=True,
        auto_decompress=False,
        read_bufsize=READ_BYTES_MAX,
        max_line_size=limits.header_line_bytes_max,
        max_field_size=limits.header_line_bytes_max,
        max_headers=limits.header_count_max,
    )
    reading.protocol = protocol
    timer = asyncio.get_running_loop().call_later(timeout_s, reading.expire)
    try:
        writes.add(reading, transport, head + body)
        message, content = await protocol.read()
        if 100 <= message.code <= 199 and message.code != _SWITCHING_PROTOCOLS:
            message, content = await _final(protocol)
        reading.take_head(message.code, message.headers)
        if message.code == _SWITCHING_PROTOCOLS:
            return False
        is_whole = content is EMPTY_PAYLOAD or await _read_body(content, limits.body_bytes_max, reading)
    finally:
        timer.cancel()
    # A receiver may answer before it has read everything: what is left would be taken for the next request.
    return is_whole and reading.is_written and not transport.get_write_buffer_size()


async def _final(protocol: ResponseHandler) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
    """The answer behind interim ones."""
    for _ in range(INTERIM_RESPONSES_MAX):
        message, content = await protocol.read()
        if not 100 <= message.code <= 199 or message.code == _SWITCHING_PROTOCOLS:
            return message, content
    raise http_exceptions.BadHttpMessage("nothing but interim responses")


async def _read_body(content: aiohttp.StreamReader, bytes_max: int, reading: Reading) -> bool:
    """At most `bytes_max` of it; False: there is more to come."""
    reading.content = content
    body = reading.body = bytearray()
    while not content.at_eof():
        room = bytes_max - len(body)
        chunk = await content.read(min(room + 1, READ_BYTES_MAX))
        body += chunk[:room]
        if len(chunk) > room:
            reading.truncated = True
            return False
    return True
