"""Connections to receivers: aiohttp makes them, the idle ones are kept here, by origin.

    connect ──▶ in use ──put_back──▶ idle ──take_idle──▶ in use
                   │                   │ keepalive_timeout_s passed, or its receiver has closed it
                   └──────close────────┴──▶ closed

The last one used is taken first: it is the likeliest to be alive, and those that a burst has made can expire.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable

import aiohttp
from aiohttp.connector import Connection

from dispatcher.delivery.client.failures import NotConnectedError
from dispatcher.security.endpoint_tls import EndpointTls

ROUTES_MAX = 10_000
"""Origins that are remembered."""
RouteKey = tuple[str, str, int, EndpointTls | None]
"""Scheme, host, port and what TLS is to be like: connections with the same are alike."""


class Route:
    """One origin: what tells aiohttp's connector where to connect, and its idle connections, each with since when and
    the address of its peer. `is_forgotten`: nobody looks here any more, so nothing may be left here."""

    __slots__ = ("idle", "is_forgotten", "request")

    def __init__(self, request: aiohttp.ClientRequest) -> None:
        self.request = request
        self.is_forgotten = False
        self.idle: deque[tuple[Connection, float, str]] = deque()


class Connections:
    """Those of one client."""

    def __init__(
        self,
        connector: aiohttp.TCPConnector,
        keepalive_timeout_s: float,
        connect_timeout_s: float,
        clock: Callable[[], float],
        *,
        by_proxy: bool = False,
    ) -> None:
        self._connector = connector
        self._connect_timeout_s = connect_timeout_s
        self._timeouts = _by_proxy(connect_timeout_s) if by_proxy else _directly(connect_timeout_s)
        self._keepalive_timeout_s = keepalive_timeout_s
        self._clock = clock
        self._routes: OrderedDict[RouteKey, Route] = OrderedDict()
        self._sweep: asyncio.TimerHandle | None = None

    def route(self, key: RouteKey) -> Route | None:
        """The origin, if it is known."""
        return self._routes.get(key)

    def learn(self, key: RouteKey, request: aiohttp.ClientRequest) -> Route:
        """Remember an origin, unless somebody else has meanwhile; the first one learnt is forgotten where there are too
        many."""
        known = self._routes.get(key)
        if known is not None:
            return known
        route = self._routes[key] = Route(request)
        while len(self._routes) > ROUTES_MAX:
            _, forgotten = self._routes.popitem(last=False)
            _close_all(forgotten)
        return route

    def take_idle(self, route: Route, now_s: float) -> tuple[Connection, str] | None:
        """A connection that has not been idle for too long and is not known to be closed, and its peer."""
        idle, oldest = route.idle, now_s - self._keepalive_timeout_s
        while idle:
            connection, since, peer = idle.pop()
            if since >= oldest and not connection.closed:
                return connection, peer
            connection.close()
        return None

    async def connect(self, request: aiohttp.ClientRequest) -> Connection:
        """A new connection, its TLS included. The caller has a deadline for everything; this has its own time, too.

        Raises NotConnectedError when that is over, and what aiohttp does.
        """
        try:
            return await self._connector.connect(request, [], self._timeouts)
        except TimeoutError:  # aiohttp's own: a deadline of the caller's comes as a cancellation
            raise NotConnectedError(self._connect_timeout_s) from None

    def put_back(self, route: Route, connection: Connection, peer: str) -> None:
        """The connection may be used again, unless its receiver does not want that."""
        protocol = connection.protocol
        if protocol is None or protocol.should_close or route.is_forgotten:
            connection.close()
            return
        route.idle.append((connection, self._clock(), peer))
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._keepalive_timeout_s, self._close_expired)

    def _close_expired(self) -> None:
        self._sweep, oldest = None, self._clock() - self._keepalive_timeout_s
        is_any_idle = False
        for route in self._routes.values():
            while route.idle and (route.idle[0][1] <= oldest or route.idle[0][0].closed):
                route.idle.popleft()[0].close()
            is_any_idle = is_any_idle or bool(route.idle)
        if is_any_idle:
            self._sweep = asyncio.get_running_loop().call_later(self._keepalive_timeout_s, self._close_expired)

    async def close(self) -> None:
        """Close all of them."""
        if self._sweep is not None:
            self._sweep.cancel()
        for route in self._routes.values():
            _close_all(route)
        await self._connector.close()


def _directly(connect_timeout_s: float) -> aiohttp.ClientTimeout:
    """From the name look-up to the end of the handshake."""
    return aiohttp.ClientTimeout(total=None, connect=connect_timeout_s, ceil_threshold=math.inf)


def _by_proxy(connect_timeout_s: float) -> aiohttp.ClientTimeout:
    """To the proxy, and for the handshake in the tunnel; how long the proxy takes to open that is its own affair."""
    return aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s, ceil_threshold=math.inf)


def _close_all(route: Route) -> None:
    route.is_forgotten = True
    while route.idle:
        route.idle.popleft()[0].close()
