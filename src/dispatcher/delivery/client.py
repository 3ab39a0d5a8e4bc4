"""The only place that sends webhooks: one aiohttp session in which every endpoint is taken for hostile.

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
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import aiohttp
from aiohttp import hdrs, http_exceptions
from multidict import CIMultiDictProxy

from dispatcher.delivery.exchange import Exchange, ExchangeKind, WebhookRequest, bounded_error
from dispatcher.security.addresses import AddressKind, IPNetwork, is_within
from dispatcher.security.egress import AddressRefusedError, EgressPolicy, refused_kind
from dispatcher.security.egress_proxy import EgressProxy, ProxyResolver, host_header, numeric
from dispatcher.security.endpoint_tls import EndpointTls, client_context
from dispatcher.security.resolver import NameNotResolvedError, PolicyResolver, ResolverOptions

if TYPE_CHECKING:
    from aiohttp.connector import AddrInfoType, Connection

RETRY_AFTER_CHARACTERS_MAX = 64
_REUSE_TRIES = 3
_READ_BYTES_MAX = 16_384
CONTEXTS_MAX = 1024
"""TLS contexts of endpoints with roots or certificates of their own that are kept."""


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Bounds of the client.

    `connections_max` bounds connections in use (keep it above the cap on requests in flight: waiting for one counts
    against a request's deadline); 0 is no bound. Beyond `idle_connections_max` open ones, a connection is closed after
    one use. All webhooks go through `proxy` if there is one.
    `keepalive_timeout_s` stays below what common servers keep (5 s in Node.js and uvicorn), since reusing a
    connection as its server closes it costs a failed attempt. `ca_file` adds roots (PEM) to the system's.
    """

    connections_max: int = 0
    idle_connections_max: int = 1024
    keepalive_timeout_s: float = 4.0
    response_bytes_max: int = 65_536
    excerpt_bytes_max: int = 1024
    header_line_bytes_max: int = 8190
    header_count_max: int = 100
    ca_file: str | None = None
    proxy: EgressProxy | None = None
    resolver: ResolverOptions = field(default_factory=ResolverOptions)


class _UnsentError(aiohttp.ClientError):
    """The pooled connection was unfit for reuse; nothing of the request was written, so it may be tried again."""


@dataclass(slots=True)
class _Sending:
    """The request under way in this context, as the hooks inside aiohttp need it."""

    host: str | None
    client: WebhookClient
    allowed_networks: tuple[IPNetwork, ...] = ()
    is_proxied: bool = False
    peer: str | None = None
    transport: asyncio.Transport | None = None

    def settle(self) -> None:
        """Abort a connection that is not fit for another request.

        A polite close waits until everything is written, which a receiver that does not read can put off for ever.
        """
        transport = self.transport
        if transport is not None and (transport.is_closing() or transport.get_write_buffer_size()):
            transport.abort()


_Error = TypeVar("_Error", bound=BaseException)
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


