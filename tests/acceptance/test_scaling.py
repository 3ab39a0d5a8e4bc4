"""The external scaler of the service as it is started, for KEDA in front of any of its processes."""

from __future__ import annotations

from pathlib import Path

import grpc.aio
import pytest
from externalscaler import externalscaler_pb2 as keda
from externalscaler import externalscaler_pb2_grpc as keda_grpc

from tests.support.callers import CALL_TIMEOUT_S, WAIT_S
from tests.support.postgres import TestDatabase
from tests.support.process import free_ports, processes
from tests.support.waiting import until


@pytest.mark.parametrize(("arguments", "count"), [([], 1), (["--workers", "2"], 2)], ids=["one process", "workers"])
async def test_every_process_answers_on_the_scalers_port(
    database: TestDatabase, tmp_path: Path, arguments: list[str], count: int
) -> None:
    (port,) = free_ports(1)
    variables = {"DISPATCHER_SCALER_LISTEN": f"127.0.0.1:{port}"}
    with processes(database.dsn, tmp_path, 1, variables, arguments) as (served,):

        async def all_serve() -> bool:
            told = [record for record in served.records() if record["message"] == "the external scaler is served"]
            return [record["port"] for record in told] == [port] * count

        await until(all_serve, WAIT_S)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            answer = await keda_grpc.ExternalScalerStub(channel).IsActive(
                keda.ScaledObjectRef(), timeout=CALL_TIMEOUT_S
            )
            assert not answer.result
