"""Webhooks through a forward proxy: it is told the address that was checked here, nothing gets past the policy, and
what is its fault is told from what is the receiver's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.delivery.client import ClientOptions, ProbeOptions, Target, WebhookClient
from dispatcher.delivery.client.by_proxy import Blame
from dispatcher.delivery.client.failures import NotConnectedError
from dispatcher.delivery.exchange import ExchangeKind, WebhookRequest
from dispatcher.security.addresses import parse_network
from dispatcher.security.egress import EgressPolicy, parse_url
from dispatcher.security.egress_proxy import EgressProxy
from dispatcher.security.endpoint_tls import EndpointTls
from dispatcher.security.resolver import PolicyResolver
from tests.support.certificates import Authority
from tests.support.forward_proxy import proxy
from tests.support.hostile import HostileServer, answering, hostile_server
from tests.support.ports import black_hole, closed_port
from tests.support.tasks import until

QUICK = ProbeOptions(interval_s=0.01)
OK = b"HTTP/1.1 204 No Content\r\n\r\n"
LAST = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


@contextlib.asynccontextmanager
async def client(
    by: str, policy: EgressPolicy | None = None, probe: ProbeOptions = QUICK, **names: list[str]
) -> AsyncIterator[WebhookClient]:
    """Sends by the proxy at `by`; `names` resolve as told."""
    policy = policy or EgressPolicy.for_development()

    async def lookup(host: str) -> list[str]:
        return names[host.replace(".", "_")]

    options = ClientOptions(proxy=EgressProxy.parse(by), probe=probe)
    async with WebhookClient(policy, options, resolver=PolicyResolver(policy, lookup=lookup)) as made:
        yield made


def request(url: str, **fields: object) -> WebhookRequest:
    fields.setdefault("timeout_s", 5.0)
    return WebhookRequest(parse_url(url), {"x-a": "b"}, b"{}", **fields)  # type: ignore[arg-type] # by name


async def silent(_: HostileServer, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    await reader.read()


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
    assert b"receiver.example" not in by.asked[0]
    credentials = base64.b64encode(b"user:pass")
    assert b"Proxy-Authorization: Basic " + credentials in by.asked[0]
    (got,) = server.requests
    assert got.startswith(b"POST /hook?a=1 HTTP/1.1\r\n")
    assert f"host: receiver.example:{server.port}\r\n".encode() in got
    assert credentials not in got


async def test_the_proxy_is_told_who_asks_with_each_tunnel_also_with_those_that_only_probe_it() -> None:
    dead = closed_port()
    async with (
        proxy() as by,
        hostile_server(answering(OK)) as server,
        client(by.url.replace("//", "//user:pass@")) as c,
    ):
        by.failing[dead] = BARE_503
        assert (await c.post(request(f"http://127.0.0.1:{server.port}/"))).is_success
        await kinds(c, f"http://127.0.0.1:{dead}/", 1)
    asked_for = [head.split(b" ")[1].decode() for head in by.asked]
    assert asked_for == [f"127.0.0.1:{port}" for port in (server.port, dead, server.port)], "the last is a probe"
    credentials = b"Proxy-Authorization: Basic " + base64.b64encode(b"user:pass") + b"\r\n"
    assert [credentials in head for head in by.asked] == [True] * 3


async def test_an_http_receiver_is_tunnelled_to_as_well_and_finds_its_own_name_in_host() -> None:
    async with (
        proxy() as by,
        hostile_server(answering(OK)) as server,
        client(by.url.replace("//", "//user:pass@"), receiver_example=["127.0.0.1"]) as c,
    ):
        exchange = await c.post(request(f"http://receiver.example:{server.port}/hook"))
    assert exchange.is_success
    (asked,) = by.asked
    assert asked.startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1".encode())
    assert b"Proxy-Authorization: Basic " in asked
    assert server.requests[0].startswith(b"POST /hook HTTP/1.1\r\n")
    assert f"host: receiver.example:{server.port}\r\n".encode() in server.requests[0].lower()
    assert b"proxy-authorization" not in server.requests[0].lower()


async def test_a_tunnel_is_used_again_for_its_own_origin_alone() -> None:
    async with (
        proxy() as by,
        hostile_server(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as server,
        client(by.url, receiver_example=["127.0.0.1"]) as c,
    ):
        plain = f"http://receiver.example:{server.port}/hook"
        assert [(await c.post(request(plain))).is_success for _ in range(2)] == [True, True]
        assert (len(by.asked), len(server.requests)) == (1, 2)
        encrypted = await c.post(request(plain.replace("http:", "https:"), timeout_s=0.3))
    assert encrypted.kind is ExchangeKind.TIMEOUT, "a handshake is begun, which that server does not understand"
    assert (len(by.asked), len(server.requests)) == (2, 2)


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


PROXYS_OWN = [
    (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "answered 407"),
    (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "answered 403"),
    (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "answered 502"),
    (b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n", "answered 503"),
    (b"HTTP/1.1 503 Busy\r\nProxy-Status: p; error=proxy_internal_error\r\n\r\n", "answered 503"),
    (b"HTTP/1.1 503 Busy\r\nX-Squid-Error: ERR_CANNOT_FORWARD 0\r\n\r\n", "answered 503"),
    (b"garbage\r\n\r\n", "did not answer in HTTP"),
    (b"HTTP/1.1 200", "closed the connection"),
]
RECEIVERS = [
    ("Proxy-Status: envoy; error=connection_refused", ExchangeKind.CONNECTION_FAILED),
    ('Proxy-Status: envoy; error="connection_terminated"; details="x"', ExchangeKind.CONNECTION_FAILED),
    ("Proxy-Status: near; details=y;error=destination_unavailable, far", ExchangeKind.CONNECTION_FAILED),
    ("Proxy-Status: envoy; error=connection_timeout", ExchangeKind.TIMEOUT),
    ("X-Squid-Error: ERR_CONNECT_FAIL 111", ExchangeKind.CONNECTION_FAILED),
]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("answer", "words"), PROXYS_OWN)
async def test_what_the_proxy_fails_at_is_its_own_fault(answer: bytes, words: str, scheme: str) -> None:
    async with proxy() as by, client(by.url, receiver_example=["127.0.0.1"]) as c:
        by.answer = answer
        exchange = await c.post(request(f"{scheme}://receiver.example/"))
    assert (exchange.kind, exchange.error) == (ExchangeKind.EGRESS_PROXY_FAILED, f"the egress proxy {words}")
    assert exchange.status_code is None, "no receiver has answered"


@pytest.mark.parametrize(("header", "kind"), RECEIVERS)
async def test_a_proxy_that_says_it_is_the_receiver_is_believed(header: str, kind: ExchangeKind) -> None:
    async with proxy() as by, client(by.url, receiver_example=["127.0.0.1"]) as c:
        by.answer = f"HTTP/1.1 503 Unavailable\r\n{header}\r\nContent-Length: 0\r\n\r\n".encode()
        exchange = await c.post(request("https://receiver.example/"))
    assert (exchange.kind, exchange.error) == (kind, "the egress proxy did not get through to the receiver")


async def test_a_proxy_that_takes_no_connection_costs_the_time_to_connect_and_no_attempt() -> None:
    policy = EgressPolicy.for_development()
    with black_hole() as port:
        options = ClientOptions(proxy=EgressProxy.parse(f"http://127.0.0.1:{port}"), connect_timeout_s=0.3)
        async with WebhookClient(policy, options) as c:
            exchange = await c.post(request("https://127.0.0.1:8443/", timeout_s=10.0))
    assert exchange.kind is ExchangeKind.EGRESS_PROXY_FAILED
    assert 0.29 <= exchange.duration_s < 2.0


async def test_the_time_to_connect_covers_the_handshake_in_a_tunnel_and_not_how_long_the_receiver_takes() -> None:
    options = {"connect_timeout_s": 0.3}
    async with (
        proxy() as by,
        hostile_server(silent) as server,
        WebhookClient(EgressPolicy.for_development(), ClientOptions(proxy=EgressProxy.parse(by.url), **options)) as c,
    ):
        shaking = await c.post(request(f"https://127.0.0.1:{server.port}/", timeout_s=10.0))
        answering_late = await c.post(request(f"http://127.0.0.1:{server.port}/", timeout_s=0.6))
    assert (shaking.kind, shaking.error) == (ExchangeKind.TIMEOUT, "no connection within 0.3 s")
    assert 0.29 <= shaking.duration_s < 2.0
    assert (answering_late.kind, answering_late.error) == (ExchangeKind.TIMEOUT, "no response before the deadline")
    assert answering_late.duration_s >= 0.59


async def test_a_proxy_that_says_nothing_is_its_own_fault_as_well() -> None:
    async with proxy() as by, client(by.url, receiver_example=["127.0.0.1"]) as c:
        by.is_silent = True
        exchange = await c.post(request("https://receiver.example/", timeout_s=0.3))
    assert exchange.kind is ExchangeKind.EGRESS_PROXY_FAILED
    assert exchange.error == "the egress proxy did not answer before the deadline"


SILENCE, BARE_503 = b"", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
BARE_504 = b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n"
UNEXPLAINED = [
    (SILENCE, ExchangeKind.TIMEOUT),
    (BARE_503, ExchangeKind.CONNECTION_FAILED),
    (BARE_504, ExchangeKind.TIMEOUT),
]


def timeout_of(answer: bytes) -> float:
    """As short as a test may wait where nothing is answered, else long enough for any machine to answer."""
    return 5.0 if answer else 0.2


async def kinds(c: WebhookClient, url: str, count: int, answer: bytes = BARE_503) -> list[ExchangeKind]:
    """Of so many attempts, each after the probe that the one before has set off, if there was one. `answer`: what the
    proxy answers to them."""
    found = []
    for _ in range(count):
        found.append((await c.post(request(url, timeout_s=timeout_of(answer)))).kind)
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "proxy-probe"))
    return found


@pytest.mark.parametrize(("answer", "kind"), UNEXPLAINED)
async def test_a_receiver_that_a_proxy_does_not_reach_is_at_fault_once_that_proxy_has_reached_others_around_it(
    answer: bytes, kind: ExchangeKind
) -> None:
    dead = closed_port()
    async with proxy() as by, hostile_server(answering(OK)) as server, client(by.url) as c:
        by.failing[dead] = answer
        assert (await c.post(request(f"http://127.0.0.1:{server.port}/"))).is_success
        found = await kinds(c, f"http://127.0.0.1:{dead}/", 3, answer)
        assert found == [ExchangeKind.EGRESS_PROXY_FAILED, kind, kind]
        assert len(server.requests) == 1, "a probe is no request"
        told = await c.post(request(f"http://127.0.0.1:{dead}/", timeout_s=timeout_of(answer)))
    assert told.error == "the egress proxy gets through to others, but not to the receiver"


@pytest.mark.parametrize(("answer", "kind"), UNEXPLAINED)
async def test_a_proxy_that_reaches_nobody_any_more_is_at_fault_as_long_as_that_lasts(
    answer: bytes, kind: ExchangeKind
) -> None:
    async with (
        proxy() as by,
        hostile_server(answering(LAST)) as one,
        hostile_server(answering(LAST)) as other,
        client(by.url, probe=ProbeOptions(interval_s=0.01, timeout_s=0.2)) as c,
    ):
        urls = [f"http://127.0.0.1:{server.port}/" for server in (one, other)]
        assert [(await c.post(request(url))).is_success for url in urls] == [True, True]
        by.failing = {one.port: answer, other.port: answer}
        found = [await kinds(c, url, 1, answer) for _ in range(4) for url in urls]
        assert found == [[ExchangeKind.EGRESS_PROXY_FAILED]] * 8
        by.failing = {}
        assert [(await c.post(request(url))).is_success for url in urls] == [True, True]


async def test_what_the_settings_name_tells_of_the_proxy_where_there_is_a_single_receiver() -> None:
    dead = closed_port()
    async with proxy() as by, hostile_server(answering(OK)) as named:
        probe = ProbeOptions(interval_s=0.01, target=Target.parse(f"localhost:{named.port}"))
        async with client(by.url, probe=probe) as c:
            by.failing[dead] = SILENCE
            found = await kinds(c, f"http://127.0.0.1:{dead}/", 4, SILENCE)
    assert found == [ExchangeKind.EGRESS_PROXY_FAILED] * 2 + [ExchangeKind.TIMEOUT] * 2
    assert [head for head in by.asked if head.startswith(b"CONNECT localhost:")]


@pytest.mark.parametrize(("answer", "words"), [PROXYS_OWN[0], PROXYS_OWN[1], *PROXYS_OWN[4:]])
async def test_what_no_receiver_can_cause_is_the_proxys_whatever_it_does_for_others(answer: bytes, words: str) -> None:
    dead = closed_port()
    async with proxy() as by, hostile_server(answering(LAST)) as server, client(by.url) as c:
        by.failing[dead] = answer
        for _ in range(4):
            assert (await c.post(request(f"http://127.0.0.1:{server.port}/"))).is_success
            exchange = await c.post(request(f"http://127.0.0.1:{dead}/"))
            assert (exchange.kind, exchange.error) == (ExchangeKind.EGRESS_PROXY_FAILED, f"the egress proxy {words}")


async def test_a_tunnel_that_was_kept_and_is_not_fit_any_more_is_replaced() -> None:
    """What a server says unasked on an idle connection makes it unfit."""

    is_kept = asyncio.Event()

    async def twice(_: HostileServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await is_kept.wait()
        writer.write(b"HTTP/1.1 500 Stale\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with proxy() as by, hostile_server(twice) as server, client(by.url) as c:
        url = f"http://127.0.0.1:{server.port}/"
        assert (await c.post(request(url))).is_success
        assert c._connections is not None
        ((kept, _),) = next(iter(c._connections._connector._conns.values()))
        is_kept.set()
        await until(lambda: kept.should_close, "the stale answer")
        assert (await c.post(request(url))).is_success
    assert len(by.asked) == 2


async def test_what_a_receiver_says_unasked_on_many_kept_tunnels_is_no_fault_of_the_proxys() -> None:
    """The next request goes by a new one."""
    count, are_open, are_kept = 8, asyncio.Event(), asyncio.Event()
    arrived = 0

    async def all_at_once(_: HostileServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        await reader.readuntil(b"{}")
        arrived += 1
        if arrived == count:
            are_open.set()
        await are_open.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await are_kept.wait()
        writer.write(b"HTTP/1.1 500 Stale\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with proxy() as by, hostile_server(all_at_once) as server, client(by.url) as c:
        url = f"http://127.0.0.1:{server.port}/"
        sent = await asyncio.gather(*(c.post(request(url)) for _ in range(count)))
        assert c._connections is not None
        kept = [protocol for protocol, _ in next(iter(c._connections._connector._conns.values()))]
        assert [one.is_success for one in sent] == [True] * len(kept) == [True] * count
        are_kept.set()
        await until(lambda: all(protocol.should_close for protocol in kept), "the stale answers")
        assert (await c.post(request(url))).is_success
    assert len(by.asked) == count + 1


async def test_a_receiver_that_speaks_unasked_on_each_new_tunnel_is_at_fault() -> None:
    async def hasty(_: HostileServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    greeting = b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    async with proxy() as by, client(by.url) as c:
        by.answer = greeting
        exchange = await c.post(request("http://127.0.0.1:9/"))
    assert exchange.kind is not ExchangeKind.EGRESS_PROXY_FAILED


async def test_time_that_was_used_up_before_the_proxy_is_asked_is_not_its_fault() -> None:
    """By the endpoint's own name server, or by its token server."""
    policy = EgressPolicy.for_development()

    async def lookup(_: str) -> list[str]:
        await asyncio.sleep(0.7)
        return ["127.0.0.1"]

    async with proxy() as by:
        by.is_silent = True
        options = ClientOptions(proxy=EgressProxy.parse(by.url), probe=QUICK)
        async with WebhookClient(policy, options, resolver=PolicyResolver(policy, lookup=lookup)) as c:
            slow_name = await c.post(request("http://receiver.example/", timeout_s=1.0))
            slow_token = await c.post(request("http://127.0.0.1:9/", timeout_s=0.1, used_s=5.0))
            neither = await c.post(request("http://127.0.0.1:9/", timeout_s=0.3))
            long_one = await c.post(request("http://127.0.0.1:9/", timeout_s=3.0, used_s=60.0))
    found = [slow_name.kind, slow_token.kind, neither.kind, long_one.kind]
    assert found == [ExchangeKind.TIMEOUT] * 2 + [ExchangeKind.EGRESS_PROXY_FAILED] * 2
    assert slow_name.error == slow_token.error == "too little time was left for a connection"


