"""The external scaler of the service as it is started, for KEDA in front of any of its processes."""

from __future__ import annotations

from pathlib import Path

import grpc.aio
import pytest
from externalscaler import externalscaler_pb2 as keda
from externalscaler import externalscaler_pb2_grpc as keda_grpc

from tests.support.callers import CALL_TIMEOUT_S
from tests.support.postgres import TestDatabase
from tests.support.process import free_ports, processes

CONNECTIONS = 8
"""So many that every worker of the port has answered one, but for one time in a hundred."""


@pytest.mark.parametrize("arguments", [[], ["--workers", "2"]], ids=["one process", "workers"])
async def test_the_scaler_answers_on_its_port(database: TestDatabase, tmp_path: Path, arguments: list[str]) -> None:
    (port,) = free_ports(1)
    with processes(database.dsn, tmp_path, 1, {"DISPATCHER_SCALER_LISTEN": f"127.0.0.1:{port}"}, arguments):
        for number in range(CONNECTIONS):
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
                scaler = keda_grpc.ExternalScalerStub(channel)
                answer = await scaler.IsActive(keda.ScaledObjectRef(name=f"call-{number}"), timeout=CALL_TIMEOUT_S)
                assert not answer.result
