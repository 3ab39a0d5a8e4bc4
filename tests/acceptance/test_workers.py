"""`serve --workers N`: several processes behind one port, as callers and operators see them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from webhooks.admin.v1 import admin_pb2

from dispatcher.model import PARTITION_COUNT
from dispatcher.security.tokens import hash_of, new_token
from tests.support.callers import CALL_TIMEOUT_S, WAIT_S, Caller, SteadyPublisher, calling, event
from tests.support.postgres import TestDatabase
from tests.support.process import Served, processes
from tests.support.promises import assert_order_and_copies, has_all
from tests.support.receiver import Receiver
from tests.support.waiting import until

WORKERS = 3
QUICKLY = {"DISPATCHER_WORKER_SILENT_MAX_S": "2", "DISPATCHER_WORKER_RESTART_MAX_S": "0.2"}
ENDED_S = 20.0


@pytest.fixture
async def supervised(database: TestDatabase, tmp_path: Path) -> AsyncIterator[tuple[Served, Caller]]:
    with processes(database.dsn, tmp_path, 1, QUICKLY, ["--workers", str(WORKERS)]) as (served,):
        async with calling(served) as (caller,):
            await until(lambda: _is_shared(caller), WAIT_S)
            yield served, caller


async def _status(caller: Caller, instance: str = "") -> admin_pb2.GetStatusResponse:
    return await caller.admin.GetStatus(admin_pb2.GetStatusRequest(instance=instance), timeout=CALL_TIMEOUT_S)


async def _is_shared(caller: Caller) -> bool:
    """All workers answer, and between them they own every partition, about evenly."""
    try:
        status = await _status(caller)
    except grpc.aio.AioRpcError:
        return False
    shares = [len(worker.partitions) for worker in status.workers]
    return len(shares) == WORKERS and sum(shares) == PARTITION_COUNT and max(shares) - min(shares) <= 1


def _children(served: Served) -> list[int]:
    """The workers' process ids."""
    return [int(pid) for pid in Path(f"/proc/{served.pid}/task/{served.pid}/children").read_text().split()]


async def _are_gone(pids: list[int]) -> bool:
    return not any(_is_running(pid) for pid in pids)


def _is_running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return not re.search(r"\) [ZX] ", Path(f"/proc/{pid}/stat").read_text())
    return False


async def test_the_supervisor_answers_for_all_workers(supervised: tuple[Served, Caller]) -> None:
    served, caller = supervised
    assert len(_children(served)) == WORKERS
    together = await _status(caller)
    assert (together.instance, sorted(together.partitions)) == ("", list(range(PARTITION_COUNT)))
    listed = await caller.admin.ListInstances(admin_pb2.ListInstancesRequest(), timeout=CALL_TIMEOUT_S)
    assert {i.name for i in listed.instances} == {worker.instance for worker in together.workers}
    assert {int(i.address.rpartition(":")[2]) for i in listed.instances} == {served.grpc_port}
    assert set((await caller.owners()).values()) == {worker.instance for worker in together.workers}
    assert await asyncio.to_thread(served.page, "/readyz") == (200, "ready: 3 of 3 workers\n")
    _, metrics = await asyncio.to_thread(served.page, "/metrics")
    owned = re.findall(r'^dispatcher_partitions_owned\{worker="(\d)"\} (\d+)', metrics, re.MULTILINE)
    assert sorted(number for number, _ in owned) == ["0", "1", "2"]
    assert sum(int(float(count)) for _, count in owned) == PARTITION_COUNT
    assert re.search(r"^dispatcher_workers 3\.0$", metrics, re.MULTILINE)


async def test_one_worker_is_drained_by_its_id_and_the_others_go_on(supervised: tuple[Served, Caller]) -> None:
    served, caller = supervised
    one = (await _status(caller)).workers[1].instance
    answer = await caller.admin.Drain(admin_pb2.DrainRequest(instance=one), timeout=CALL_TIMEOUT_S)
    assert [(i.name, i.draining, i.partition_count) for i in answer.instances] == [(one, True, 0)]
    assert (await _status(caller, one)).draining
    assert not (await _status(caller)).draining
    status, text = await asyncio.to_thread(served.page, "/readyz")
    assert (status, text.splitlines()[0]) == (200, "ready: 2 of 3 workers")
    assert "draining: drained by an operator" in text
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.admin.Drain(admin_pb2.DrainRequest(instance="instances/nobody"), timeout=CALL_TIMEOUT_S)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_worker_that_dies_or_freezes_is_replaced_and_nothing_is_lost(
    supervised: tuple[Served, Caller], receiver: Receiver, number: signal.Signals
) -> None:
    served, caller = supervised
    await caller.tenant()
    for name in ("a", "b", "c", "d"):
        await caller.endpoint(name, receiver.url(f"/{name}"))
    before = _children(served)
    async with calling(*[served] * 4) as callers:
        publishers = [SteadyPublisher(f"p{number}", [each]) for number, each in enumerate(callers)]
        async with contextlib.AsyncExitStack() as stack:
            for publisher in publishers:
                await stack.enter_async_context(publisher.streaming())
            await receiver.wait_for(100, timeout_s=WAIT_S)
            os.kill(before[0], number)
            await until(lambda: _is_replaced(served, before), WAIT_S)
            await until(lambda: _is_shared(caller), WAIT_S)
        await receiver.wait_for(has_all(receiver, ("a", "b", "c", "d"), publishers), timeout_s=WAIT_S)
    for name in ("a", "b", "c", "d"):
        assert_order_and_copies(receiver, name, publishers)
    _, metrics = await asyncio.to_thread(served.page, "/metrics")
    assert re.search(r"^dispatcher_workers_ended_total 1\.0$", metrics, re.MULTILINE)