async def test_a_timeout_that_is_over_before_the_proxy_is_connected_to_counts_once_that_has_reached_others() -> None:
    """Not so the time to connect: that is for the proxy alone."""
    now = 0.0
    blame = Blame(EgressProxy.parse("http://127.0.0.1:1"), QUICK, 5.0, lambda: now)
    other, short = request("http://127.0.0.1:9/"), request("http://127.0.0.1:8/", timeout_s=0.1)
    found: dict[type[Exception], list[ExchangeKind]] = {}
    for failure in (NotConnectedError(5.0), TimeoutError()):
        for _ in range(3):
            blame.way(other, "127.0.0.1").opened()
            way = blame.way(short, "127.0.0.1")
            now += 5.0
            found.setdefault(type(failure), []).append(blame.classify(failure, way)[0])
    await blame.close()
    assert found == {
        NotConnectedError: [ExchangeKind.EGRESS_PROXY_FAILED] * 3,
        TimeoutError: [ExchangeKind.EGRESS_PROXY_FAILED] + [ExchangeKind.TIMEOUT] * 2,
    }


async def test_another_endpoints_failures_at_the_same_receiver_do_not_count_in_an_outage() -> None:
    async with (
        proxy() as by,
        hostile_server(answering(LAST)) as shared,
        hostile_server(answering(LAST)) as other,
        client(by.url) as c,
    ):
        url = f"http://127.0.0.1:{shared.port}/"
        assert (await c.post(request(f"http://127.0.0.1:{other.port}/", sender="a"))).is_success
        assert (await c.post(request(url, sender="a"))).is_success
        by.failing = {shared.port: SILENCE}
        hasty = await asyncio.gather(*(c.post(request(url, timeout_s=1.0, sender="b")) for _ in range(20)))
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "proxy-probe"))
        by.failing, by.answer = {}, BARE_503
        found = [(await c.post(request(url, sender="a"))).kind for _ in range(20)]
    assert {one.kind for one in hasty} | set(found) == {ExchangeKind.EGRESS_PROXY_FAILED}


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_once_the_tunnel_is_open_it_is_the_receiver_that_fails(scheme: str) -> None:
    """A handshake that is not answered, and a request that is not."""
    async with (
        proxy() as by,
        hostile_server(silent) as server,
        client(by.url, receiver_example=["127.0.0.1"]) as c,
    ):
        exchange = await c.post(request(f"{scheme}://receiver.example:{server.port}/", timeout_s=0.3))
    assert (exchange.kind, len(by.asked)) == (ExchangeKind.TIMEOUT, 1)


