"""The commands and statements of docs/runbooks/ work as they stand, save those that need a cluster."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

from dispatcher.security.signing import generate_secret
from dispatcher.security.tokens import hash_of
from tests.support.commands import needs_grpcurl, publish_as_readme_says, run_commands
from tests.support.ports import closed_port
from tests.support.postgres import TestDatabase
from tests.support.process import Served, processes
from tests.support.readme import ROOT, commands
from tests.support.waiting import until

PAGES = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOKEN, OPS_TOKEN = "dsp_" + "t" * 40, "an ops token"
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
            exchanged = addresses(text, served)
            told[name] = told.get(name, "") + await asyncio.to_thread(run_commands, text, exchanged, OPS_TOKEN="")
    assert len(told) > 10
    assert "dispatcher_endpoint_backlog_age_seconds{" in told["DispatcherReceiversSlow"]
    assert '"blockedBy"' in told["DispatcherEndpointHalted"]
    assert '"leases/255"' in told["DispatcherPartitionsUnowned"]


@needs_grpcurl
async def test_what_names_endpoints_does_so_where_callers_are_known(database: TestDatabase, tmp_path: Path) -> None:
    """With the flags that the operations page has for it, and without the ops token by calls."""
    (tmp_path / "tokens.yaml").write_text(f"tokens: [{{principal: all, sha256: {hash_of(TOKEN)}}}]")
    (tmp_path / "policy.yaml").write_text(
        "bindings: [{principals: [all], roles: [publisher, manager, reader, operator], tenants: ['*']}]"
    )
    variables = VARIABLES | {
        "DISPATCHER_AUTH_MODE": "tokens",
        "DISPATCHER_AUTH_TOKENS_FILE": str(tmp_path / "tokens.yaml"),
        "DISPATCHER_AUTH_POLICY_FILE": str(tmp_path / "policy.yaml"),
        "DISPATCHER_OPS_TOKEN": OPS_TOKEN,
    }
    page = (ROOT / "docs" / "operations.md").read_text()
    flags = [f'`-H "authorization: Bearer ${name}"`' for name in ("TOKEN", "OPS_TOKEN")]
    assert all(flag in page for flag in flags)
    series = "dispatcher_endpoint_backlog_age_seconds{"
    with processes(database.dsn, tmp_path, 1, variables) as (served,):

        def run(text: str) -> str:
            known = text.replace("grpcurl -plaintext", f"grpcurl -plaintext {flags[0].strip('`')}")
            tokens = {"TOKEN": TOKEN, "DISPATCHER_CLIENT_TOKEN": TOKEN, "OPS_TOKEN": OPS_TOKEN}
            return run_commands(known, addresses(known, served), WEBHOOK_SECRET=generate_secret(), **tokens)

        session = commands("session").replace("127.0.0.1:9000", f"127.0.0.1:{closed_port()}")
        await asyncio.to_thread(run, session)

        async def is_behind() -> bool:
            return series in served.page("/metrics", OPS_TOKEN)[1]

        await until(is_behind, 10)
        assert "dispatcher_tenant=" not in served.page("/metrics")[1]
        naming = [(name, text) for name, text in blocks("bash") if "dispatcher_endpoint_backlog" in text]
        told = {name: await asyncio.to_thread(run, text) for name, text in naming}
        for block in ("tenant-status", "worst"):
            told[block] = await asyncio.to_thread(run, commands(block, "docs/operations.md"))
    status = told.pop("tenant-status")
    assert "tenants/acme/endpoints/billing" in status
    assert "worst endpoints by age" in status
    assert len(told) == 4 + 1
    for text in told.values():
        assert 'dispatcher_endpoint="billing"' in text
        assert '"name": "tenants/acme"' in text


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
