"""Webhooks through a forward proxy: it is told the address that was checked here, and nothing gets past the policy."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dispatcher.delivery.client import ClientOptions, WebhookClient
from dispatcher.delivery.exchange import ExchangeKind, WebhookRequest
from dispatcher.security.addresses import parse_network
from dispatcher.security.egress import EgressPolicy, parse_url
from dispatcher.security.egress_proxy import EgressProxy
from dispatcher.security.endpoint_tls import EndpointTls
from dispatcher.security.resolver import PolicyResolver
from tests.support.certificates import Authority
from tests.support.hostile import answering, hostile_server
from tests.support.ports import closed_port

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass
class Proxy:
    """What it was asked: the first line and the headers of each connection's first request."""

    port: int = 0
    asked: list[bytes] = field(default_factory=list)
    answer: bytes = b""
    """Instead of doing it."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def proxy() -> AsyncIterator[Proxy]:
    """A small forward proxy."""
    state = Proxy()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            state.asked.append(head)
            if state.answer:
                writer.write(state.answer)
                writer.close()
                return
            method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
            place = target if method == "CONNECT" else target.partition("://")[2].partition("/")[0]
            host, _, port = place.rpartition(":")
            upstream, back = await asyncio.open_connection(host.strip("[]"), int(port))
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                back.write(head)
            await asyncio.gather(_pump(reader, back), _pump(upstream, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def client(by: str, policy: EgressPolicy | None = None, **names: list[str]) -> AsyncIterator[WebhookClient]:
    """Sends by the proxy at `by`; `names` resolve as told."""
    policy = policy or EgressPolicy.for_development()

    async def lookup(host: str) -> list[str]:
        return names[host.replace(".", "_")]

    options = ClientOptions(proxy=EgressProxy.parse(by))
    async with WebhookClient(policy, options, resolver=PolicyResolver(policy, lookup=lookup)) as made:
        yield made


def request(url: str, **fields: object) -> WebhookRequest:
    return WebhookRequest(parse_url(url), {"x-a": "b"}, b"{}", 5.0, **fields)  # type: ignore[arg-type] # by name


def tls_of(folder: Path, authority: Authority, host: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*map(str, authority.issue(hosts=[host]).written(folder)))
    return context


async def test_an_https_receiver_is_tunnelled_to_by_its_checked_address_and_verified_by_its_name(
    tmp_path: Path,
) -> None:
    authority = Authority()
    own = EndpointTls(roots=authority.root.decode())
    async with (
        proxy() as by,
        hostile_server(answering(OK), tls_of(tmp_path, authority, "receiver.example")) as server,
        client(by.url.replace("//", "//user:pass@"), receiver_example=["127.0.0.1"], other_example=["127.0.0.1"]) as c,
    ):
        first = await c.post(request(f"https://receiver.example:{server.port}/hook?a=1", tls=own))
        other = await c.post(request(f"https://other.example:{server.port}/hook", tls=own))
    assert (first.kind, first.status_code) == (ExchangeKind.RESPONSE, 204)
    assert other.kind is ExchangeKind.TLS_FAILED, "another name on the same address is another receiver"
    assert by.asked[0].startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1".encode())
    credentials = base64.b64encode(b"user:pass")
    assert b"Proxy-Authorization: Basic " + credentials in by.asked[0]
    (got,) = server.requests
    assert got.startswith(b"POST /hook?a=1 HTTP/1.1\r\n")
    assert f"Host: receiver.example:{server.port}\r\n".encode() in got
    assert credentials not in got


async def test_an_http_receiver_is_reached_in_absolute_form() -> None:
    async with (
        proxy() as by,
        hostile_server(answering(OK)) as server,
        client(by.url, receiver_example=["127.0.0.1"]) as c,
    ):
        exchange = await c.post(request(f"http://receiver.example:{server.port}/hook"))
    assert exchange.is_success
    assert by.asked[0].startswith(f"POST http://127.0.0.1:{server.port}/hook HTTP/1.1".encode())
    assert f"Host: receiver.example:{server.port}\r\n".encode() in server.requests[0]


@pytest.mark.parametrize(
    ("name", "url", "answers"),
    [
        ("a literal", "https://169.254.169.254/latest", []),
        ("a private literal", "http://10.0.0.1/", []),
        ("a name that is private", "https://receiver.example/", ["10.0.0.1"]),
        ("a name that is both", "https://receiver.example/", ["93.184.216.34", "10.0.0.1"]),
        ("NAT64 of metadata", "https://receiver.example/", ["64:ff9b::a9fe:a9fe"]),
    ],
)
async def test_the_policy_is_applied_before_the_proxy_hears_of_anything(
    name: str, url: str, answers: list[str]
) -> None:
    async with proxy() as by, client(by.url, EgressPolicy(), receiver_example=answers) as c:
        exchange = await c.post(request(url))
    assert exchange.kind is ExchangeKind.ADDRESS_REFUSED
    assert by.asked == []


async def test_an_endpoints_own_networks_choose_among_its_addresses() -> None:
    networks = (parse_network("127.0.0.2/32"),)
    async with (
        proxy() as by,
        hostile_server(answering(OK), host="127.0.0.2") as server,
        client(by.url, receiver_example=["127.0.0.1", "127.0.0.2"]) as c,
    ):
        url = f"http://receiver.example:{server.port}/"
        assert (await c.post(request(url, allowed_networks=networks))).is_success
        refused = await c.post(request(url, allowed_networks=(parse_network("10.0.0.0/8"),)))
    assert refused.kind is ExchangeKind.ADDRESS_REFUSED
    assert len(by.asked) == 1


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "answered 407"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "answered 403"),
        (b"garbage\r\n\r\n", "HTTP"),
    ],
)
async def test_what_the_proxy_refuses_is_a_failure_that_says_so(answer: bytes, word: str) -> None:
    async with proxy() as by, client(by.url, receiver_example=["127.0.0.1"]) as c:
        by.answer = answer
        exchange = await c.post(request("https://receiver.example/"))
    assert exchange.kind in (ExchangeKind.CONNECTION_FAILED, ExchangeKind.INVALID_RESPONSE)
    assert word in exchange.error


async def test_without_the_proxy_nothing_goes_out_and_a_name_without_address_is_told() -> None:
    async with hostile_server(answering(OK)) as server:
        async with client(f"http://127.0.0.1:{closed_port()}", receiver_example=["127.0.0.1"], none_example=[]) as c:
            down = await c.post(request(f"http://receiver.example:{server.port}/"))
            unknown = await c.post(request("https://none.example/"))
        assert server.connections == 0
    assert (down.kind, down.error) == (ExchangeKind.CONNECTION_FAILED, "the egress proxy is not reached")
    assert unknown.kind is ExchangeKind.NAME_NOT_RESOLVED


@pytest.mark.parametrize(
    "text", ["", "proxy:3128", "https://proxy", "socks5://proxy", "http://proxy/path", "http://:80"]
)
def test_what_is_no_proxy_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be http://") as caught:
        EgressProxy.parse(text)
    assert not text or text not in str(caught.value)
    assert "pass" not in repr(EgressProxy.parse("http://user:pass@proxy:3128"))
