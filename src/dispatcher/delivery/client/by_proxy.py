"""The tunnel through the egress proxy, and whose fault it is when a webhook does not get through.

    name resolved ──▶ at the proxy ──tunnel opened──▶ through: what fails from here on is the receiver's
                          └── whatever fails here is the proxy's, save where it says that the receiver is to blame

A proxy says so by `Proxy-Status` (RFC 9209; Envoy can) or by `X-Squid-Error`. A bare 502 or 503 to CONNECT says nothing
of the kind: it is what a proxy answers that has lost its own uplink, too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import aiohttp

from dispatcher.delivery.exchange import ExchangeKind

_RECEIVER_ERRORS = {
    "destination_unavailable": ExchangeKind.CONNECTION_FAILED,
    "connection_refused": ExchangeKind.CONNECTION_FAILED,
    "connection_terminated": ExchangeKind.CONNECTION_FAILED,
    "connection_timeout": ExchangeKind.TIMEOUT,
}
"""What a proxy says of the next hop (RFC 9209 section 2.3). The rest is about itself, or about names, which it is
never told."""
_ERROR = re.compile(r';\s*error\s*=\s*"?([a-z_]+)')
_SQUID_CONNECT_FAILED = "ERR_CONNECT_FAIL"


@dataclass(slots=True)
class Way:
    """How far one request has come."""

    is_at_proxy: bool = False


way: ContextVar[Way] = ContextVar("way")
"""That of the request for which a connection is being made."""


class TunnelRequest(aiohttp.ClientRequest):
    """What tells the connector where to connect: by CONNECT, for http as for https.

    In the other form, the absolute one, a proxy must put the address into Host (RFC 9112 section 3.2.2), which the
    receiver knows nothing of; and its own answers look like the receiver's.
    """

    def is_ssl(self) -> bool:
        return True


class TunnelConnector(aiohttp.TCPConnector):
    """aiohttp's own, which asks for a tunnel where it is to speak TLS; here also where it is not."""

    async def _start_tls_connection(
        self, underlying_transport: asyncio.Transport, req: aiohttp.ClientRequest, *arguments: Any, **named: Any
    ) -> Any:
        """The proxy has opened a tunnel."""
        way.get().is_at_proxy = False
        if req.url.scheme == "https":
            return await super()._start_tls_connection(underlying_transport, req, *arguments, **named)
        protocol = self._factory()
        underlying_transport.set_protocol(protocol)
        protocol.connection_made(underlying_transport)
        return underlying_transport, protocol


def classify_at_proxy(failure: Exception) -> tuple[ExchangeKind, str]:
    """The kind of a failure at the proxy and a sentence for the record; neither repeats what the proxy wrote."""
    if isinstance(failure, aiohttp.ClientHttpProxyError):
        blamed = _blames_receiver(failure.headers or {})
        if blamed is not None:
            return blamed, "the egress proxy did not get through to the receiver"
        return ExchangeKind.EGRESS_PROXY_FAILED, f"the egress proxy answered {failure.status}"
    return ExchangeKind.EGRESS_PROXY_FAILED, f"the egress proxy {_what_it_did(failure)}"


def _what_it_did(failure: Exception) -> str:
    if isinstance(failure, TimeoutError):
        return "did not answer before the deadline"
    if isinstance(failure, aiohttp.ClientConnectorError):
        return "is not reached"
    if isinstance(failure, aiohttp.ClientConnectionError | OSError):
        return "closed the connection"
    return "did not answer in HTTP"


def _blames_receiver(headers: Mapping[str, str]) -> ExchangeKind | None:
    if headers.get("X-Squid-Error", "").startswith(_SQUID_CONNECT_FAILED):
        return ExchangeKind.CONNECTION_FAILED
    found = _ERROR.search(headers.get("Proxy-Status", ""))
    return None if found is None else _RECEIVER_ERRORS.get(found[1])
