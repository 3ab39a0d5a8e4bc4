"""The only place that sends webhooks: aiohttp's connections, with every endpoint taken for hostile.

Addresses are judged when a name is resolved, again when a socket is made for the very address, and the peer once more
before a byte is written. Redirects, environment proxies, cookies and decompression are off; head and body of a response
are bounded; one deadline covers everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Self

import aiohttp
from aiohttp import hdrs

from dispatcher.delivery.client.by_proxy import Blame, TunnelConnector, TunnelRequest, Way, way
from dispatcher.delivery.client.connections import Connections, Route
from dispatcher.delivery.client.failures import classify
from dispatcher.delivery.client.proxy_probe import ProbeOptions
from dispatcher.delivery.client.wire import Reading, ResponseLimits, Writes, converse, request_head
from dispatcher.delivery.exchange import Exchange, ExchangeKind, WebhookRequest
from dispatcher.security.addresses import AddressKind, IPNetwork, is_within
from dispatcher.security.egress import AddressRefusedError, EgressPolicy, refused_kind
from dispatcher.security.egress_proxy import EgressProxy, ProxyResolver, numeric
from dispatcher.security.endpoint_tls import EndpointTls, client_context
from dispatcher.security.resolver import PolicyResolver, ResolverOptions

if TYPE_CHECKING:
    from aiohttp.connector import AddrInfoType, Connection

_REUSE_TRIES = 3
CONTEXTS_MAX = 1024
"""TLS contexts of endpoints with roots or certificates of their own that are kept."""


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Bounds of the client.

    `connections_max` bounds connections in use (keep it above the cap on requests in flight: waiting for one counts
    against a request's deadline); 0 is no bound. Beyond `idle_connections_max` open ones, a connection is closed after
    one use. All webhooks go through `proxy` if there is one; `probe` tells how it is found out whether that works.
    `connect_timeout_s` is the longest that a new connection may take, from the name look-up to the end of the TLS
    handshake; by a proxy, what it takes to reach that, and the handshake. `keepalive_timeout_s` stays below what common
    servers keep (5 s in Node.js and uvicorn), since reusing a connection as its server closes it costs a failed
    attempt. `ca_file` adds roots (PEM) to the system's.
    """

    connections_max: int = 0
    idle_connections_max: int = 1024
    connect_timeout_s: float = 5.0
    keepalive_timeout_s: float = 4.0
    response_bytes_max: int = 65_536
    excerpt_bytes_max: int = 1024
    header_line_bytes_max: int = 8190
    header_count_max: int = 100
    ca_file: str | None = None
    proxy: EgressProxy | None = None
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    resolver: ResolverOptions = field(default_factory=ResolverOptions)


class _UnfitError(aiohttp.ClientConnectionError):
    """Connections were lost, or held an answer that nobody asked for; nothing of the request was written."""


@dataclass(slots=True)
class _Sending:
    """The request under way, as the hooks inside aiohttp need it; done by `deadline_s` (monotonic)."""

    request: WebhookRequest
    client: WebhookClient
    deadline_s: float
    peer: str | None = None
    way: Way | None = None

    @property
    def host(self) -> str | None:
        """The name that addresses were resolved from; None for a literal."""
        return None if self.request.url.address else self.request.url.host


_sending: ContextVar[_Sending] = ContextVar("sending")


class _CountedSocket(socket.socket):
    """A socket that tells its client when it ends, so that open ones can be counted.

    asyncio closes the socket object; uvloop detaches it as it closes the descriptor.
    """

    on_end: Callable[[], None] | None = None

    def close(self) -> None:
        self._end()
        super().close()

    def detach(self) -> int:
        self._end()
        return super().detach()

    def _end(self) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end()


