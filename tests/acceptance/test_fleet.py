"""Two processes as an operator sees them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

from webhooks.admin.v1 import admin_pb2

from dispatcher.model import PARTITION_COUNT
from tests.support.callers import CALL_TIMEOUT_S, WAIT_S, Caller, calling, event
from tests.support.postgres import TestDatabase
from tests.support.process import Served, processes
from tests.support.receiver import Receiver
from tests.support.waiting import until

REBALANCED_S = 5.0


async def test_both_processes_and_all_leases_are_listed_by_each(
    callers: tuple[Caller, Caller], pair: tuple[Served, Served]
) -> None:
    async def is_shared() -> bool:
        listed, own = await _instances(callers[0]), await _statuses(callers)
        counts = [*(i.partition_count for i in listed), *(len(status.partitions) for status in own)]
        return counts == [PARTITION_COUNT // 2] * 4

    await until(is_shared, WAIT_S)
    own = await _statuses(callers)
    assert own[0].instance != own[1].instance
    partitions = [*own[0].partitions, *own[1].partitions]
    assert sorted(partitions) == list(range(PARTITION_COUNT))
    for caller in callers:
        listed = await _instances(caller)
        assert {instance.name for instance in listed} == {status.instance for status in own}
        assert {int(i.address.rpartition(":")[2]) for i in listed} == {served.grpc_port for served in pair}
        assert not any(instance.draining for instance in listed)
        owners = await caller.owners()
        assert list(owners) == list(range(PARTITION_COUNT))
        assert Counter(owners.values()) == {status.instance: PARTITION_COUNT // 2 for status in own}


async def test_a_drained_process_hands_over_within_seconds_and_still_takes_calls(
    database: TestDatabase, receiver: Receiver, tmp_path: Path
) -> None:
    with processes(database.dsn, tmp_path, 2) as pair:
        async with calling(*pair) as (drained, other):
            await drained.tenant()
            for number in range(8):
                await drained.endpoint(f"e{number}", receiver.url(f"/e{number}"))
            await until(lambda: _shares(other, [PARTITION_COUNT // 2] * 2), WAIT_S)
            begun = time.monotonic()
            answer = await drained.admin.Drain(admin_pb2.DrainRequest(), timeout=CALL_TIMEOUT_S)
            assert [(i.draining, i.partition_count) for i in answer.instances] == [(True, 0)]
            await until(lambda: _shares(other, [0, PARTITION_COUNT]), WAIT_S)
            assert time.monotonic() - begun < REBALANCED_S
            assert await asyncio.to_thread(pair[0].readiness) == 503
            assert await asyncio.to_thread(pair[1].readiness) == 200
            await drained.publish(event("e-1"))
            await receiver.wait_for(8, timeout_s=WAIT_S)
            await drained.admin.Drain(admin_pb2.DrainRequest(), timeout=CALL_TIMEOUT_S)
    assert pair[0].troubles() + pair[1].troubles() == []


async def _shares(caller: Caller, wanted: list[int]) -> bool:
    return sorted(instance.partition_count for instance in await _instances(caller)) == wanted


async def _statuses(callers: tuple[Caller, Caller]) -> list[admin_pb2.GetStatusResponse]:
    return [await caller.admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S) for caller in callers]


async def _instances(caller: Caller) -> list[admin_pb2.Instance]:
    return list((await caller.admin.ListInstances(admin_pb2.ListInstancesRequest(), timeout=CALL_TIMEOUT_S)).instances)
