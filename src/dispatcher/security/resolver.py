"""Names to addresses for the HTTP client: resolved once, refused if any answer is refused, bounded in time and memory.

The connection is made to the very addresses returned here, so an answer that changes between check and connect (DNS
rebinding) changes nothing.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from aiohttp.abc import AbstractResolver, ResolveResult

from dispatcher.security.egress import AddressRefusedError, EgressPolicy, refused_kind

Lookup = Callable[[str], Awaitable[list[str]]]
"""The addresses of a name as texts; raises OSError if there are none."""


class NameNotResolvedError(OSError):
    """A name has no address, or its servers did not answer in time."""


@dataclass(frozen=True, slots=True)
class ResolverOptions:
    """Bounds. A name that fails is remembered for `failure_ttl_s`, so that it cannot hog the threads."""

    timeout_s: float = 5.0
    ttl_s: float = 30.0
    failure_ttl_s: float = 5.0
    names_max: int = 4096
    threads_max: int = 16
    addresses_max: int = 16


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a name resolved to, valid until a time of the monotonic clock."""

    addresses: tuple[str, ...]
    error: OSError | None
    expires_at_s: float


class PolicyResolver(AbstractResolver):
    """An aiohttp resolver that asks the egress policy about every answer.

    Lookups run in threads of their own: hostile name servers delay only each other. One lookup per name runs at a time,
    shared by all who wait; a waiter that goes away does not stop it.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        options: ResolverOptions | None = None,
        *,
        lookup: Lookup | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._options = options or ResolverOptions()
        self._threads = ThreadPoolExecutor(self._options.threads_max, thread_name_prefix="resolver")
        self._lookup = lookup or self._lookup_in_thread
        self._clock = clock
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._running: dict[str, asyncio.Task[_Answer]] = {}

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002  # the interface's; both families are asked for
    ) -> list[ResolveResult]:
        """The allowed addresses of `host`. Raises AddressRefusedError or NameNotResolvedError, both OSError."""
        answer = self._answers.get(host)
        if answer is None or answer.expires_at_s <= self._clock():
            answer = await asyncio.shield(self._running.get(host) or self._start(host))
        if answer.error is not None:
            raise answer.error.with_traceback(None)
        return [_result(host, address, port) for address in answer.addresses]

    async def close(self) -> None:
        """Stop waiting for lookups; threads inside the system's resolver end on their own."""
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, host: str) -> asyncio.Task[_Answer]:
        task = asyncio.create_task(self._ask(host), name=f"resolve {host}")
        self._running[host] = task
        task.add_done_callback(lambda _: self._running.pop(host, None))
        return task

    async def _ask(self, host: str) -> _Answer:
        options = self._options
        try:
            async with asyncio.timeout(options.timeout_s):
                addresses = await self._lookup(host)
            answer = self._judge(host, addresses)
        except TimeoutError:
            answer = self._failure(NameNotResolvedError(f"{host} was not resolved within {options.timeout_s:g} s"))
        except OSError as error:
            answer = self._failure(NameNotResolvedError(f"{host} did not resolve: {error.strerror or 'no address'}"))
        self._remember(host, answer)
        return answer

    def _judge(self, host: str, addresses: list[str]) -> _Answer:
        """All answers or none: a mix of public and private ones is an attack or a mistake."""
        unique = tuple(dict.fromkeys(addresses))
        if not unique:
            return self._failure(NameNotResolvedError(f"{host} has no address"))
        for address in unique:
            kind = refused_kind(address, self._policy, host)
            if kind is not None:
                return self._failure(AddressRefusedError(address, kind))
        return _Answer(unique[: self._options.addresses_max], None, self._clock() + self._options.ttl_s)

    def _failure(self, error: OSError) -> _Answer:
        return _Answer((), error, self._clock() + self._options.failure_ttl_s)

    def _remember(self, host: str, answer: _Answer) -> None:
        self._answers[host] = answer
        self._answers.move_to_end(host)
        while len(self._answers) > self._options.names_max:
            self._answers.popitem(last=False)

    async def _lookup_in_thread(self, host: str) -> list[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _getaddrinfo, host)


def _getaddrinfo(host: str) -> list[str]:
    """The system's answer in its order (RFC 6724), IPv6 zones kept so that the policy sees and refuses them."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(sockaddr[0]) for *_, sockaddr in found]


def _result(host: str, address: str, port: int) -> ResolveResult:
    return ResolveResult(
        hostname=host,
        host=address,
        port=port,
        family=socket.AF_INET6 if ":" in address else socket.AF_INET,
        proto=socket.IPPROTO_TCP,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )
