"""How the service proves to a receiver who it is, over real sockets: headers, tokens, certificates, and roots."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.trace import NoOpTracer

from dispatcher.credentials import (
    Authentication,
    BasicAuthentication,
    BearerAuthentication,
    CredentialSecrets,
    OAuth2ClientCredentials,
)
from dispatcher.delivery.attempt import Attempter
from dispatcher.delivery.client import ClientOptions, WebhookClient
from dispatcher.delivery.endpoint import EndpointRuntime
from dispatcher.model import Attempt, Outcome
from dispatcher.security.addresses import parse_network
from dispatcher.security.credentials import prepare
from dispatcher.security.egress import EgressPolicy
from dispatcher.security.egress_proxy import EgressProxy
from dispatcher.telemetry import Instruments, Tracing
from tests.support.certificates import Authority, Issued
from tests.support.deliveries import row_of
from tests.support.endpoints import runtime_of
from tests.support.forward_proxy import proxy
from tests.support.ports import closed_port

SECRET = "S3cr3t-of-the-client"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def attempting(by: str = "") -> AsyncIterator[Attempter]:
    """`by`: the URL of an egress proxy."""
    recorded: list[Attempt] = []
    options = ClientOptions(proxy=EgressProxy.parse(by) if by else None)
    async with WebhookClient(EgressPolicy.for_development(), options) as client:
        yield Attempter(client, recorded.append, Tracing(NoOpTracer()), Instruments.silent())


@contextlib.asynccontextmanager
async def server(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Its URL."""
    app = web.Application()
    app.router.add_post("/hook", handler.__call__)  # aiohttp takes a coroutine function, not what behaves like one
    async with TestServer(app, host="localhost" if tls else "127.0.0.1") as made:
        if tls is None:
            yield str(made.make_url("/hook"))
            return
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        yield f"https://localhost:{runner.addresses[0][1]}/hook"
    finally:
        await runner.cleanup()


def with_credentials(
    url: str, shape: Authentication | None = None, secrets: CredentialSecrets | None = None, roots: str = ""
) -> EndpointRuntime:
    runtime = runtime_of(url=url, timeout_s=5.0)
    return replace(
        runtime, credentials=prepare(runtime.key, shape, secrets or CredentialSecrets(), roots), allowed_networks=()
    )


class Answers:
    """A receiver that remembers the headers it got; it answers with the next of `statuses`, then 204."""

    def __init__(self, statuses: Sequence[int] = ()) -> None:
        self.headers: list[dict[str, str]] = []
        self.statuses = list(statuses)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        return web.Response(status=self.statuses.pop(0) if self.statuses else 204)


