"""OAuth 2.0 tokens for receivers that want them: fetched once however many attempts wait, kept, renewed early.

    attempt ──wanted──▶ known and fresh? ──yes──▶ token
                            └──no──▶ one fetch for all who wait ──▶ token, or why there is none

The token server is as hostile as any receiver: the same client asks it, under the same address policy and bounds.
"""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from dispatcher.delivery.exchange import Exchange, ExchangeKind, WebhookRequest, bounded_error
from dispatcher.security.credentials import TokenWanted, basic
from dispatcher.security.urls import UrlRefusedError, parse_url

TOKENS_MAX = 4096
ANSWER_BYTES_MAX = 32_768
TOKEN_CHARACTERS_MAX = 8192
LIFE_DEFAULT_S = 300.0
LIFE_MAX_S = 86_400.0
EARLY_S = 60.0
"""A token is renewed so long before it ends, or once four fifths of its life are over, whichever is later."""
FETCH_SHARE = 0.9
"""What a fetch takes of its first waiter's time, so that the waiter hears why there is no token, not only that."""
FAILURE_S = 1.0
"""So long a failure stands for those who ask next."""


class Poster(Protocol):
    """What sends: the client that posts webhooks."""

    async def post(self, request: WebhookRequest) -> Exchange: ...


@dataclass(frozen=True, slots=True)
class NoToken:
    """Why there is none; a sentence without anything secret. `kind` is how the exchange ends that wants it."""

    problem: str
    kind: ExchangeKind = ExchangeKind.AUTHENTICATION_FAILED


@dataclass(slots=True)
class _Held:
    token: str = field(repr=False)
    renew_at: float
    ends_at: float


class Tokens:
    """One per process. `clock` is monotonic."""

    def __init__(self, client: Poster, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._failed: OrderedDict[str, tuple[NoToken, float]] = OrderedDict()
        self._fetching: dict[str, asyncio.Task[str | NoToken]] = {}

    async def token(self, wanted: TokenWanted, timeout_s: float) -> str | NoToken:
        """A token that holds now. A fetch goes on where a waiter is cancelled; it ends within the first one's time."""
        name, now = wanted.fingerprint, self._clock()
        held = self._held.get(name)
        if held is not None and now < held.renew_at:
            return held.token
        failure, until = self._failed.get(name, (None, 0.0))
        if failure is not None and now < until:
            found: str | NoToken = failure
        else:
            found = await self._fetched(wanted, timeout_s)
        if isinstance(found, NoToken) and held is not None and now < held.ends_at:
            return held.token  # renewing has failed, early enough
        return found

    def forget(self, wanted: TokenWanted, token: str) -> None:
        """A receiver has refused this token: the next attempt fetches another."""
        held = self._held.get(wanted.fingerprint)
        if held is not None and held.token == token:
            del self._held[wanted.fingerprint]

    async def _fetched(self, wanted: TokenWanted, timeout_s: float) -> str | NoToken:
        name = wanted.fingerprint
        task = self._fetching.get(name)
        if task is None:
            task = self._fetching[name] = asyncio.create_task(self._fetch(wanted, timeout_s), name="oauth2-token")
            task.add_done_callback(lambda _: self._fetching.pop(name, None))
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(task)
        except TimeoutError:
            return NoToken("the token server did not answer in time")

    async def _fetch(self, wanted: TokenWanted, timeout_s: float) -> str | NoToken:
        name, asked_at = wanted.fingerprint, self._clock()
        try:
            request = _request(wanted, timeout_s * FETCH_SHARE)
        except UrlRefusedError as error:
            return NoToken(f"the token URL is refused: {error.description}")
        answer = read_answer(await self._client.post(request))
        if isinstance(answer, NoToken):
            _put(self._failed, name, (answer, self._clock() + FAILURE_S))
            return answer
        token, life_s = answer
        renew_at = asked_at + max(life_s - EARLY_S, 0.8 * life_s)
        _put(self._held, name, _Held(token, renew_at, asked_at + life_s))
        return token


def _put(known: OrderedDict[str, _Held] | OrderedDict[str, tuple[NoToken, float]], name: str, value: object) -> None:
    known[name] = value  # type: ignore[assignment] # each of the two is given its own kind
    known.move_to_end(name)
    while len(known) > TOKENS_MAX:
        known.popitem(last=False)


def _request(wanted: TokenWanted, timeout_s: float) -> WebhookRequest:
    """RFC 6749 sections 2.3.1 and 4.4.2. Raises UrlRefusedError."""
    form = {"grant_type": "client_credentials"}
    if wanted.scopes:
        form["scope"] = " ".join(wanted.scopes)
    if wanted.audience:
        form["audience"] = wanted.audience
    name, secret = (urllib.parse.quote_plus(text) for text in (wanted.client_id, wanted.client_secret))
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "accept": "application/json",
        "authorization": basic(name, secret),
    }
    body = urllib.parse.urlencode(form).encode()
    return WebhookRequest(
        parse_url(wanted.token_url),
        headers,
        body,
        timeout_s,
        excerpt_bytes_max=ANSWER_BYTES_MAX,
        sender=wanted.fingerprint,
    )


def read_answer(exchange: Exchange) -> tuple[str, float] | NoToken:
    """Token and life in seconds (RFC 6749 section 5.1), or why there is none. Nothing that the server says is told on,
    for it may repeat the secret; only its status is."""
    if exchange.kind is ExchangeKind.EGRESS_PROXY_FAILED:
        return NoToken(exchange.error, exchange.kind)
    if exchange.kind is not ExchangeKind.RESPONSE:
        return NoToken(bounded_error(f"the token server: {exchange.error or exchange.kind.value}"))
    if exchange.status_code != 200:
        return NoToken(f"the token server answered {exchange.status_code}")
    try:
        said = orjson.loads(exchange.excerpt)
        token, kind, life = said["access_token"], said["token_type"], said.get("expires_in", LIFE_DEFAULT_S)
        life_s = min(float(life), LIFE_MAX_S)
    except (ValueError, KeyError, TypeError, AttributeError):
        return NoToken("the token server's answer is not that of RFC 6749 section 5.1")
    is_token = isinstance(token, str) and token.isascii() and token.isprintable() and " " not in token
    if not is_token or not 0 < len(token) <= TOKEN_CHARACTERS_MAX or str(kind).lower() != "bearer" or not life_s > 0:
        return NoToken("the token server gave no bearer token")
    return token, life_s
