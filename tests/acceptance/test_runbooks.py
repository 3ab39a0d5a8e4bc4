"""The commands and statements of docs/runbooks/ work as they stand, save those that need a cluster."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

from dispatcher.security.signing import generate_secret
from tests.support.commands import needs_grpcurl, publish_as_readme_says, run_commands
from tests.support.ports import closed_port
from tests.support.postgres import TestDatabase
from tests.support.process import Served, processes
from tests.support.readme import ROOT
from tests.support.waiting import until

PAGES = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VARIABLES = {
    "DISPATCHER_METRICS_BACKLOG_INTERVAL_S": "0.5",
    "DISPATCHER_RETRY_MIN_S": "1",
    "DISPATCHER_RETRY_MAX_S": "60",
}


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Page and text of each block, without what asks a Kubernetes."""
    for page in PAGES:
        for found, text in BLOCK.findall(page.read_text()):
            kept = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("kubectl "))
            if found == language and kept:
                yield page.stem, kept


@needs_grpcurl
async def test_every_command_of_a_runbook_runs(database: TestDatabase, tmp_path: Path) -> None:
    """Against an endpoint whose receiver is away, so that there is something to see."""
    with processes(database.dsn, tmp_path, 1, VARIABLES) as (served,):
        await asyncio.to_thread(publish_as_readme_says, served, closed_port(), generate_secret())

        async def is_behind() -> bool:
            return "dispatcher_endpoint_backlog_age_seconds{" in served.page("/metrics")[1]

        await until(is_behind, 10)
        told = {}
        for name, text in blocks("bash"):
            told[name] = told.get(name, "") + await asyncio.to_thread(run_commands, text, addresses(text, served))
    assert len(told) > 10
    assert "dispatcher_endpoint_backlog_age_seconds{" in told["DispatcherReceiversSlow"]
    assert '"blockedBy"' in told["DispatcherEndpointHalted"]
    assert '"leases/255"' in told["DispatcherPartitionsUnowned"]


def addresses(text: str, served: Served) -> dict[str, str]:
    ports = {"50051": served.grpc_port, "50052": served.admin_port, "8080": served.ops_port}
    return {f"127.0.0.1:{old}": f"127.0.0.1:{new}" for old, new in ports.items() if f":{old}" in text}


def test_what_asks_a_kubernetes_says_where() -> None:
    """The alert's namespace is a label; the terminal's own is another."""
    asked = [line for page in PAGES for line in page.read_text().splitlines() if line.startswith("kubectl ")]
    assert len(asked) > 1
    assert all(" --all-namespaces " in line or " -n " in line for line in asked)


async def test_every_statement_of_a_runbook_runs(database: TestDatabase) -> None:
    connection = await database.connect()
    try:
        run = 0
        for _, text in blocks("sql"):
            for statement in filter(None, (part.strip() for part in text.split(";"))):
                await connection.fetch(statement)
                run += 1
        assert run > 4
        for tables in re.findall(r"`VACUUM ([a-z, ]+)`", "".join(page.read_text() for page in PAGES)):
            await connection.execute(f"VACUUM {tables}")
    finally:
        await connection.close()