async def _is_replaced(served: Served, before: list[int]) -> bool:
    now = _children(served)
    return len(now) == WORKERS and before[0] not in now


async def test_all_workers_drain_on_sigterm(supervised: tuple[Served, Caller], receiver: Receiver) -> None:
    served, caller = supervised
    pids = _children(served)
    assert len(pids) == WORKERS
    await caller.tenant()
    await caller.endpoint("a", receiver.url("/a"))
    await caller.publish(*(event(f"e-{i}") for i in range(50)))
    served.terminate()
    assert await served.exit_code(ENDED_S) == 0
    assert await _are_gone(pids)
    sequences = [request.sequence for request in receiver.of("a")]
    assert sequences == list(range(1, len(sequences) + 1))
    assert served.troubles() == []


async def test_workers_end_by_themselves_when_the_supervisor_is_killed(supervised: tuple[Served, Caller]) -> None:
    served, _ = supervised
    pids = _children(served)
    assert len(pids) == WORKERS
    served.kill()
    await until(lambda: _are_gone(pids), ENDED_S)
    said = [record["worker"] for record in served.records() if record["message"] == "stopped"]
    assert sorted(said) == list(range(WORKERS))
    assert served.troubles() == []


async def test_a_second_service_on_the_port_is_refused(supervised: tuple[Served, Caller], tmp_path: Path) -> None:
    served, _ = supervised
    second = Served(
        served.dsn, tmp_path, QUICKLY | {"DISPATCHER_GRPC_LISTEN": f"127.0.0.1:{served.grpc_port}"}, ["--workers=2"]
    )
    second.start()
    assert await second.exit_code(ENDED_S) == 1
    assert "cannot start: Address already in use" in second.log_tail()


async def test_a_service_whose_workers_cannot_start_says_why_and_ends(
    empty_database: TestDatabase, tmp_path: Path
) -> None:
    served = Served(empty_database.dsn, tmp_path, QUICKLY, ["--workers=2"])
    served.start()
    assert await served.exit_code(ENDED_S) == 1
    assert "dispatcher migrate" in served.log_tail()
    assert "Traceback" not in served.log_tail()


async def test_the_supervisor_asks_who_calls_and_the_worker_puts_them_on_record(
    database: TestDatabase, tmp_path: Path
) -> None:
    token, other = new_token(), new_token()
    (tmp_path / "tokens.yaml").write_text(
        f"tokens: [{{principal: ops, sha256: {hash_of(token)}}}, {{principal: shop, sha256: {hash_of(other)}}}]"
    )
    (tmp_path / "policy.yaml").write_text(
        "bindings: [{principals: [ops], roles: [operator], tenants: ['*']},"
        " {principals: [shop], roles: [publisher], tenants: ['*']}]"
    )
    variables = QUICKLY | {
        "DISPATCHER_AUTH_MODE": "tokens",
        "DISPATCHER_AUTH_TOKENS_FILE": str(tmp_path / "tokens.yaml"),
        "DISPATCHER_AUTH_POLICY_FILE": str(tmp_path / "policy.yaml"),
    }
    metadata = [("authorization", f"Bearer {token}")]
    forged = [("dispatcher-principal", "ops"), ("dispatcher-auth-mode", "none")]
    with processes(database.dsn, tmp_path, 1, variables, ["--workers", "2"]) as (served,):
        async with calling(served) as (caller,):
            drain = admin_pb2.DrainRequest()
            for sent, code in (
                (None, grpc.StatusCode.UNAUTHENTICATED),
                (forged, grpc.StatusCode.UNAUTHENTICATED),
                ([("authorization", f"Bearer {other}"), *forged], grpc.StatusCode.PERMISSION_DENIED),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await caller.admin.Drain(drain, metadata=sent, timeout=CALL_TIMEOUT_S)
                assert caught.value.code() is code

            async def all_answer() -> bool:
                status = await caller.admin.GetStatus(admin_pb2.GetStatusRequest(), metadata=metadata)
                assert not status.draining
                return len(status.workers) == 2

            await until(all_answer, WAIT_S)
            await caller.admin.Drain(drain, metadata=metadata, timeout=30)
            listed = await caller.admin.ListAuditRecords(admin_pb2.ListAuditRecordsRequest(), metadata=metadata)
    begun, ended = admin_pb2.AuditRecord.PHASE_BEGUN, admin_pb2.AuditRecord.PHASE_ENDED
    told = sorted((each.phase, each.principal, each.auth_mode, each.status) for each in listed.records)
    # Each worker carries it out and puts it on record.
    assert told == [(begun, "ops", "tokens", "")] * 2 + [(ended, "ops", "tokens", "OK")] * 2
