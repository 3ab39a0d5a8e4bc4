"""Where the issuer's public keys come from: a file that is watched, or a URL that is asked again and again."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from typing import Protocol

import aiohttp

from dispatcher.security.callers import AuthReason, refused
from dispatcher.security.jwt import KeySet, KeySetError, TokenRules, UnknownKeyError, Verified, verify
from dispatcher.security.watched_files import WatchedFiles, one_text

KEYS_BYTES_MAX = 1024 * 1024
ASK_TIMEOUT_S = 5.0
ASK_AGAIN_S = 10.0
"""A token with an unknown key has the keys asked for anew, but not more often than this: tokens can be made up."""

_log = logging.getLogger(__name__)


class KeySource(Protocol):
    """Gives the present keys."""

    async def keys(self) -> KeySet:
        """Raises UnauthenticatedError while there are none."""

    async def newer(self) -> KeySet:
        """The keys, asked for anew if that was not done just now."""

    async def follow(self, interval_s: float) -> None:
        """Keep them fresh, for ever."""


class KeyFile:
    """A JWKS in a file."""

    def __init__(self, path: str) -> None:
        """Raises FileUnusableError."""
        self._file = WatchedFiles([path], one_text(KeySet.parse))

    async def keys(self) -> KeySet:
        return self._file.value

    async def newer(self) -> KeySet:
        return self._file.value

    async def follow(self, interval_s: float) -> None:
        await self._file.follow(interval_s)


class KeyUrl:
    """A JWKS behind a URL of the deployment's choice. Keys once read hold until others are: an issuer that is away
    for a while stops nobody."""

    def __init__(self, url: str, *, ca_file: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._ca_file = ca_file
        self._clock = clock
        self._keys: KeySet | None = None
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()

    async def keys(self) -> KeySet:
        return self._keys or await self.newer()

    async def newer(self) -> KeySet:
        async with self._asking:
            if self._clock() - self._asked_at >= ASK_AGAIN_S:
                await self._ask()
        if self._keys is None:
            raise refused(AuthReason.KEYS_UNAVAILABLE, "the issuer's keys could not be read yet")
        return self._keys

    async def follow(self, interval_s: float) -> None:
        while True:
            async with self._asking:
                await self._ask()
            await asyncio.sleep(interval_s if self._keys is not None else min(interval_s, ASK_AGAIN_S))

    async def _ask(self) -> None:
        self._asked_at = self._clock()
        try:
            self._keys = KeySet.parse(await self._read())
        except (aiohttp.ClientError, TimeoutError, OSError, KeySetError, UnicodeDecodeError) as error:
            _log.error("the issuer's keys could not be read", extra={"problem": str(error) or type(error).__name__})

    async def _read(self) -> str:
        timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.get(self._url, allow_redirects=False, ssl=await self._tls()) as response,
        ):
            if response.status != 200:
                raise KeySetError(f"status {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > KEYS_BYTES_MAX:
                    raise KeySetError(f"more than {KEYS_BYTES_MAX} bytes")
            return body.decode()

    async def _tls(self) -> ssl.SSLContext:
        return await asyncio.to_thread(ssl.create_default_context, cafile=self._ca_file)


async def verified(token: str, source: KeySource, rules: TokenRules) -> Verified:
    """Whose token it is; a key that is not known may have been rotated in. Raises UnauthenticatedError."""
    try:
        return verify(token, await source.keys(), rules)
    except UnknownKeyError:
        pass
    try:
        return verify(token, await source.newer(), rules)
    except UnknownKeyError:
        raise refused(AuthReason.INVALID, "the token is not valid: its key is unknown") from None
