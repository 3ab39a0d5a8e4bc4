"""A forward proxy that webhooks leave through, so that an organisation has fixed source addresses (HTTP CONNECT,
RFC 9110 section 9.3.6).

The address policy is applied before: names are resolved here, and the proxy is told an address, never a name, so what
was checked is what is connected to. What the proxy itself lets through is its own affair.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from dispatcher.security.urls import EndpointUrl


@dataclass(frozen=True, slots=True)
class EgressProxy:
    """`url` is without user name and password, which are in `auth`."""

    url: URL
    auth: aiohttp.BasicAuth | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> EgressProxy:
        """From `http://[user:password@]host:port`. Raises ValueError, which never repeats the text."""
        try:
            url = URL(text)
            user, password = url.user, url.password
            fits = url.scheme == "http" and bool(url.host) and url.path in ("", "/") and not (url.query or url.fragment)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError("must be http://[user:password@]host:port")
        auth = aiohttp.BasicAuth(user, password or "") if user else None
        return cls(url.with_user(None).with_path("/"), auth)


class ProxyResolver(AbstractResolver):
    """For a client whose only connections are to its proxy: its name may lead to a private address."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """By the system. Raises OSError."""
        found = await aiohttp.ThreadedResolver().resolve(host, port, family)
        return list(found)

    async def close(self) -> None:
        """Nothing is held."""


def numeric(url: EndpointUrl, address: str) -> URL:
    """The same URL with the address in place of the host."""
    host = f"[{address}]" if ":" in address else address
    return URL(f"{url.scheme}://{host}:{url.port}{url.target}", encoded=True)