class _WebhookClientRequest(aiohttp.ClientRequest):
    """Checks the connection it was given before it writes anything."""

    DEFAULT_HEADERS = {  # noqa: RUF012  # overrides aiohttp's, which would ask for compressed answers
        hdrs.ACCEPT: "*/*",
        hdrs.ACCEPT_ENCODING: "identity",
        hdrs.USER_AGENT: "dispatcher",
    }

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        sending = _sending.get()
        sending.client.admit(sending, conn)
        return await super().send(conn)


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
        self._session: aiohttp.ClientSession | None = None
        self.open_connections = 0

    async def __aenter__(self) -> Self:
        options = self._options
        if self._resolver is None:
            self._resolver = PolicyResolver(self._policy, options.resolver)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=self._resolver if options.proxy is None else ProxyResolver(),
                use_dns_cache=False,  # the resolver has its own, with failures and bounds
                limit=options.connections_max,
                keepalive_timeout=options.keepalive_timeout_s,
                ssl=await asyncio.to_thread(client_context, EndpointTls(), options.ca_file),
                socket_factory=self._make_socket,
            ),
            request_class=_WebhookClientRequest,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=_READ_BYTES_MAX,
            max_line_size=options.header_line_bytes_max,
            max_field_size=options.header_line_bytes_max,
            max_headers=options.header_count_max,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
        if self._resolver is not None:
            await self._resolver.close()

    async def post(self, request: WebhookRequest) -> Exchange:
        """Send one webhook and read its response, within `request.timeout_s` in all.

        Raises nothing but CancelledError (and RuntimeError outside `async with`, a bug).
        """
        if self._session is None:
            raise RuntimeError("the client is not open")
        start_s = self._clock()
        host = None if request.url.address else request.url.host
        sending = _Sending(host, self, request.allowed_networks, self._options.proxy is not None)
        _sending.set(sending)
        reading = _Reading()
        try:
            try:
                response = await self._send(self._session, request)
            except _UnsentError:
                response = await self._send_again(self._session, request)
            await self._read(response, reading)
            kind, error = ExchangeKind.RESPONSE, ""
        except Exception as failure:  # noqa: BLE001  # a hostile peer must not be able to end a delivery loop
            kind, error = _classify(failure, reading)
        finally:
            sending.settle()
        return Exchange(
            kind,
            self._clock() - start_s,
            reading.status_code,
            reading.retry_after,
            bytes(reading.body[: self._excerpt_bytes_max(request)]),
            reading.truncated,
            error,
            sending.peer,
        )

    def _excerpt_bytes_max(self, request: WebhookRequest) -> int:
        kept = request.excerpt_bytes_max
        return self._options.excerpt_bytes_max if kept is None else kept

    async def _send(self, session: aiohttp.ClientSession, request: WebhookRequest) -> aiohttp.ClientResponse:
        """Connect, write, read the head. The deadline set here also binds reading the body."""
        tls: ssl.SSLContext | Literal[True] = True if request.tls is None else await self._context(request.tls)
        proxy = self._options.proxy
        if proxy is not None:
            return await self._send_by(proxy, session, request, tls)
        return await session.request(
            hdrs.METH_POST,
            request.url.wire,
            headers=request.headers,
            data=request.body,
            allow_redirects=False,
            timeout=_deadline(request.timeout_s),
            ssl=tls,
        )

    async def _send_by(
        self,
        proxy: EgressProxy,
        session: aiohttp.ClientSession,
        request: WebhookRequest,
        tls: ssl.SSLContext | Literal[True],
    ) -> aiohttp.ClientResponse:
        """The same through a proxy, which is told the address that was checked here."""
        begun_s = self._clock()
        async with asyncio.timeout(request.timeout_s):
            address = await self._checked_address(request)
        return await session.request(
            hdrs.METH_POST,
            numeric(request.url, address),
            headers={**request.headers, hdrs.HOST: host_header(request.url)},
            data=request.body,
            allow_redirects=False,
            timeout=_deadline(max(0.001, request.timeout_s - (self._clock() - begun_s))),
            ssl=tls,
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
        direct = _Sending(host, self, request.allowed_networks)
        for address in found[:-1]:
            with contextlib.suppress(AddressRefusedError):
                self._check(address, direct)
                return address
        self._check(found[-1], direct)
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

    async def _send_again(self, session: aiohttp.ClientSession, request: WebhookRequest) -> aiohttp.ClientResponse:
        """After a pooled connection proved unfit: some more, and then give up."""
        for _ in range(_REUSE_TRIES - 1):
            try:
                return await self._send(session, request)
            except _UnsentError:
                continue
        return await self._send(session, request)

    async def _read(self, response: aiohttp.ClientResponse, reading: _Reading) -> None:
        """Head and at most `response_bytes_max` of the body; a connection with more to say is closed."""
        try:
            reading.take_head(response.status, response.headers)
            if response.status == 101:
                return
            content = response.content
            while not content.at_eof():
                room = self._options.response_bytes_max - len(reading.body)
                chunk = await content.read(min(room + 1, _READ_BYTES_MAX))
                reading.body += chunk[:room]
                if len(chunk) > room:
                    reading.truncated = True
                    return
        finally:
            if not response.closed:  # after the whole body aiohttp has put the connection back by itself
                response.close()

    def admit(self, sending: _Sending, conn: Connection) -> None:
        """Judge the connection that a request is about to be written to.

        Raises AddressRefusedError for a peer that policy refuses, _UnsentError for a connection on which the server has
        spoken unasked: its stale answer would be taken for this request's.
        """
        protocol, transport = conn.protocol, conn.transport
        peername = transport.get_extra_info("peername") if transport is not None else None
        if protocol is None or peername is None:
            raise _UnsentError("the connection was lost before it was used")
        sending.transport, sending.peer = transport, peername[0]
        peer = sending.peer
        self._check(peer, sending)
        if protocol.should_close:
            raise _UnsentError("the connection holds an answer that nobody asked for")
        if self.open_connections > self._options.idle_connections_max:
            protocol.force_close()

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
        """Raises AddressRefusedError for an address that the policy refuses, or that the endpoint does not name. A
        proxy's own address is the deployment's choice."""
        if sending.is_proxied:
            return
        refused = self._refused_kind(address, sending.host)
        if refused is not None:
            raise AddressRefusedError(address, refused)
        if sending.allowed_networks and not is_within(address, sending.allowed_networks):
            raise AddressRefusedError(address, AddressKind.NOT_NAMED)

    def _socket_closed(self) -> None:
        self.open_connections -= 1

    def _ask_policy(self, address: str, host: str | None) -> AddressKind | None:
        return refused_kind(address, self._policy, host)


@lru_cache(maxsize=256)
def _deadline(timeout_s: float) -> aiohttp.ClientTimeout:
    """One deadline for everything; the threshold keeps aiohttp from rounding it up to whole seconds."""
    return aiohttp.ClientTimeout(total=timeout_s, ceil_threshold=timeout_s + 1.0)


@dataclass(slots=True)
class _Reading:
    """What has been read of a response so far."""

    status_code: int | None = None
    retry_after: str | None = None
    body: bytearray = field(default_factory=bytearray)
    truncated: bool = False

    def take_head(self, status_code: int, headers: CIMultiDictProxy[str]) -> None:
        self.status_code = status_code
        retry_after = headers.get(hdrs.RETRY_AFTER)
        if retry_after is not None:
            self.retry_after = bounded_error(retry_after)[:RETRY_AFTER_CHARACTERS_MAX]


def _classify(failure: Exception, reading: _Reading) -> tuple[ExchangeKind, str]:
    """The closed kind of a failure and a sentence for the record, made here since aiohttp's own may quote the URL."""
    refused = _find(failure, AddressRefusedError)
    if refused is not None:
        return ExchangeKind.ADDRESS_REFUSED, bounded_error(str(refused))
    if isinstance(failure, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        said = f"answered {failure.status}" if isinstance(failure, aiohttp.ClientHttpProxyError) else "is not reached"
        return ExchangeKind.CONNECTION_FAILED, f"the egress proxy {said}"
    if isinstance(failure, aiohttp.ClientConnectorDNSError | NameNotResolvedError):
        cause = failure.os_error if isinstance(failure, aiohttp.ClientConnectorDNSError) else failure
        return ExchangeKind.NAME_NOT_RESOLVED, bounded_error(str(cause))
    if isinstance(failure, aiohttp.ClientSSLError | ssl.SSLError | ssl.CertificateError):
        return ExchangeKind.TLS_FAILED, _tls_error(failure)
    if isinstance(failure, TimeoutError):
        part = "no response" if reading.status_code is None else "the response body was not complete"
        return ExchangeKind.TIMEOUT, f"{part} before the deadline"
    too_large = _find(failure, http_exceptions.LineTooLong)
    if too_large is not None or "Too many headers" in str(failure):
        return ExchangeKind.RESPONSE_TOO_LARGE, "the response has too many or too long header lines"
    if isinstance(failure, aiohttp.ClientConnectionError | OSError | aiohttp.ClientPayloadError):
        return _connection_failure(failure, reading)
    if isinstance(failure, aiohttp.ClientResponseError | http_exceptions.HttpProcessingError):
        return ExchangeKind.INVALID_RESPONSE, "the response is not valid HTTP/1.1"
    return ExchangeKind.INVALID_RESPONSE, bounded_error(f"the exchange failed: {type(failure).__name__}")


def _connection_failure(failure: Exception, reading: _Reading) -> tuple[ExchangeKind, str]:
    if isinstance(failure, aiohttp.ServerDisconnectedError):
        return ExchangeKind.CONNECTION_FAILED, "the connection was closed without a response"
    if reading.status_code is not None:
        return ExchangeKind.CONNECTION_FAILED, "the connection was lost before the response was complete"
    cause = failure.os_error if isinstance(failure, aiohttp.ClientConnectorError) else failure
    detail = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause) or type(cause).__name__
    return ExchangeKind.CONNECTION_FAILED, bounded_error(f"the connection failed: {detail}")


def _tls_error(failure: Exception) -> str:
    cause = failure.__cause__ or failure  # aiohttp's own errors are SSLErrors as well, without the detail
    if isinstance(cause, ssl.SSLCertVerificationError):
        return bounded_error(f"the certificate is not trusted: {cause.verify_message}")
    if isinstance(cause, ssl.SSLError):
        return bounded_error(f"the TLS handshake failed: {cause.reason}")
    return "the TLS handshake failed"


def _find(failure: BaseException, wanted: type[_Error]) -> _Error | None:
    """The first of `failure` and its causes (at most eight) that is a `wanted`."""
    error: BaseException | None = failure
    for _ in range(8):
        if error is None:
            return None
        if isinstance(error, wanted):
            return error
        error = error.__cause__ or getattr(error, "os_error", None) or error.__context__
    return None