async def test_a_receiver_that_answers_as_a_proxy_does_is_no_proxy() -> None:
    async with (
        proxy() as by,
        hostile_server(answering(PROXYS_OWN[0][0])) as server,
        client(by.url, receiver_example=["127.0.0.1"]) as c,
    ):
        exchange = await c.post(request(f"http://receiver.example:{server.port}/"))
    assert (exchange.kind, exchange.status_code) == (ExchangeKind.RESPONSE, 407)


async def test_without_the_proxy_nothing_goes_out_and_a_name_without_address_is_told() -> None:
    async with hostile_server(answering(OK)) as server:
        async with client(f"http://127.0.0.1:{closed_port()}", receiver_example=["127.0.0.1"], none_example=[]) as c:
            down = await c.post(request(f"http://receiver.example:{server.port}/"))
            unknown = await c.post(request("https://none.example/"))
        assert server.connections == 0
    assert (down.kind, down.error) == (ExchangeKind.EGRESS_PROXY_FAILED, "the egress proxy is not reached")
    assert unknown.kind is ExchangeKind.NAME_NOT_RESOLVED


async def test_a_proxy_whose_name_is_not_known_is_its_own_fault() -> None:
    async with client("http://proxy.invalid:3128", receiver_example=["127.0.0.1"]) as c:
        exchange = await c.post(request("https://receiver.example/"))
    assert (exchange.kind, exchange.error) == (ExchangeKind.EGRESS_PROXY_FAILED, "the egress proxy is not reached")


@pytest.mark.parametrize(
    "text", ["", "proxy:3128", "https://proxy", "socks5://proxy", "http://proxy/path", "http://:80"]
)
def test_what_is_no_proxy_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be http://") as caught:
        EgressProxy.parse(text)
    assert not text or text not in str(caught.value)
    assert "pass" not in repr(EgressProxy.parse("http://user:pass@proxy:3128"))