class TokenServer:
    """An OAuth 2.0 server; `answer` overrides what it says."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.life_s: float = 3600
        self.answer: Callable[[int], web.Response] | None = None
        self.delay_s = 0.0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.headers["Authorization"], dict(await request.post())))
        await asyncio.sleep(self.delay_s)
        if self.answer is not None:
            return self.answer(len(self.asked))
        return web.json_response(
            {"access_token": f"token-{len(self.asked)}", "token_type": "Bearer", "expires_in": self.life_s}
        )


def oauth2(token_url: str) -> tuple[Authentication, CredentialSecrets]:
    return (
        Authentication(OAuth2ClientCredentials(token_url, "shop:1", ("hooks.write", "b"), "receiver")),
        CredentialSecrets(SECRET),
    )


async def test_basic_bearer_and_secret_headers_reach_the_receiver() -> None:
    receiver = Answers()
    async with attempting() as attempter, server(receiver) as url:
        for shape, secrets in (
            (Authentication(BasicAuthentication("shop")), CredentialSecrets("pass:word")),
            (Authentication(BearerAuthentication()), CredentialSecrets("abc.def")),
            (Authentication(None, ("X-Api-Key",)), CredentialSecrets(headers={"X-Api-Key": "k"})),
        ):
            result = await attempter.attempt(with_credentials(url, shape, secrets), row_of(1), 1, 1)
            assert result.is_success
    basic, bearer, header = receiver.headers
    assert basic["authorization"] == "Basic " + base64.b64encode(b"shop:pass:word").decode()
    assert bearer["authorization"] == "Bearer abc.def"
    assert header["x-api-key"] == "k"
    assert "authorization" not in header


async def test_a_token_is_fetched_once_for_all_who_wait_and_then_kept() -> None:
    receiver, tokens = Answers(), TokenServer()
    tokens.delay_s = 0.1
    async with attempting() as attempter, server(receiver) as url, server(tokens) as token_url:
        runtime = with_credentials(url, *oauth2(token_url))
        await asyncio.gather(*(attempter.attempt(runtime, row_of(n), 1, 1) for n in range(1, 6)))
        await attempter.attempt(runtime, row_of(6), 1, 1)
    assert {headers["authorization"] for headers in receiver.headers} == {"Bearer token-1"}
    ((authorization, form),) = tokens.asked
    assert base64.b64decode(authorization.removeprefix("Basic ")) == f"shop%3A1:{SECRET}".encode()
    assert form == {"grant_type": "client_credentials", "scope": "hooks.write b", "audience": "receiver"}


async def test_a_token_is_renewed_before_it_ends_and_after_it_was_refused() -> None:
    receiver, tokens = Answers([204, 401]), TokenServer()
    async with attempting() as attempter, server(receiver) as url, server(tokens) as token_url:
        runtime = with_credentials(url, *oauth2(token_url))
        tokens.life_s = 0.2
        await attempter.attempt(runtime, row_of(1), 1, 1)
        await asyncio.sleep(0.25)
        tokens.life_s = 3600
        refused = await attempter.attempt(runtime, row_of(2), 1, 1)
        again = await attempter.attempt(runtime, row_of(2), 2, 1)
    assert (refused.attempt.outcome, refused.attempt.status_code) == (Outcome.HTTP_ERROR, 401)
    assert again.is_success
    assert [headers["authorization"] for headers in receiver.headers] == [f"Bearer token-{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("an error that repeats the secret", lambda _: web.Response(status=401, text=f"wrong secret {SECRET}")),
        ("a page", lambda _: web.Response(text="<html>")),
        ("a list", lambda _: web.json_response([])),
        ("no token", lambda _: web.json_response({"token_type": "bearer"})),
        ("another kind", lambda _: web.json_response({"access_token": "x", "token_type": "mac"})),
        (
            "a token with a line break",
            lambda _: web.json_response({"access_token": "x\r\nA: b", "token_type": "bearer"}),
        ),
        ("a huge token", lambda _: web.json_response({"access_token": "x" * 9000, "token_type": "bearer"})),
        ("a token that is no text", lambda _: web.json_response({"access_token": 7, "token_type": "bearer"})),
        (
            "a life that is no number",
            lambda _: web.json_response({"access_token": "x", "token_type": "bearer", "expires_in": "soon"}),
        ),
        (
            "no life",
            lambda _: web.json_response({"access_token": "x", "token_type": "bearer", "expires_in": -1}),
        ),
        ("a redirect", lambda _: web.Response(status=302, headers={"Location": "http://169.254.169.254/"})),
        ("too much", lambda _: web.Response(text="{" + " " * 200_000)),
    ],
)
async def test_a_server_that_gives_no_token_fails_the_attempt_and_nothing_is_sent(
    name: str, answer: Callable[[int], web.Response]
) -> None:
    receiver, tokens = Answers(), TokenServer()
    tokens.answer = answer
    async with attempting() as attempter, server(receiver) as url, server(tokens) as token_url:
        result = await attempter.attempt(with_credentials(url, *oauth2(token_url)), row_of(1), 1, 1)
    assert result.attempt.outcome is Outcome.AUTHENTICATION_FAILED
    assert result.attempt.error
    assert SECRET not in f"{result.attempt.error}{result.attempt.response_excerpt!r}"
    assert receiver.headers == []


async def test_a_token_server_that_hangs_costs_no_more_than_the_attempts_time() -> None:
    receiver, tokens = Answers(), TokenServer()
    tokens.delay_s = 30
    async with attempting() as attempter, server(receiver) as url, server(tokens) as token_url:
        runtime = with_credentials(url, *oauth2(token_url))
        runtime = replace(runtime, settings=replace(runtime.settings, timeout_s=0.3))
        async with asyncio.timeout(5):
            result = await attempter.attempt(runtime, row_of(1), 1, 1)
    assert result.attempt.outcome is Outcome.AUTHENTICATION_FAILED
    assert result.attempt.duration_s < 2


async def test_a_token_that_the_egress_proxy_kept_from_us_is_the_proxys_fault() -> None:
    async with proxy() as hanging:
        hanging.is_silent = True
        for by in (f"http://127.0.0.1:{closed_port()}", hanging.url):
            async with attempting(by) as attempter:
                runtime = with_credentials("http://127.0.0.1/hook", *oauth2("http://127.0.0.1/token"))
                runtime = replace(runtime, settings=replace(runtime.settings, timeout_s=0.3))
                result = await attempter.attempt(runtime, row_of(1), 1, 1)
            assert (result.attempt.outcome, result.attempt.number) == (Outcome.EGRESS_PROXY_FAILED, 0)


async def test_time_that_a_token_server_used_up_is_not_the_egress_proxys_fault() -> None:
    tokens = TokenServer()
    tokens.delay_s = 0.6
    async with proxy() as by, server(tokens) as token_url, attempting(by.url) as attempter:
        by.failing[9] = b""
        runtime = with_credentials("http://127.0.0.1:9/hook", *oauth2(token_url))
        runtime = replace(runtime, settings=replace(runtime.settings, timeout_s=1.0))
        result = await attempter.attempt(runtime, row_of(1), 1, 1)
    assert (result.attempt.outcome, result.attempt.number) == (Outcome.TIMEOUT, 1)


async def test_the_token_url_is_under_the_address_policy() -> None:
    receiver = Answers()
    async with attempting() as attempter, server(receiver) as url:
        for token_url in ("http://169.254.169.254/latest", "http://10.0.0.1/token", "http://[::ffff:10.0.0.1]/"):
            result = await attempter.attempt(with_credentials(url, *oauth2(token_url)), row_of(1), 1, 1)
            assert result.attempt.outcome is Outcome.AUTHENTICATION_FAILED
    assert receiver.headers == []


def tls_of(folder: Path, issued: Issued, client_roots: bytes | None = None) -> ssl.SSLContext:
    """A server's context, which asks for a certificate of `client_roots` where there are any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*map(str, issued.written(folder)))
    if client_roots is not None:
        context.load_verify_locations(cadata=client_roots.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def test_an_endpoints_own_roots_stand_for_the_systems(tmp_path: Path) -> None:
    authority, receiver = Authority(), Answers()
    roots = authority.root.decode()
    async with (
        attempting() as attempter,
        server(receiver, tls_of(tmp_path, authority.issue(hosts=["localhost"]))) as url,
    ):
        trusted = await attempter.attempt(with_credentials(url, roots=roots), row_of(1), 1, 1)
        unknown = await attempter.attempt(with_credentials(url), row_of(1), 1, 1)
        foreign = await attempter.attempt(with_credentials(url, roots=Authority().root.decode()), row_of(1), 1, 1)
    assert trusted.is_success
    assert [unknown.attempt.outcome, foreign.attempt.outcome] == [Outcome.TLS_FAILED] * 2
    assert "not trusted" in str(foreign.attempt.error)
    assert len(receiver.headers) == 1


@pytest.mark.parametrize(
    ("name", "made", "word"),
    [
        ("wrong host", {"hosts": ["other.example"]}, "Hostname mismatch"),
        ("expired", {"hosts": ["localhost"], "expired": True}, "expired"),
        ("no name", {}, "Hostname mismatch"),
    ],
)
async def test_a_certificate_that_is_not_right_is_a_clear_outcome(
    tmp_path: Path, name: str, made: dict[str, Any], word: str
) -> None:
    authority, receiver = Authority(), Answers()
    async with attempting() as attempter, server(receiver, tls_of(tmp_path, authority.issue(**made))) as url:
        result = await attempter.attempt(with_credentials(url, roots=authority.root.decode()), row_of(1), 1, 1)
    assert result.attempt.outcome is Outcome.TLS_FAILED
    assert word in str(result.attempt.error)
    assert receiver.headers == []


async def test_a_self_signed_certificate_is_a_clear_outcome(tmp_path: Path) -> None:
    selfish, receiver = Authority("localhost"), Answers()
    issued = Issued(selfish.root, selfish.key_pem)
    async with attempting() as attempter, server(receiver, tls_of(tmp_path, issued)) as url:
        result = await attempter.attempt(with_credentials(url), row_of(1), 1, 1)
    assert result.attempt.outcome is Outcome.TLS_FAILED
    assert "self-signed" in str(result.attempt.error)
    assert receiver.headers == []


async def test_tls_1_1_is_not_spoken(tmp_path: Path) -> None:
    authority, receiver = Authority(), Answers()
    tls = tls_of(tmp_path, authority.issue(hosts=["localhost"]))
    tls.set_ciphers("ALL:@SECLEVEL=0")
    tls.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tls.maximum_version = ssl.TLSVersion.TLSv1_1
    async with attempting() as attempter, server(receiver, tls) as url:
        result = await attempter.attempt(with_credentials(url, roots=authority.root.decode()), row_of(1), 1, 1)
    assert result.attempt.outcome in (Outcome.TLS_FAILED, Outcome.CONNECTION_FAILED)
    assert receiver.headers == []


async def test_a_receiver_that_asks_for_a_certificate_gets_the_endpoints_own_and_the_new_one_after_a_rotation(
    tmp_path: Path,
) -> None:
    authority, clients, receiver = Authority("servers"), Authority("clients"), Answers()
    tls = tls_of(tmp_path, authority.issue(hosts=["localhost"]), clients.root)

    def showing(url: str, issued: Issued | None) -> EndpointRuntime:
        shape = Authentication(client_chain=issued.certificate.decode()) if issued else None
        secrets = CredentialSecrets(client_key=issued.key.decode()) if issued else None
        return with_credentials(url, shape, secrets, authority.root.decode())

    async with attempting() as attempter, server(receiver, tls) as url:
        for issued, fits in (
            (clients.issue(hosts=["dispatcher"]), True),
            (clients.issue(hosts=["dispatcher"]), True),
            (Authority("others").issue(hosts=["dispatcher"]), False),
            (clients.issue(hosts=["dispatcher"], expired=True), False),
            (None, False),
        ):
            result = await attempter.attempt(showing(url, issued), row_of(1), 1, 1)
            assert result.is_success is fits
    assert len(receiver.headers) == 2


async def test_an_endpoints_networks_narrow_where_it_may_be() -> None:
    receiver = Answers()
    async with attempting() as attempter, server(receiver) as url:
        for networks, fits in ((("127.0.0.0/8",), True), (("10.0.0.0/8", "::1/128"), False)):
            runtime = replace(with_credentials(url), allowed_networks=tuple(map(parse_network, networks)))
            result = await attempter.attempt(runtime, row_of(1), 1, 1)
            assert result.is_success is fits
        assert result.attempt.outcome is Outcome.ADDRESS_REFUSED
        assert "allowed_cidrs" in str(result.attempt.error)
        private = replace(with_credentials("http://10.0.0.1/"), allowed_networks=(parse_network("10.0.0.0/8"),))
        widened = await attempter.attempt(private, row_of(1), 1, 1)
        assert widened.attempt.outcome is Outcome.ADDRESS_REFUSED, "an endpoint's own networks never widen"
    assert len(receiver.headers) == 1
