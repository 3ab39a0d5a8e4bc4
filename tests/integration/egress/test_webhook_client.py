"""The client against receivers that behave, misbehave and attack, over real sockets."""

import asyncio
import contextlib
import gzip
import socket
import ssl
import struct
import tracemalloc

import aiohttp
import pytest

from dispatcher.delivery.client import ClientOptions, WebhookClient
from dispatcher.delivery.exchange import Exchange, ExchangeKind, WebhookRequest
from dispatcher.security.addresses import AddressKind
from dispatcher.security.egress import EgressPolicy, parse_url
from dispatcher.security.resolver import PolicyResolver
from tests.support.hostile import HostileServer, answering, hostile_server, make_certificates
from tests.support.ports import black_hole

LOOPBACK = EgressPolicy.for_development()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def request(url, body=b"{}", timeout_s=5.0, headers=None):
    return WebhookRequest(parse_url(url), headers or {"content-type": "application/json"}, body, timeout_s)


async def post(url, *, policy=LOOPBACK, options=None, resolver=None, **kwargs) -> Exchange:
    async with WebhookClient(policy, options, resolver=resolver) as client:
        return await client.post(request(url, **kwargs))


async def post_to(behave, **kwargs) -> Exchange:
    async with hostile_server(behave) as server:
        return await post(server.url, **kwargs)


async def until(condition):
    """Wait for what happens in the same loop, at most five seconds."""
    async with asyncio.timeout(5):
        while not condition():  # the states waited for belong to the code under test
            await asyncio.sleep(0.001)


def resolver_of(policy, *answers):
    """Answers with each list of addresses in turn, then keeps to the last."""
    remaining = list(answers)

    async def lookup(host):
        return remaining.pop(0) if len(remaining) > 1 else remaining[0]

    return PolicyResolver(policy, lookup=lookup)


async def test_a_webhook_goes_out_exactly_as_given():
    headers = {"content-type": "text/plain", "webhook-id": "evt_1", "user-agent": "dispatcher/1"}
    async with hostile_server(answering(OK)) as server:
        exchange = await post(server.url + "/a%2Fb?q=%20", body=b"\x00exact \xff", headers=headers)
    assert (exchange.kind, exchange.status_code, exchange.excerpt, exchange.error) == ("RESPONSE", 200, b"ok", "")
    assert exchange.is_success
    assert exchange.peer == "127.0.0.1"
    assert 0 < exchange.duration_s < 5
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /hook/a%2Fb?q=%20 HTTP/1.1"
    assert body == b"\x00exact \xff"
    assert {line.lower() for line in lines[1:]} == {
        f"host: 127.0.0.1:{server.port}",
        "content-type: text/plain",
        "webhook-id: evt_1",
        "user-agent: dispatcher/1",
        "content-length: 8",
        "accept: */*",
        "accept-encoding: identity",
    }


async def test_an_empty_body_goes_out_with_length_zero():
    async with hostile_server(answering(OK)) as server:
        assert (await post(server.url, body=b"")).is_success
    assert b"content-length: 0" in server.requests[0].lower()


async def test_connections_are_kept_alive_and_used_again():
    async with hostile_server(answering(OK)) as server, WebhookClient(LOOPBACK) as client:
        for _ in range(5):
            assert (await client.post(request(server.url))).is_success
        assert server.connections == 1
        assert client.open_connections == 1


async def test_an_idle_connection_is_closed_when_its_time_is_over():
    options = ClientOptions(keepalive_timeout_s=0.1)
    async with hostile_server(answering(OK)) as server, WebhookClient(LOOPBACK, options) as client:
        await client.post(request(server.url))
        assert client.open_connections == 1
        await until(lambda: not client.open_connections)
        assert (await client.post(request(server.url))).is_success
        assert server.connections == 2


async def test_the_connection_used_last_is_used_next():
    """So that those which a burst has made can expire."""
    async with hostile_server(answering(OK)) as server, WebhookClient(LOOPBACK) as client:
        await asyncio.gather(*(client.post(request(server.url)) for _ in range(5)))
        (route,) = client._connections._routes.values()
        burst_over_s = max(since for _, since, _ in route.idle)
        for _ in range(20):
            await client.post(request(server.url))
        assert server.connections == len(route.idle) == 5
        assert sum(since > burst_over_s for _, since, _ in route.idle) == 1


