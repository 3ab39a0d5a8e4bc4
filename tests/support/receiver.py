"""A receiver that does what a test tells it to, and keeps every request it got, in order of arrival.

Raw asyncio, so that it can also reset connections, hang, and answer what is not HTTP. One event loop: the test's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, assert_never

from standardwebhooks import Webhook

WAIT_S = 20.0
"""How long a condition may take before the test fails."""
HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 32 * 1024 * 1024


@dataclass(slots=True)
class Request:
    """One request, complete with its body. `number` counts all requests from 1; times are of the monotonic clock.
    `status` is what was answered, None so far or if nothing was. Header names are in lower case."""

    number: int
    at_s: float
    connection: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    peer_port: int = 0
    status: int | None = None
    answered_at_s: float | None = None

    @property
    def endpoint(self) -> str:
        """The last segment of the path: what `url()` was given."""
        return self.path.rpartition("/")[2].partition("?")[0]

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def sequence(self) -> int:
        return int(self.headers["webhook-sequence"])

    @property
    def attempt(self) -> int:
        return int(self.headers["webhook-attempt"])

    @property
    def is_accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    def verify(self, secret: str) -> None:
        """Fail unless the third party's library accepts the signature."""
        Webhook(secret).verify(self.body, self.headers, json_parse=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A well-formed response, `delay_s` after the request."""

    status: int = 204
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Hang:
    """Nothing until the test sets `released`, then `answer`."""

    released: asyncio.Event
    answer: Answer = field(default_factory=Answer)


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection ends with a TCP reset, without an answer."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """Bytes that are no HTTP, then the connection ends."""

    data: bytes = b"\x00\x01 this is not HTTP\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Drip:
    """The head of a 200, then its body byte by byte, `pause_s` between them, for as long as anybody listens."""

    pause_s: float = 0.02


@dataclass(frozen=True, slots=True)
class BreakOff:
    """The head of a 200 with a body announced, then a TCP reset in the middle of it."""


Behaviour = Answer | Hang | Reset | Garbage | Drip | BreakOff
Decide = Callable[[Request], Behaviour]


class Receiver:
    """Listens on a free loopback port while entered. Answers 204 unless told otherwise.

    `on("a", Answer(500), Reset())` is for the next two requests of endpoint a; `on("a", decide)` asks a function each
    time; `default` is for all else.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.default: Behaviour | Decide = Answer()
        self.in_flight: Counter[str] = Counter()
        self.in_flight_max: Counter[str] = Counter()
        self.accepted_counts: Counter[str] = Counter()
        """Requests answered with 2xx, copies included, by endpoint."""
        self.connections = 0
        self._scripts: dict[str, deque[Behaviour]] = defaultdict(deque)
        self._deciders: dict[str, Decide] = {}
        self._changed = asyncio.Condition()
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    def url(self, endpoint: str) -> str:
        """Where an endpoint's webhooks go."""
        return f"http://127.0.0.1:{self.port}/hooks/{endpoint}"

    def on(self, endpoint: str, *behaviours: Behaviour | Decide) -> None:
        """Add behaviours for the endpoint's next requests, one each, or give a function for all its requests."""
        for behaviour in behaviours:
            if callable(behaviour):
                self._deciders[endpoint] = behaviour
            else:
                self._scripts[endpoint].append(behaviour)

    def of(self, endpoint: str) -> list[Request]:
        """The endpoint's requests in order of arrival."""
        return [request for request in self.requests if request.endpoint == endpoint]

    def accepted(self, endpoint: str) -> list[Request]:
        """Those answered with 2xx."""
        return [request for request in self.of(endpoint) if request.is_accepted]

    def first_receipts(self, endpoint: str) -> list[str]:
        """Event ids in the order in which they first arrived, answered or not."""
        return list(dict.fromkeys(request.event_id for request in self.of(endpoint)))

    async def wait_for(self, condition: int | Callable[[], bool], *, timeout_s: float = WAIT_S) -> None:
        """Wait until so many requests have been answered or the condition, asked at every arrival and answer, holds.

        Raises:
            AssertionError: it did not come true in time; the message says what has arrived.
        """
        wanted = condition if callable(condition) else lambda: self._answered() >= condition
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(wanted)
        except TimeoutError:
            seen = Counter((request.endpoint, request.status) for request in self.requests)
            raise AssertionError(f"not within {timeout_s} s; (endpoint, status) seen: {dict(seen)}") from None

    def _answered(self) -> int:
        return sum(request.status is not None for request in self.requests)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=HEAD_BYTES_MAX)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop listening and break all connections; entering again listens on the same port."""
        if self._server is not None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        connection = self.connections
        try:
            while (request := await self._read(reader, connection)) is not None:
                request.peer_port = writer.get_extra_info("peername")[1]
                if not await self._handle(request, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client, or the end of the test, ended it
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, connection: int) -> Request | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        request_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, path, _ = request_line.split(" ", 2)
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        body = await _read_body(reader, headers)
        return Request(next(self._numbers), time.monotonic(), connection, method, path, headers, body)

    async def _handle(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """True when the connection goes on."""
        endpoint = request.endpoint
        self.requests.append(request)
        self.in_flight[endpoint] += 1
        self.in_flight_max[endpoint] = max(self.in_flight_max[endpoint], self.in_flight[endpoint])
        await self._tell()
        try:
            return await self._behave(self._choose(request), request, writer)
        finally:
            self.in_flight[endpoint] -= 1
            self.accepted_counts[endpoint] += request.is_accepted
            with contextlib.suppress(asyncio.CancelledError):
                await self._tell()

    def _choose(self, request: Request) -> Behaviour:
        if self._scripts[request.endpoint]:
            return self._scripts[request.endpoint].popleft()
        chosen = self._deciders.get(request.endpoint, self.default)
        return chosen(request) if callable(chosen) else chosen

    async def _behave(self, behaviour: Behaviour, request: Request, writer: asyncio.StreamWriter) -> bool:
        match behaviour:
            case Answer():
                await _send(behaviour, request, writer)
                return True
            case Hang():
                await behaviour.released.wait()
                await _send(behaviour.answer, request, writer)
                return True
            case Reset():
                _reset(writer)
                return False
            case Drip():
                await _drip(behaviour, writer)
                return False
            case BreakOff():
                writer.write(b"HTTP/1.1 200 -\r\ncontent-length: 1000\r\n\r\nhalf of it")
                await writer.drain()
                _reset(writer)
                return False
            case Garbage():
                writer.write(behaviour.data)
                await writer.drain()
                return False
            case _:
                assert_never(behaviour)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        length = int(headers.get("content-length", "0"))
        assert length <= BODY_BYTES_MAX
        return await reader.readexactly(length)
    body = bytearray()
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
        assert len(body) <= BODY_BYTES_MAX
    await reader.readline()
    return bytes(body)


async def _send(answer: Answer, request: Request, writer: asyncio.StreamWriter) -> None:
    if answer.delay_s:
        await asyncio.sleep(answer.delay_s)
    headers = dict(answer.headers)
    if answer.status != 204:
        headers.setdefault("content-length", str(len(answer.body)))
    lines = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {value}" for name, value in headers.items())]
    # Set before the bytes leave: whoever has the answer in hand finds it on record.
    request.status, request.answered_at_s = answer.status, time.monotonic()
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + answer.body)
    await writer.drain()


async def _drip(drip: Drip, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 -\r\ncontent-length: 60000\r\n\r\n")
    for _ in range(60_000):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(drip.pause_s)


def _reset(writer: asyncio.StreamWriter) -> None:
    """SO_LINGER with a time of 0 turns the close into a RST."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
