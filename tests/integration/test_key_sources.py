"""The issuer's public keys behind a URL: read over checked TLS, kept while it is away, asked for anew with measure."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import jwt
import pytest
from aiohttp import web

from dispatcher.errors import UnauthenticatedError
from dispatcher.security.jwt import TokenRules
from dispatcher.security.key_sources import ASK_AGAIN_S, KEYS_BYTES_MAX, KeyUrl, verified
from tests.support.certificates import Authority
from tests.unit.security.test_jwt import EC_KEY, RSA_KEY, public

RULES = TokenRules("https://issuer.example", ("dispatcher",))


@dataclass
class Issuer:
    """What it says, and how often it was asked."""

    url: str = ""
    ca_file: str = ""
    keys: list[dict[str, object]] = field(default_factory=list)
    answer: web.Response | None = None
    asked: int = 0

    async def handle(self, _: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.answer is not None:
            made, self.answer = self.answer, None
            return made
        return web.json_response({"keys": self.keys})


@pytest.fixture
async def issuer(tmp_path: Path) -> AsyncIterator[Issuer]:
    authority, made = Authority(), Issuer()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*map(str, authority.issue(hosts=["localhost"]).written(tmp_path)))
    (tmp_path / "ca.crt").write_bytes(authority.root)
    app = web.Application()
    app.router.add_get("/keys", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    made.url, made.ca_file = f"https://localhost:{runner.addresses[0][1]}/keys", str(tmp_path / "ca.crt")
    try:
        yield made
    finally:
        await runner.cleanup()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def token(key: object = RSA_KEY, algorithm: str = "RS256", kid: str = "r") -> str:
    claims = {"iss": RULES.issuer, "aud": "dispatcher", "sub": "alice", "exp": time.time() + 60}
    return jwt.encode(claims, key, algorithm, headers={"kid": kid})  # type: ignore[arg-type] # a key of either kind


async def test_keys_are_read_once_and_again_for_a_key_that_is_new(issuer: Issuer) -> None:
    clock = Clock()
    source = KeyUrl(issuer.url, ca_file=issuer.ca_file, clock=clock)
    issuer.keys = [public(RSA_KEY, "r")]
    for _ in range(3):
        assert (await verified(token(), source, RULES)).caller.principal == "alice"
    assert issuer.asked == 1
    issuer.keys = [public(EC_KEY, "e")]
    rotated = token(EC_KEY, "ES256", "e")
    with pytest.raises(UnauthenticatedError):
        await verified(rotated, source, RULES)
    clock.now += ASK_AGAIN_S
    assert (await verified(rotated, source, RULES)).caller.principal == "alice"
    with pytest.raises(UnauthenticatedError):
        await verified(token(), source, RULES)
    assert issuer.asked == 2


async def test_made_up_keys_do_not_make_us_ask_again_and_again(issuer: Issuer) -> None:
    source = KeyUrl(issuer.url, ca_file=issuer.ca_file, clock=Clock())
    issuer.keys = [public(RSA_KEY, "r")]
    calls = [verified(token(kid=f"made-up-{n}"), source, RULES) for n in range(50)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, UnauthenticatedError) for answer in answers)
    assert issuer.asked == 1


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(status=500),
        web.Response(status=302, headers={"Location": "http://169.254.169.254/"}),
        web.Response(text="<html>"),
        web.Response(body=b"{" + b" " * KEYS_BYTES_MAX),
        web.Response(body=b"\xff"),
        web.json_response({"keys": []}),
    ],
    ids=["500", "302", "html", "too large", "no text", "empty"],
)
async def test_keys_once_read_hold_while_the_issuer_is_out_of_order(issuer: Issuer, answer: web.Response) -> None:
    clock = Clock()
    source = KeyUrl(issuer.url, ca_file=issuer.ca_file, clock=clock)
    issuer.keys, issuer.answer = [public(RSA_KEY, "r")], None
    await source.keys()
    clock.now += ASK_AGAIN_S
    issuer.answer = answer
    await source.newer()
    assert issuer.asked == 2
    assert (await verified(token(), source, RULES)).caller.principal == "alice"


async def test_without_keys_nobody_is_known_and_they_are_read_as_soon_as_there_are_any(issuer: Issuer) -> None:
    source = KeyUrl(issuer.url, ca_file=issuer.ca_file)
    issuer.answer = web.Response(status=503)
    with pytest.raises(UnauthenticatedError) as caught:
        await verified(token(), source, RULES)
    assert caught.value.reason == "SIGNING_KEYS_UNAVAILABLE"
    issuer.keys = [public(RSA_KEY, "r")]
    following = asyncio.create_task(source.follow(3600.0))
    async with asyncio.timeout(5):
        while issuer.asked < 2:
            await asyncio.sleep(0.01)
        assert (await verified(token(), source, RULES)).caller.principal == "alice"
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following


async def test_a_server_that_is_not_of_our_roots_gives_no_keys(issuer: Issuer) -> None:
    issuer.keys = [public(RSA_KEY, "r")]
    with pytest.raises(UnauthenticatedError):
        await KeyUrl(issuer.url).keys()
    assert issuer.asked == 0
