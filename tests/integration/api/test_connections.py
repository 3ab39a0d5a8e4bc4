"""What long-lived connections of a mesh need: they are renewed, streams get a grace, pings have their bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.api import Api, channel_to, serving
from tests.support.postgres import TestDatabase

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
NO_ERROR, ENHANCE_YOUR_CALM = 0, 11
"""RFC 9113 section 7."""


class Connection:
    """An HTTP/2 connection that makes no call."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.settings: dict[int, int] = {}

    def ping(self) -> None:
        self._writer.write(_frame(PING, bytes(8)))

    async def sent_away(self) -> tuple[int, bytes]:
        """Wait for GOAWAY: its error code and what it says. Answers pings meanwhile."""
        while True:
            kind, flags, payload = await self._read()
            if kind == GOAWAY:
                return int.from_bytes(payload[4:8]), payload[8:]
            if kind == PING and not flags:
                self._writer.write(_frame(PING, payload, flags=1))

    async def _read(self) -> tuple[int, int, bytes]:
        head = await self._reader.readexactly(9)
        payload = await self._reader.readexactly(int.from_bytes(head[:3]))
        if head[3] == SETTINGS and not head[4]:
            pairs = [payload[i : i + 6] for i in range(0, len(payload), 6)]
            self.settings |= {int.from_bytes(pair[:2]): int.from_bytes(pair[2:]) for pair in pairs}
            self._writer.write(_frame(SETTINGS, b"", flags=1))
        return head[3], head[4], payload

    async def has_pings_answered(self, count: int) -> bool:
        """Whether so many pings, one after the other, are answered and nothing is refused."""
        for _ in range(count):
            self.ping()
            while (frame := await self._read())[:2] != (PING, 1):
                if frame[0] == GOAWAY:
                    return False
        return True


def _frame(kind: int, payload: bytes, flags: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + bytes(4) + payload


@asynccontextmanager
async def connected(api: Api) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
    writer.write(PREFACE + _frame(SETTINGS, b""))
    try:
        async with asyncio.timeout(10):
            yield Connection(reader, writer)
    finally:
        writer.close()


async def test_who_pings_too_often_is_sent_away(database: TestDatabase) -> None:
    async with serving(database.options) as api, connected(api) as connection:
        for _ in range(5):
            connection.ping()
        assert await connection.sent_away() == (ENHANCE_YOUR_CALM, b"too_many_pings")


async def test_who_pings_as_often_as_is_allowed_stays_though_it_makes_no_call(database: TestDatabase) -> None:
    async with serving(database.options, grpc_ping_interval_min_s=0.1) as api, connected(api) as connection:
        for _ in range(5):
            assert await connection.has_pings_answered(1)
            await asyncio.sleep(0.12)


async def test_pings_without_a_call_can_be_forbidden(database: TestDatabase) -> None:
    quick = {"grpc_ping_interval_min_s": 0.1, "grpc_ping_without_calls": False}
    async with serving(database.options, **quick) as api, connected(api) as connection:
        for _ in range(5):
            connection.ping()
            await asyncio.sleep(0.12)
        assert (await connection.sent_away())[0] == ENHANCE_YOUR_CALM


async def test_a_connection_says_how_many_calls_it_takes_and_is_renewed_at_its_age(database: TestDatabase) -> None:
    began = time.monotonic()
    async with (
        serving(database.options, grpc_connection_age_s=1.0, grpc_streams_max=7) as api,
        connected(api) as connection,
    ):
        assert (await connection.sent_away())[0] == NO_ERROR
        assert connection.settings[3] == 7, "SETTINGS_MAX_CONCURRENT_STREAMS"
    assert 0.8 < time.monotonic() - began < 5


async def test_a_stream_goes_on_for_the_grace_while_new_calls_take_a_new_connection(database: TestDatabase) -> None:
    async with (
        serving(database.options, grpc_connection_age_s=1.0, grpc_connection_age_grace_s=1.5) as api,
        channel_to(api.server.port) as channel,
    ):
        began = time.monotonic()
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        ended, calls = asyncio.ensure_future(watch.read()), 0
        async with asyncio.timeout(10):
            while not ended.done():
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
                calls += 1
                await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            ended.result()
        lasted_s = time.monotonic() - began
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert 2.0 < lasted_s < 6, "its age of 0.9 to 1.1 s and the grace"
    assert calls > 10
