"""Two processes as an operator sees them."""

from __future__ import annotations

from collections import Counter

from webhooks.admin.v1 import admin_pb2

from dispatcher.model import PARTITION_COUNT
from tests.support.callers import CALL_TIMEOUT_S, WAIT_S, Caller
from tests.support.process import Served
from tests.support.waiting import until


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


async def _statuses(callers: tuple[Caller, Caller]) -> list[admin_pb2.GetStatusResponse]:
    return [await caller.admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S) for caller in callers]


async def _instances(caller: Caller) -> list[admin_pb2.Instance]:
    return list((await caller.admin.ListInstances(admin_pb2.ListInstancesRequest(), timeout=CALL_TIMEOUT_S)).instances)
