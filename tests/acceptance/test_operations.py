"""The commands of docs/operations.md work as they stand, on an endpoint whose receiver is away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.security.signing import generate_secret
from tests.support.commands import needs_grpcurl, publish_as_readme_says, run_commands
from tests.support.ports import closed_port
from tests.support.postgres import TestDatabase
from tests.support.process import Served, processes
from tests.support.readme import commands

PAGE = "docs/operations.md"
LIMIT_S = 30.0
PATIENT = {"DISPATCHER_RETRY_MIN_S": "1", "DISPATCHER_RETRY_MAX_S": "60"}
"""Nothing may be given up while the test looks at it."""


@pytest.fixture
def served(database: TestDatabase, tmp_path: Path) -> Iterator[Served]:
    with processes(database.dsn, tmp_path, 1, PATIENT) as (one,):
        yield one


def run_page(name: str, served: Served) -> str:
    """A block of the page against `served`."""
    ports = {"50051": served.grpc_port, "50052": served.admin_port, "8080": served.ops_port}
    block = commands(name, PAGE)
    exchanged = {f"127.0.0.1:{old}": f"127.0.0.1:{new}" for old, new in ports.items() if f":{old}" in block}
    return run_commands(block, exchanged)


@needs_grpcurl
def test_the_commands_of_the_page_tell_and_do_what_it_says(served: Served) -> None:
    publish_as_readme_says(served, closed_port(), generate_secret())
    health = run_page("health", served)
    for expected in ("alive", "ready", '"SERVING"', '"databaseLatency"', '"partitionCount"'):
        assert expected in health

    deadline = time.monotonic() + LIMIT_S
    while "blockedBy" not in (stuck := run_page("stuck", served)):
        assert time.monotonic() < deadline, stuck
    assert "ATTEMPT_OUTCOME_CONNECTION_FAILED" in stuck
    assert '"backlogCount": "1"' in stuck
    assert '"latency"' in stuck
    assert '"leases/255"' in stuck

    assert '"STATE_RETIRING"' in run_page("rotate", served)
    acted = run_page("act", served)
    assert (
        acted.index('"STATE_PAUSED"') < acted.index('"stateReason": "INC-17"') < acted.rindex('"state": "STATE_ACTIVE"')
    )
    status = commands("stuck", PAGE).split("\n# Is it ACTIVE")[0]
    while '"settledSequence": "1"' not in (told := run_commands(status, {"50051": str(served.grpc_port)})):
        assert time.monotonic() < deadline + LIMIT_S, told
