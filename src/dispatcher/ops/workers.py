"""The ops pages of a supervisor: what its workers say on their sockets, put together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from dispatcher.model import EndpointKey
from dispatcher.ops.server import KEYS_PATH, registry_for

WORKER_LABEL = "worker"
ANSWER_WAIT_S = 2.0
PAGE_BYTES_MAX = 16 * 1024 * 1024
Sockets = Callable[[], Mapping[int, Path]]
"""The ops sockets of the workers that run now, by number."""


class WorkerOps:
    """Asks workers for their pages, while entered."""

    def __init__(self) -> None:
        self._sessions: dict[Path, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(session.close() for session in self._sessions.values()))

    async def is_alive(self, socket: Path) -> bool:
        """Whether the worker answers /livez, within `ANSWER_WAIT_S`."""
        status, _ = await self.ask(socket, "/livez")
        return status == 200

    async def ask(self, socket: Path, page: str) -> tuple[int, str]:
        """Status and text of a page; status 0 where no answer came in time."""
        session = self._sessions.get(socket)
        if session is None:
            session = self._sessions[socket] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(socket), force_close=True),
                timeout=aiohttp.ClientTimeout(total=ANSWER_WAIT_S),
                trust_env=False,
            )
        try:
            async with session.get(f"http://worker{page}") as response:
                return response.status, (await _whole(response)).decode()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0, ""


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """The body to its end: a single read gives what has come so far. Raises OSError beyond `PAGE_BYTES_MAX`."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > PAGE_BYTES_MAX:
            raise OSError("a worker's page is too large")
    return bytes(body)


class WorkerPages:
    """Ready while any worker is: they share one port, and each refuses no call that reaches it."""

    def __init__(
        self, ops: WorkerOps, sockets: Sockets, registry: CollectorRegistry, is_draining: Callable[[], bool]
    ) -> None:
        """`registry` has the supervisor's own metrics."""
        self._ops = ops
        self._sockets = sockets
        self._registry = registry
        self._is_draining = is_draining

    async def readiness(self) -> tuple[bool, str]:
        if self._is_draining():
            return False, "not ready\ndraining: shutting down\n"
        answers = await self._ask_all("/readyz")
        ready = [number for number, (status, _) in answers.items() if status == 200]
        lines = [
            f"worker {number}: {line}"
            for number, (status, text) in answers.items()
            if status != 200
            for line in text.splitlines()[1:] or ["does not answer"]
        ]
        head = f"{'ready' if ready else 'not ready'}: {len(ready)} of {len(answers)} workers"
        return bool(ready), "\n".join([head, *lines, ""])

    async def public_keys(self, key: EndpointKey) -> tuple[int, bytes]:
        page = KEYS_PATH.format(tenant=key.tenant_id, endpoint=key.endpoint_id)
        for socket in self._sockets().values():
            status, text = await self._ops.ask(socket, page)
            if status not in (0, 503):
                return status, text.encode()
        return 503, b"{}"

    async def metrics(self, accept: str, *, with_tenants: bool) -> tuple[bytes, str]:
        answers = await self._ask_all("/metrics")
        encode, content_type = choose_encoder(accept)
        merged = CollectorRegistry()
        merged.register(_Merged({n: text for n, (status, text) in answers.items() if status == 200}, self._registry))
        return await asyncio.to_thread(encode, registry_for(merged, with_tenants=with_tenants)), content_type

    async def _ask_all(self, page: str) -> dict[int, tuple[int, str]]:
        sockets = self._sockets()
        answers = await asyncio.gather(*(self._ops.ask(socket, page) for socket in sockets.values()))
        return dict(zip(sockets, answers, strict=True))


class _Merged(Collector):
    def __init__(self, pages: Mapping[int, str], own: CollectorRegistry) -> None:
        self._pages = pages
        self._own = own

    def describe(self) -> Iterable[Metric]:
        return []  # collected once: nothing to check for names that come twice

    def collect(self) -> Iterable[Metric]:
        return merge(self._pages, self._own.collect())


def merge(pages: Mapping[int, str], own: Iterable[Metric]) -> list[Metric]:
    """Metrics of all pages, each series with the number of its worker, after those of `own`.

    Not added up: a worker that is replaced starts from 0, which only shows in a series of its own.
    """
    families = {family.name: family for family in own}
    for number, page in pages.items():
        for family in text_string_to_metric_families(page):
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                known.samples.append(sample._replace(labels={**sample.labels, WORKER_LABEL: str(number)}))
    return list(families.values())