class WebhookClient:
    """Posts webhooks and reports how it went, never by an exception. Use as an async context manager."""

    def __init__(
        self,
        policy: EgressPolicy,
        options: ClientOptions | None = None,
        *,
        resolver: PolicyResolver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._options = options or ClientOptions()
        self._resolver = resolver
        self._clock = clock
        self._refused_kind = lru_cache(maxsize=4096)(self._ask_policy)
        self._contexts: OrderedDict[EndpointTls, ssl.SSLContext] = OrderedDict()
        self._limits = ResponseLimits(
            self._options.response_bytes_max, self._options.header_line_bytes_max, self._options.header_count_max
        )
        self._writes = Writes()
        self._connections: Connections | None = None
        proxy = self._options.proxy
        self._blame = (
            None if proxy is None else Blame(proxy, self._options.probe, self._options.connect_timeout_s, clock)
        )
        self.open_connections = 0

    async def __aenter__(self) -> Self:
        options = self._options
        if self._resolver is None:
            self._resolver = PolicyResolver(self._policy, options.resolver)
        kind = aiohttp.TCPConnector if options.proxy is None else TunnelConnector
        connector = kind(
            resolver=self._resolver if options.proxy is None else ProxyResolver(),
            use_dns_cache=False,  # the resolver has its own, with failures and bounds
            limit=options.connections_max,
            keepalive_timeout=options.keepalive_timeout_s,
            ssl=await asyncio.to_thread(client_context, EndpointTls(), options.ca_file),
            socket_factory=self._make_socket,
        )
        self._connections = Connections(
            connector,
            options.keepalive_timeout_s,
            options.connect_timeout_s,
            self._clock,
            by_proxy=options.proxy is not None,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._blame is not None:
            await self._blame.close()
        if self._connections is not None:
            await self._connections.close()
        if self._resolver is not None:
            await self._resolver.close()

    async def post(self, request: WebhookRequest) -> Exchange:
        """Send one webhook and read its response, within `request.timeout_s` in all.

        Raises nothing but CancelledError (and RuntimeError outside `async with`, a bug).
        """
        if self._connections is None:
            raise RuntimeError("the client is not open")
        start_s = self._clock()
        sending = _Sending(request, self, start_s + request.timeout_s)
        reading = Reading()
        try:
            if self._blame is None:
                await self._post_directly(self._connections, sending, reading, start_s)
            else:
                await self._post_by(self._blame, self._connections, sending, reading)
            kind, error = ExchangeKind.RESPONSE, ""
        except Exception as failure:  # noqa: BLE001  # a hostile peer must not be able to end a delivery loop
            kind, error = self._classify(failure, sending, reading)
        kept = request.excerpt_bytes_max
        return Exchange(
            kind,
            self._clock() - start_s,
            reading.status_code,
            reading.retry_after,
            bytes(reading.body[: self._options.excerpt_bytes_max if kept is None else kept]) if reading.body else b"",
            reading.truncated,
            error,
            sending.peer,
        )

    async def _post_directly(self, connections: Connections, sending: _Sending, reading: Reading, now_s: float) -> None:
        request = sending.request
        url = request.url
        head = request_head(url.target, url.authority, request.headers, len(request.body))
        route = connections.route((url.scheme, url.host, url.port, request.tls))
        idle = None if route is None else connections.take_idle(route, now_s)
        left_s = request.timeout_s
        if route is not None and idle is not None and self._is_fit(sending, *idle):
            connection = idle[0]
        else:
            if idle is not None:
                idle[0].close()
            async with asyncio.timeout(left_s):
                route, connection = await self._connect(connections, sending)
            left_s = sending.deadline_s - self._clock()
        is_reusable = False
        try:
            is_reusable = await converse(connection, head, request.body, self._writes, self._limits, reading, left_s)
        finally:
            if is_reusable:
                connections.put_back(route, connection, sending.peer or "")
            else:
                _drop(connection)

    async def _connect(self, connections: Connections, sending: _Sending) -> tuple[Route, Connection]:
        """A connection that may be written to, for a request that finds none at hand."""
        request = sending.request
        url = request.url
        key = (url.scheme, url.host, url.port, request.tls)
        route = connections.route(key)
        if route is None:
            tls = True if request.tls is None else await self._context(request.tls)
            route = connections.learn(key, aiohttp.ClientRequest(hdrs.METH_POST, url.wire, ssl=tls))
        _sending.set(sending)
        for _ in range(_REUSE_TRIES):
            idle = connections.take_idle(route, self._clock())
            connection, peer = idle or _with_peer(await connections.connect(route.request))
            if self._is_fit(sending, connection, peer):
                return route, connection
            connection.close()
        raise _UnfitError("no connection stayed open for a request")

    def _classify(self, failure: Exception, sending: _Sending, reading: Reading) -> tuple[ExchangeKind, str]:
        if self._blame is not None and sending.way is not None and sending.way.is_at_proxy:
            return self._blame.classify(failure, sending.way)
        return classify(failure, reading)

    async def _post_by(self, blame: Blame, connections: Connections, sending: _Sending, reading: Reading) -> None:
        """The same through a proxy, which is told the address that was checked here."""
        request = sending.request
        url = request.url
        async with asyncio.timeout(request.timeout_s):
            address = await self._checked_address(request)
            route = await self._route_by(blame.proxy, request, address)
            _sending.set(sending)
            by = blame.way(request, address)
            connection = await self._tunnel(connections, sending, route, by)
            is_reusable = False
            try:
                head = request_head(url.target, url.authority, request.headers, len(request.body))
                left_s = sending.deadline_s - self._clock()
                is_reusable = await converse(
                    connection, head, request.body, self._writes, self._limits, reading, left_s
                )
                by.answered()
            finally:
                if is_reusable:
                    connection.release()
                else:
                    _drop(connection)

    async def _tunnel(
        self, connections: Connections, sending: _Sending, route: aiohttp.ClientRequest, at: Way
    ) -> Connection:
        """A tunnel that may be written to. One that was kept and is lost meanwhile says nothing of the proxy: another
        takes its place, and a new one in the end, whose failure is the receiver's."""
        sending.way = at
        way.set(at)
        new_ones = 0
        while new_ones < _REUSE_TRIES:
            at.begin()
            connection = await connections.connect(route)
            if self._is_fit(sending, *_with_peer(connection)):
                at.is_at_proxy = False
                return connection
            connection.close()
            new_ones += at.is_new
        raise _UnfitError("no tunnel stayed open for a request")

    async def _route_by(self, proxy: EgressProxy, request: WebhookRequest, address: str) -> aiohttp.ClientRequest:
        return TunnelRequest(
            hdrs.METH_POST,
            numeric(request.url, address),
            ssl=True if request.tls is None else await self._context(request.tls),
            server_hostname=request.url.host,
            proxy=proxy.url,
            proxy_auth=proxy.auth,
        )

    async def _checked_address(self, request: WebhookRequest) -> str:
        """The first address of the receiver, which the policy and the endpoint's own networks allow. Raises
        AddressRefusedError, NameNotResolvedError."""
        url = request.url
        if url.address is not None:
            found, host = [str(url.address)], None
        else:
            assert self._resolver is not None  # noqa: S101 -- entered
            found, host = [answer["host"] for answer in await self._resolver.resolve(url.host)], url.host
        for address in found[:-1]:
            with contextlib.suppress(AddressRefusedError):
                self._judge(address, host, request.allowed_networks)
                return address
        self._judge(found[-1], host, request.allowed_networks)
        return found[-1]

    async def _context(self, tls: EndpointTls) -> ssl.SSLContext:
        """The context of an endpoint with TLS of its own; equal ones share it, and so their connections."""
        known = self._contexts.get(tls)
        if known is None:
            known = await asyncio.to_thread(client_context, tls, self._options.ca_file)
            self._contexts[tls] = known
        self._contexts.move_to_end(tls)
        while len(self._contexts) > CONTEXTS_MAX:
            self._contexts.popitem(last=False)
        return known

    def _is_fit(self, sending: _Sending, connection: Connection, peer: str) -> bool:
        """Judge the connection that a request is about to be written to; True where it may be.

        False for one that is lost, or on which the server has spoken unasked: its stale answer would be taken for this
        request's. Raises AddressRefusedError, with the connection closed, for a peer that policy refuses.
        """
        protocol = connection.protocol
        if protocol is None or not peer or protocol.should_close:
            return False
        sending.peer = peer
        try:
            self._check(peer, sending)
        except AddressRefusedError:
            connection.close()
            raise
        if self.open_connections > self._options.idle_connections_max:
            protocol.force_close()
        return True

    def _make_socket(self, addr_info: AddrInfoType) -> socket.socket:
        """A socket for one address, if policy allows that very address; literals meet their first check here."""
        family, kind, protocol, _, sockaddr = addr_info
        address = str(sockaddr[0])
        self._check(address, _sending.get())
        made = _CountedSocket(family, kind, protocol)
        made.on_end = self._socket_closed
        self.open_connections += 1
        return made

    def _check(self, address: str, sending: _Sending) -> None:
        """Judge an address that is connected to. A proxy's own is the deployment's choice."""
        if self._options.proxy is None:
            self._judge(address, sending.host, sending.request.allowed_networks)

    def _judge(self, address: str, host: str | None, allowed_networks: tuple[IPNetwork, ...]) -> None:
        """Raises AddressRefusedError for an address that the policy refuses, or that the endpoint does not name."""
        refused = self._refused_kind(address, host)
        if refused is not None:
            raise AddressRefusedError(address, refused)
        if allowed_networks and not is_within(address, allowed_networks):
            raise AddressRefusedError(address, AddressKind.NOT_NAMED)

    def _socket_closed(self) -> None:
        self.open_connections -= 1

    def _ask_policy(self, address: str, host: str | None) -> AddressKind | None:
        return refused_kind(address, self._policy, host)


def _with_peer(connection: Connection) -> tuple[Connection, str]:
    """A connection and the address it leads to; empty where it is lost already."""
    peername = None if connection.transport is None else connection.transport.get_extra_info("peername")
    return connection, "" if peername is None else peername[0]


def _drop(connection: Connection) -> None:
    """Close a connection that is not fit for another request.

    A polite close waits until everything is written, which a receiver that does not read can put off for ever.
    """
    transport = connection.transport
    connection.close()
    if transport is not None and transport.get_write_buffer_size():
        transport.abort()
