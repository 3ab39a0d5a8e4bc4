"""SIGKILL in the middle of a stream: nothing is lost, first receipts keep their order, the survivor takes over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

import pytest
from webhooks.admin.v1 import admin_pb2

from tests.support.callers import WAIT_S, Caller, SteadyPublisher, calling
from tests.support.node import QUICK
from tests.support.postgres import TestDatabase
from tests.support.process import processes
from tests.support.promises import assert_order_and_copies, failing_now_and_then, has_all
from tests.support.receiver import Receiver
from tests.support.waiting import until

ENDPOINTS = [f"e{i}" for i in range(8)]
TAKEOVER_S = float(QUICK["DISPATCHER_LEASE_TTL_S"]) + 1.0
BUSY_S = 3.0
"""What a machine that runs the rest of the suite beside this may add."""


@pytest.mark.parametrize("killed_after", [10, 400, 1600], ids=["at the start", "in the middle", "with a backlog"])
async def test_sigkill_and_restart_lose_nothing_and_keep_the_order_of_first_receipts(
    database: TestDatabase, tmp_path: Path, killed_after: int
) -> None:
    with processes(database.dsn, tmp_path) as (served,):
        async with calling(served) as (caller,), Receiver() as receiver:
            receiver.default = failing_now_and_then(0.05, delay_s=0.005)
            await _make_endpoints(caller, receiver)
            publishers = [SteadyPublisher(f"p{i}", [caller]) for i in range(2)]
            publishing = asyncio.gather(*(publisher.run(150) for publisher in publishers))
            await receiver.wait_for(killed_after, timeout_s=WAIT_S)
            served.kill()
            assert len(receiver.requests) < 2 * 150 * len(ENDPOINTS), "it was to be killed in the middle"
            await served.started()
            await publishing
            await receiver.wait_for(has_all(receiver, ENDPOINTS, publishers), timeout_s=WAIT_S)
        for name in ENDPOINTS:
            assert_order_and_copies(receiver, name, publishers)


async def test_after_sigkill_another_process_takes_over_within_the_life_of_a_lease(
    database: TestDatabase, tmp_path: Path
) -> None:
    with processes(database.dsn, tmp_path, 2) as (doomed, survivor):
        async with calling(survivor, doomed) as callers, Receiver() as receiver:
            receiver.default = failing_now_and_then(0.05, delay_s=0.002)
            partitions = await _make_endpoints(callers[0], receiver)
            await until(lambda: _is_shared(callers[0]), 30)
            publisher = SteadyPublisher("p", callers, pause_s=0.02)
            async with publisher.streaming():
                await receiver.wait_for(200, timeout_s=WAIT_S)
                owners, remaining = await callers[0].owners(), await _instance_of(callers[0])
                doomed.kill()
                killed_at, seen = time.monotonic(), len(receiver.requests)
                await receiver.wait_for(lambda: {r.endpoint for r in receiver.requests[seen:]} >= set(ENDPOINTS))
                taken_over_s = time.monotonic() - killed_at
            await receiver.wait_for(has_all(receiver, ENDPOINTS, [publisher]), timeout_s=WAIT_S)
        assert {owners[partition] for partition in partitions.values()} > {remaining}, "the killed one owned nothing"
        print(f"taken over after {taken_over_s:.2f} s, {TAKEOVER_S} s on an idle machine")
        assert taken_over_s < TAKEOVER_S + BUSY_S
        assert survivor.troubles() == []
        for name in ENDPOINTS:
            assert_order_and_copies(receiver, name, [publisher])


async def _make_endpoints(caller: Caller, receiver: Receiver) -> Mapping[str, int]:
    """The lease partition of each."""
    await caller.tenant()
    made = {name: await caller.endpoint(name, receiver.url(name)) for name in ENDPOINTS}
    return {name: UUID(endpoint.uid).bytes[-1] for name, endpoint in made.items()}


async def _is_shared(caller: Caller) -> bool:
    """By two instances, half and half; a lease that one gave up and the other has not taken yet is nobody's."""
    owners = list((await caller.owners()).values())
    return "" not in owners and len(set(owners)) == 2 and {owners.count(owner) for owner in owners} == {128}


async def _instance_of(caller: Caller) -> str:
    return (await caller.admin.GetStatus(admin_pb2.GetStatusRequest())).instance
