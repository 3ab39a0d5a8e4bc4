"""The ops pages of several workers, read over their sockets and put together."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry, Counter

from dispatcher.model import EndpointKey
from dispatcher.ops import workers
from dispatcher.ops.server import OpsServer
from dispatcher.ops.workers import WorkerOps, WorkerPages


class Pages:
    """A worker's, as large as it is told."""

    def __init__(self, series: int, *, is_ready: bool = True) -> None:
        self.is_ready = is_ready
        lines = [f'things_total{{name="{number:06}"}} {number}.0' for number in range(series)]
        self.text = "\n".join(["# HELP things_total Things.", "# TYPE things_total counter", *lines, ""])

    async def readiness(self) -> tuple[bool, str]:
        return self.is_ready, "ready\n" if self.is_ready else "not ready\ndatabase: does not answer\n"

    async def public_keys(self, key: EndpointKey) -> tuple[int, bytes]:
        return (200, b'{"keys": []}') if self.is_ready else (503, b"{}")

    async def metrics(self, _accept: str, *, with_tenants: bool) -> tuple[bytes, str]:
        return self.text.encode(), "text/plain"


async def test_every_series_of_each_worker_is_shown_however_long_its_page_is(tmp_path: Path) -> None:
    """Far more than a socket holds at once."""
    registry = CollectorRegistry()
    Counter("own", "Its own.", registry=registry).inc()
    sockets = {number: tmp_path / str(number) for number in (0, 1)}
    async with (
        WorkerOps() as ops,
        OpsServer(f"unix:{sockets[0]}", Pages(20_000)),
        OpsServer(f"unix:{sockets[1]}", Pages(3, is_ready=False)),
    ):
        pages = WorkerPages(ops, lambda: sockets, registry, lambda: False)
        text = (await pages.metrics("", with_tenants=True))[0].decode()
        assert await pages.readiness() == (
            True,
            "ready: 1 of 2 workers\nworker 1: database: does not answer\n",
        )
        assert await pages.public_keys(EndpointKey(UUID(int=1), UUID(int=2))) == (200, b'{"keys": []}')
    found = re.findall(r'^things_total\{name="\d+",worker="(\d)"\} \d', text, re.MULTILINE)
    assert (found.count("0"), found.count("1")) == (20_000, 3)
    assert text.count("# TYPE things_total counter") == 1
    assert re.search(r"^own_total 1\.0$", text, re.MULTILINE)


async def test_a_worker_that_is_gone_or_says_too_much_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "PAGE_BYTES_MAX", 1000)
    sockets = {number: tmp_path / str(number) for number in (0, 1, 2)}
    async with (
        WorkerOps() as ops,
        OpsServer(f"unix:{sockets[0]}", Pages(3)),
        OpsServer(f"unix:{sockets[1]}", Pages(1000)),
    ):
        pages = WorkerPages(ops, lambda: sockets, CollectorRegistry(), lambda: False)
        text = (await pages.metrics("", with_tenants=True))[0].decode()
        assert set(re.findall(r'worker="(\d)"', text)) == {"0"}
        assert await pages.readiness() == (True, "ready: 2 of 3 workers\nworker 2: does not answer\n")
