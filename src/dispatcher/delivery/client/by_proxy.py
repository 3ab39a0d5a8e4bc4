"""The tunnel through the egress proxy, and whose fault it is when a webhook does not get through.

    name resolved ──▶ at the proxy ──tunnel opened──▶ through: what fails from here on is the receiver's
                          └── whatever fails here is the proxy's, save where it says that the receiver is to blame

A proxy says so by `Proxy-Status` (RFC 9209; Envoy can) or by `X-Squid-Error`. A bare 502, 503 or 504 to CONNECT says
nothing of the kind, nor does silence: so does a proxy that has lost its own uplink, too. What it does for others tells
(`tunnels`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import aiohttp

from dispatcher.delivery.client.failures import NotConnectedError
from dispatcher.delivery.client.proxy_probe import ProbeOptions, ProxyProbe
from dispatcher.delivery.client.tunnels import Asked, Pair, Target, Tunnels
from dispatcher.delivery.exchange import ExchangeKind, WebhookRequest
from dispatcher.security.egress_proxy import EgressProxy

_RECEIVER_ERRORS = {
    "destination_unavailable": ExchangeKind.CONNECTION_FAILED,
    "connection_refused": ExchangeKind.CONNECTION_FAILED,
    "connection_terminated": ExchangeKind.CONNECTION_FAILED,
    "connection_timeout": ExchangeKind.TIMEOUT,
}
"""What a proxy says of the next hop (RFC 9209 section 2.3). The rest is about itself, or about names, which it is
never told."""
_ERROR = re.compile(r';\s*error\s*=\s*"?([a-z_]+)')
_BARE = {
    502: ExchangeKind.CONNECTION_FAILED,
    503: ExchangeKind.CONNECTION_FAILED,
    504: ExchangeKind.TIMEOUT,
}
"""What a proxy answers where it does not get through, for whatever reason."""
_SQUID_CONNECT_FAILED = "ERR_CONNECT_FAIL"
FAIR_SHARE = 0.5
"""Of an attempt's time, or of that to connect: where the proxy has had less, the endpoint's own name servers or token
server have used up the rest."""


class Way:
    """How far one request has come: on its way to the proxy since `asked`, and no more `is_at_proxy` once the tunnel is
    open. `is_new`: it is not by one that was open before. `fair_s`: a deadline that is over sooner after the beginning
    was used up elsewhere."""

    __slots__ = ("_clock", "_fair_until", "_tunnels", "asked", "is_at_proxy", "is_new")

    def __init__(
        self, tunnels: Tunnels, pair: Pair, target: Target, clock: Callable[[], float], fair_s: float = 0.0
    ) -> None:
        self._tunnels = tunnels
        self._clock = clock
        self.asked: Asked = tunnels.ask(pair, target, clock())
        self._fair_until = self.asked.began_at + fair_s
        self.begin()

    @property
    def was_fair(self) -> bool:
        """Whether the proxy has had its share of the time."""
        return self._clock() >= self._fair_until

    def begin(self) -> None:
        """A tunnel is looked for, or else made."""
        self.is_at_proxy, self.is_new = True, False

    def connected(self) -> None:
        """There is a connection to the proxy for a tunnel of its own."""
        self.is_new = True

    def opened(self) -> None:
        """The proxy has opened the tunnel."""
        self.is_at_proxy = False
        self._tunnels.opened(self.asked.target, self._clock(), self.asked.pair)

    def answered(self) -> None:
        """The receiver has answered, by whatever tunnel."""
        self._tunnels.answered(self.asked.target, self.asked.pair)


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

    async def _create_direct_connection(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout, **named: Any
    ) -> Any:
        """The only connections are to the proxy."""
        made = await super()._create_direct_connection(req, traces, timeout, **named)
        way.get().connected()
        return made

    async def _start_tls_connection(
        self, underlying_transport: asyncio.Transport, req: aiohttp.ClientRequest, *arguments: Any, **named: Any
    ) -> Any:
        """The proxy has opened a tunnel."""
        way.get().opened()
        if req.url.scheme == "https":
            return await super()._start_tls_connection(underlying_transport, req, *arguments, **named)
        protocol = self._factory()
        underlying_transport.set_protocol(protocol)
        protocol.connection_made(underlying_transport)
        return underlying_transport, protocol


class Blame:
    """Of one client: what its proxy did, and for whom. `close` it."""

    def __init__(
        self, proxy: EgressProxy, options: ProbeOptions, connect_timeout_s: float, clock: Callable[[], float]
    ) -> None:
        self.proxy = proxy
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock
        self._tunnels = Tunnels(options.evidence_s, options.target, options.interval_s + options.timeout_s)
        self._probe = ProxyProbe(proxy, self._tunnels, options, clock)

    def way(self, request: WebhookRequest, address: str) -> Way:
        """That of a request, to that address."""
        pair = (request.sender, request.url.authority)
        fair_s = FAIR_SHARE * min(request.timeout_s + request.used_s, self._connect_timeout_s)
        return Way(self._tunnels, pair, Target(address, request.url.port), self._clock, fair_s)

    async def close(self) -> None:
        """Nothing is asked of the proxy any more."""
        await self._probe.close()

    def classify(self, failure: Exception, way: Way) -> tuple[ExchangeKind, str]:
        """The kind of a failure at the proxy and a sentence for the record; neither repeats what the proxy wrote."""
        if isinstance(failure, TimeoutError) and not way.was_fair:
            return ExchangeKind.TIMEOUT, "too little time was left for a connection"
        said = failure.headers if isinstance(failure, aiohttp.ClientHttpProxyError) else None
        headers: Mapping[str, str] = said or {}
        told = _blames_receiver(headers)
        if told is not None:
            return told, "the egress proxy did not get through to the receiver"
        unexplained = None if _explains(headers) else _unexplained(failure)
        if unexplained is not None:
            self._probe.want(way.asked.target)
            if self._tunnels.failed(way.asked, self._clock()):
                return unexplained, "the egress proxy gets through to others, but not to the receiver"
        return ExchangeKind.EGRESS_PROXY_FAILED, f"the egress proxy {_what_it_did(failure)}"


def _unexplained(failure: Exception) -> ExchangeKind | None:
    """What it is if it is the receiver's; None for what neither a receiver nor the endpoint's own timeout can cause."""
    if isinstance(failure, NotConnectedError):
        return None
    if isinstance(failure, TimeoutError):
        return ExchangeKind.TIMEOUT
    if not isinstance(failure, aiohttp.ClientHttpProxyError):
        return None
    return _BARE.get(failure.status)


def _what_it_did(failure: Exception) -> str:
    if isinstance(failure, aiohttp.ClientHttpProxyError):
        return f"answered {failure.status}"
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


def _explains(headers: Mapping[str, str]) -> bool:
    """Whether the proxy gives a reason, which is its own where it does not blame the receiver."""
    return "X-Squid-Error" in headers or _ERROR.search(headers.get("Proxy-Status", "")) is not None