@pytest.mark.filterwarnings("error::ResourceWarning")  # it is closed, not left to the garbage collector
async def test_no_connection_is_left_at_an_origin_that_was_forgotten_meanwhile(monkeypatch):
    monkeypatch.setattr("dispatcher.delivery.client.connections.ROUTES_MAX", 1)
    answering_now = asyncio.Event()

    async def late(state, reader, writer):
        await state.read_request(reader)
        await answering_now.wait()
        writer.write(OK)
        await writer.drain()
        await reader.read()

    async with (
        hostile_server(late) as first,
        hostile_server(answering(OK)) as second,
        WebhookClient(LOOPBACK) as client,
    ):
        posting = asyncio.create_task(client.post(request(first.url)))
        await until(lambda: first.requests)
        assert (await client.post(request(second.url))).is_success  # which makes the client forget the first
        answering_now.set()
        assert (await posting).is_success
        await until(lambda: client.open_connections == 1)


async def test_an_origin_that_two_learn_at_once_is_learnt_once():
    async with WebhookClient(LOOPBACK) as client:
        key = ("https", "a.example", 443, None)
        asked = aiohttp.ClientRequest("POST", parse_url("https://a.example/").wire)
        assert client._connections.learn(key, asked) is client._connections.learn(key, asked)


async def test_beyond_the_bound_on_idle_connections_each_is_closed_after_use():
    options = ClientOptions(idle_connections_max=0)
    async with hostile_server(answering(OK)) as server, WebhookClient(LOOPBACK, options) as client:
        for _ in range(3):
            assert (await client.post(request(server.url))).is_success
        assert server.connections == 3
        await until(lambda: not client.open_connections)


async def test_closing_the_client_closes_every_connection():
    async with hostile_server(answering(OK)) as server:
        async with WebhookClient(LOOPBACK) as client:
            await asyncio.gather(*(client.post(request(server.url)) for _ in range(10)))
            assert client.open_connections == 10
        await until(lambda: not client.open_connections)


@pytest.mark.parametrize("status", [201, 204, 299, 300, 304, 400, 404, 410, 429, 500, 503, 599])
async def test_every_status_is_a_response_and_only_2xx_a_success(status):
    length = b"" if status in {204, 304} else b"Content-Length: 0\r\n"
    exchange = await post_to(answering(b"HTTP/1.1 %d X\r\n%s\r\n" % (status, length)))
    assert (exchange.kind, exchange.status_code) == (ExchangeKind.RESPONSE, status)
    assert exchange.is_success == (200 <= status <= 299)


async def test_retry_after_is_reported_bounded():
    exchange = await post_to(answering(b"HTTP/1.1 503 X\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n"))
    assert exchange.retry_after == "120"
    long = b"9" * 1000
    exchange = await post_to(answering(b"HTTP/1.1 503 X\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n" % long))
    assert exchange.retry_after == "9" * 64


async def test_a_redirect_is_not_followed():
    async with hostile_server(answering(OK)) as target:
        location = target.url.encode()
        answer = b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % location
        exchange = await post_to(answering(answer))
    assert (exchange.kind, exchange.status_code) == (ExchangeKind.RESPONSE, 302)
    assert target.connections == 0


async def test_proxies_of_the_environment_are_ignored(monkeypatch):
    async with hostile_server(answering(OK)) as proxy, hostile_server(answering(OK)) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert (await post(server.url)).is_success
    assert (proxy.connections, server.connections) == (0, 1)


async def test_cookies_are_not_kept():
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\n\r\n"
    async with hostile_server(answering(answer)) as server, WebhookClient(LOOPBACK) as client:
        for _ in range(2):
            assert (await client.post(request(server.url))).is_success
    assert b"cookie" not in server.requests[1].lower()


# --- hostile responses -------------------------------------------------------------------------------------------


async def hang(state, reader, writer):
    await state.read_request(reader)
    await reader.read()


async def hang_before_anything(state, reader, writer):
    await reader.read()


async def drip(state, reader, writer):
    await state.read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def drip_head(state, reader, writer):
    await state.read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def endless_informational(state, reader, writer):
    await state.read_request(reader)
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0)


async def test_a_receiver_that_only_ever_announces_its_answer_is_not_waited_for():
    exchange = await post_to(endless_informational, timeout_s=30.0)
    assert (exchange.kind, exchange.status_code) == (ExchangeKind.INVALID_RESPONSE, None)


@pytest.mark.parametrize(("behave", "status"), [(hang, None), (drip, 200), (drip_head, None)])
async def test_one_deadline_covers_the_whole_exchange(behave, status):
    exchange = await post_to(behave, timeout_s=0.3)
    assert (exchange.kind, exchange.status_code) == (ExchangeKind.TIMEOUT, status)
    assert 0.29 <= exchange.duration_s < 1.0  # uvloop's timers are whole milliseconds
    assert not exchange.is_success
    assert "deadline" in exchange.error


async def post_connecting(url, *, resolver=None, timeout_s=10.0) -> Exchange:
    options = ClientOptions(connect_timeout_s=0.3)
    return await post(url, options=options, resolver=resolver, timeout_s=timeout_s)


def resolver_that_hangs():
    return PolicyResolver(LOOPBACK, lookup=lambda _host: asyncio.Event().wait())


async def test_a_receiver_that_takes_no_connection_costs_the_time_to_connect_and_no_more():
    with black_hole() as port:
        exchange = await post_connecting(f"http://127.0.0.1:{port}/")
    assert (exchange.kind, exchange.error) == (ExchangeKind.TIMEOUT, "no connection within 0.3 s")
    assert 0.29 <= exchange.duration_s < 2.0


async def test_the_time_to_connect_covers_the_handshake_of_tls():
    async with hostile_server(hang_before_anything) as server:
        exchange = await post_connecting(f"https://127.0.0.1:{server.port}/")
    assert server.connections == 1
    assert (exchange.kind, exchange.error) == (ExchangeKind.TIMEOUT, "no connection within 0.3 s")
    assert 0.29 <= exchange.duration_s < 2.0


async def test_the_time_to_connect_covers_the_name_look_up():
    exchange = await post_connecting("http://receiver.example/", resolver=resolver_that_hangs())
    assert (exchange.kind, exchange.error) == (ExchangeKind.TIMEOUT, "no connection within 0.3 s")
    assert 0.29 <= exchange.duration_s < 2.0


async def test_a_deadline_that_comes_before_a_connection_says_so():
    with black_hole() as port:
        exchange = await post_connecting(f"http://127.0.0.1:{port}/", timeout_s=0.1)
    assert (exchange.kind, exchange.error) == (ExchangeKind.TIMEOUT, "no connection before the deadline")


async def test_an_answer_may_take_longer_than_a_connection():
    async def answer_late(state, reader, writer):
        await state.read_request(reader)
        await asyncio.sleep(0.5)
        writer.write(OK)
        await writer.drain()

    async with hostile_server(answer_late) as server:
        exchange = await post_connecting(server.url)
    assert exchange.is_success, exchange
    assert exchange.duration_s > 0.3


async def endless_body(state, reader, writer):
    await state.read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        await writer.drain()
        state.sent = getattr(state, "sent", 0) + 4096


async def drip_fast(state, reader, writer):
    await state.read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0.001)


async def test_of_an_endless_body_only_the_beginning_is_read_and_the_status_counts():
    options = ClientOptions(response_bytes_max=10_000, excerpt_bytes_max=100)
    async with hostile_server(endless_body) as server, WebhookClient(LOOPBACK, options) as client:
        exchange = await client.post(request(server.url))
        assert (exchange.kind, exchange.status_code) == (ExchangeKind.RESPONSE, 200)
        assert exchange.is_success
        assert exchange.truncated
        assert exchange.excerpt == b"x" * 100
        await until(lambda: not client.open_connections)  # the connection is dropped, not drained
        assert server.sent < 50_000_000


@pytest.mark.parametrize(("size", "truncated"), [(9_999, False), (10_000, False), (10_001, True)])
async def test_a_body_up_to_the_limit_is_read_whole(size, truncated):
    options = ClientOptions(response_bytes_max=10_000, excerpt_bytes_max=20_000)
    answer = b"HTTP/1.1 500 X\r\nContent-Length: %d\r\n\r\n" % size + b"y" * size
    exchange = await post_to(answering(answer), options=options)
    assert (exchange.status_code, exchange.truncated) == (500, truncated)
    assert exchange.excerpt == b"y" * min(size, 10_000)


async def test_a_compressed_body_is_not_decompressed():
    bomb = gzip.compress(b"\0" * 10_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    exchange = await post_to(answering(head + bomb))
    assert exchange.is_success
    assert exchange.excerpt == bomb[:1024]


HEAD = b"HTTP/1.1 200 OK\r\n"
TOO_LARGE = {
    "100,000 headers": HEAD + b"".join(b"x-%d: 1\r\n" % number for number in range(100_000)) + b"\r\n",
    "101 headers": HEAD + b"".join(b"x-%d: 1\r\n" % number for number in range(101)) + b"\r\n",
    "long value": HEAD + b"x: " + b"v" * 10_000 + b"\r\n\r\n",
    "long name": HEAD + b"n" * 10_000 + b": v\r\n\r\n",
    "long status line": b"HTTP/1.1 200 " + b"r" * 10_000 + b"\r\n\r\n",
}
INVALID = {
    "HTTP/0.9": b"<html>hello</html>",
    "garbage": bytes(range(256)) * 4,
    "TLS alert": b"\x15\x03\x01\x00\x02\x02\x50",
    "no status": b"HTTP/1.1\r\n\r\n",
    "status of words": b"HTTP/1.1 OK OK\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "length and chunked": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "NUL in a header": HEAD + b"x: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "space before colon": HEAD + b"x : 1\r\nContent-Length: 0\r\n\r\n",
    "bad chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
}


@pytest.mark.parametrize("name", TOO_LARGE)
async def test_a_head_beyond_the_limits_is_refused(name):
    exchange = await post_to(answering(TOO_LARGE[name]), timeout_s=10)
    assert exchange.kind is ExchangeKind.RESPONSE_TOO_LARGE


@pytest.mark.parametrize("name", INVALID)
async def test_what_is_not_http_is_an_invalid_response(name):
    exchange = await post_to(answering(INVALID[name], then_close=True), timeout_s=10)
    assert exchange.kind is ExchangeKind.INVALID_RESPONSE
    assert exchange.error.isprintable()


async def reset_at_once(state, reader, writer):
    abort(writer)


async def reset_after_request(state, reader, writer):
    await state.read_request(reader)
    abort(writer)


async def reset_in_body(state, reader, writer):
    await state.read_request(reader)
    writer.write(HEAD + b"Content-Length: 100\r\n\r\nhalf")
    await writer.drain()
    await asyncio.sleep(0.05)
    abort(writer)


async def close_in_body(state, reader, writer):
    await state.read_request(reader)
    writer.write(HEAD + b"Content-Length: 100\r\n\r\nhalf")


async def close_in_chunks(state, reader, writer):
    await state.read_request(reader)
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")


async def close_in_head(state, reader, writer):
    await state.read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nX: y")


async def close_without_answer(state, reader, writer):
    await state.read_request(reader)


def abort(writer):
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize(
    ("behave", "status"),
    [
        (reset_at_once, None),
        (reset_after_request, None),
        (reset_in_body, 200),
        (close_in_body, 200),
        (close_in_chunks, 200),
        (close_in_head, None),
        (close_without_answer, None),
    ],
)
async def test_a_connection_lost_before_the_response_is_whole_is_a_failure(behave, status):
    exchange = await post_to(behave)
    assert (exchange.kind, exchange.status_code) == (ExchangeKind.CONNECTION_FAILED, status)
    assert not exchange.is_success
    assert exchange.error


async def test_a_port_where_nobody_listens_is_a_failed_connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    exchange = await post(f"http://127.0.0.1:{port}/secret?token=1")
    assert exchange.kind is ExchangeKind.CONNECTION_FAILED
    assert "secret" not in exchange.error
    assert "token" not in exchange.error


async def test_a_server_that_closes_as_its_connection_is_used_again_is_a_failed_connection_not_an_exception():
    async def once(state, reader, writer):
        await state.read_request(reader)
        writer.write(OK)
        await reader.readexactly(1)  # the second request has begun

    async with hostile_server(once) as server, WebhookClient(LOOPBACK) as client:
        assert (await client.post(request(server.url))).is_success
        exchange = await client.post(request(server.url))
    assert exchange.kind is ExchangeKind.CONNECTION_FAILED


async def test_a_connection_that_the_server_closed_while_idle_is_not_used_again():
    async with hostile_server(answering(OK, then_close=True)) as server, WebhookClient(LOOPBACK) as client:
        assert (await client.post(request(server.url))).is_success
        await until(lambda: not client.open_connections)
        assert (await client.post(request(server.url))).is_success


async def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one():
    spoken = asyncio.Event()

    async def speak_unasked(state: HostileServer, reader, writer):
        if state.connections > 1:
            await answering(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")(state, reader, writer)
        await state.read_request(reader)
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(OK)  # poisons the connection for whoever is next
        await writer.drain()
        spoken.set()
        await reader.read()

    async with hostile_server(speak_unasked) as server, WebhookClient(LOOPBACK) as client:
        assert (await client.post(request(server.url))).is_success
        await spoken.wait()
        await asyncio.sleep(0.05)  # the bytes are on loopback; nothing else signals their arrival
        exchange = await client.post(request(server.url))
    assert exchange.status_code == 500


async def test_a_response_before_the_request_ends_is_taken_and_the_connection_left():
    async def answer_early(state, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(60)

    async with hostile_server(answer_early) as server, WebhookClient(LOOPBACK) as client:
        exchange = await client.post(request(server.url, body=b"x" * 8_000_000))
        assert (exchange.kind, exchange.status_code) == (ExchangeKind.RESPONSE, 413)
        await until(lambda: not client.open_connections)


async def never_read(state, reader, writer):
    await asyncio.sleep(60)


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_a_receiver_that_does_not_read_leaves_no_connection_behind():
    async with hostile_server(never_read) as server, WebhookClient(LOOPBACK) as client:
        exchange = await client.post(request(server.url, body=b"x" * 20_000_000, timeout_s=0.3))
        assert exchange.kind is ExchangeKind.TIMEOUT
        await until(lambda: not client.open_connections)


async def test_a_protocol_switch_is_no_success_and_the_connection_is_dropped():
    answer = b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello"
    async with hostile_server(answering(answer)) as server, WebhookClient(LOOPBACK) as client:
        exchange = await client.post(request(server.url))
        assert exchange.status_code == 101
        assert not exchange.is_success
        await until(lambda: not client.open_connections)


async def test_cancellation_passes_through_and_leaves_no_connection():
    async with hostile_server(hang) as server, WebhookClient(LOOPBACK) as client:
        task = asyncio.create_task(client.post(request(server.url)))
        await until(lambda: server.requests)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not client.open_connections)


async def test_a_hanging_receiver_does_not_hold_up_another():
    async with hostile_server(hang) as slow, hostile_server(answering(OK)) as fast, WebhookClient(LOOPBACK) as client:
        hanging = [asyncio.create_task(client.post(request(slow.url, timeout_s=2))) for _ in range(150)]
        await until(lambda: len(slow.requests) == 150)
        exchange = await client.post(request(fast.url, timeout_s=1))
        assert exchange.is_success
        assert not any(task.done() for task in hanging)
        assert {exchange.kind for exchange in await asyncio.gather(*hanging)} == {ExchangeKind.TIMEOUT}


async def test_many_receivers_that_never_stop_talking_take_little_memory():
    tracemalloc.start()
    try:
        async with hostile_server(drip_fast) as server, WebhookClient(LOOPBACK) as client:
            tasks = [asyncio.create_task(client.post(request(server.url, timeout_s=60))) for _ in range(1000)]
            exchanges = await asyncio.gather(*tasks)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {(exchange.kind, exchange.truncated, exchange.error) for exchange in exchanges} == {
        (ExchangeKind.RESPONSE, True, "")
    }
    print(f"{len(exchanges)} receivers, {peak_bytes / len(exchanges):,.0f} bytes each at most, both ends counted")
    assert peak_bytes < 1000 * 200_000  # body limit, read buffer and both ends' stream buffers


# --- addresses ---------------------------------------------------------------------------------------------------


async def test_a_literal_that_policy_refuses_is_never_connected_to():
    async with hostile_server(answering(OK)) as server:
        exchange = await post(server.url, policy=EgressPolicy())
        assert exchange.kind is ExchangeKind.ADDRESS_REFUSED
        assert exchange.error == "127.0.0.1 is a loopback address, which the egress policy does not allow"
        exchange = await post(f"http://[::ffff:127.0.0.1]:{server.port}/", policy=EgressPolicy())
        assert exchange.kind is ExchangeKind.ADDRESS_REFUSED
    assert server.connections == 0


@pytest.mark.parametrize("answers", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["64:ff9b::7f00:1"], ["fe80::1%lo"]])
async def test_a_name_is_refused_if_any_of_its_addresses_is(answers):
    policy = EgressPolicy()
    async with hostile_server(answering(OK)) as server:
        resolver = resolver_of(policy, answers)
        exchange = await post(f"http://evil.example:{server.port}/", policy=policy, resolver=resolver)
    assert exchange.kind is ExchangeKind.ADDRESS_REFUSED
    assert server.connections == 0


async def test_a_name_keeps_its_host_header_while_the_checked_address_is_connected_to():
    async with hostile_server(answering(OK)) as server:
        resolver = resolver_of(LOOPBACK, ["127.0.0.1"], ["169.254.169.254"])
        exchange = await post(f"http://receiver.example:{server.port}/", resolver=resolver)
    assert exchange.is_success
    assert exchange.peer == "127.0.0.1"
    assert f"host: receiver.example:{server.port}".encode() in server.requests[0].lower()


async def test_an_address_that_slips_past_the_resolver_is_refused_at_the_socket():
    async with hostile_server(answering(OK)) as server:
        careless = resolver_of(LOOPBACK, ["127.0.0.1"])  # judges by another policy than the client
        exchange = await post(f"http://evil.example:{server.port}/", policy=EgressPolicy(), resolver=careless)
    assert exchange.kind is ExchangeKind.ADDRESS_REFUSED
    assert server.connections == 0


async def test_the_peer_is_checked_again_before_anything_is_written(monkeypatch):
    async with hostile_server(answering(OK)) as server, WebhookClient(LOOPBACK) as client:
        assert (await client.post(request(server.url))).is_success
        monkeypatch.setattr(client, "_refused_kind", lambda address, host: AddressKind.LOOPBACK)
        exchange = await client.post(request(server.url))
    assert exchange.kind is ExchangeKind.ADDRESS_REFUSED
    assert len(server.requests) == 1


async def test_a_name_without_addresses_is_not_resolved():
    exchange = await post("http://nowhere.invalid/hook")
    assert exchange.kind is ExchangeKind.NAME_NOT_RESOLVED
    assert "nowhere.invalid" in exchange.error


async def test_localhost_is_resolved_by_the_system():
    async with hostile_server(answering(OK)) as server:
        assert (await post(f"http://localhost:{server.port}/")).is_success


# --- TLS ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def tls_server(tmp_path, names, *, expired=False, maximum=None):
    certificates = make_certificates(tmp_path, names, expired=expired)
    context = certificates.server_context()
    if maximum is not None:
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        context.maximum_version = maximum
    async with hostile_server(answering(OK), context) as server:
        yield server, ClientOptions(ca_file=str(certificates.root))


async def test_a_certificate_of_a_configured_root_is_accepted(tmp_path):
    async with tls_server(tmp_path, ["receiver.example"]) as (server, options):
        resolver = resolver_of(LOOPBACK, ["127.0.0.1"])
        exchange = await post(f"https://receiver.example:{server.port}/", options=options, resolver=resolver)
    assert exchange.is_success, exchange


async def test_a_certificate_of_an_unknown_root_is_a_tls_failure(tmp_path):
    async with tls_server(tmp_path, ["127.0.0.1"]) as (server, _):
        exchange = await post(f"https://127.0.0.1:{server.port}/")
    assert exchange.kind is ExchangeKind.TLS_FAILED
    assert "not trusted" in exchange.error
    assert server.requests == []


async def test_a_certificate_for_another_host_is_a_tls_failure(tmp_path):
    async with tls_server(tmp_path, ["other.example"]) as (server, options):
        resolver = resolver_of(LOOPBACK, ["127.0.0.1"])
        exchange = await post(f"https://receiver.example:{server.port}/", options=options, resolver=resolver)
    assert exchange.kind is ExchangeKind.TLS_FAILED
    assert "mismatch" in exchange.error.lower()


async def test_an_expired_certificate_is_a_tls_failure(tmp_path):
    async with tls_server(tmp_path, ["127.0.0.1"], expired=True) as (server, options):
        exchange = await post(f"https://127.0.0.1:{server.port}/", options=options)
    assert exchange.kind is ExchangeKind.TLS_FAILED
    assert "expired" in exchange.error


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_below_1_2_is_refused(tmp_path):
    async with tls_server(tmp_path, ["127.0.0.1"], maximum=ssl.TLSVersion.TLSv1_1) as (server, options):
        exchange = await post(f"https://127.0.0.1:{server.port}/", options=options)
    # asyncio's server drops the connection without the alert, so it may look like any lost connection
    assert exchange.kind in {ExchangeKind.TLS_FAILED, ExchangeKind.CONNECTION_FAILED}
    assert server.requests == []


async def test_plain_http_on_a_tls_port_is_a_tls_failure():
    async def plain(state, reader, writer):
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with hostile_server(plain) as server:
        exchange = await post(f"https://127.0.0.1:{server.port}/")
    assert exchange.kind is ExchangeKind.TLS_FAILED
