"""The command line says who it is: by a token or a certificate of the settings, for plain calls and for streams."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.integration.api.test_access import ADMIN, BOB, bearer, guarded, mtls_files, tenant_made, with_tokens
from tests.support.certificates import Authority
from tests.support.cli import CliResult, run_cli
from tests.support.postgres import TestDatabase


async def run(port: int, *arguments: str) -> CliResult:
    return await asyncio.to_thread(run_cli, *arguments, "--target", f"localhost:{port}")


async def test_a_token_of_the_settings_goes_with_each_call_and_is_never_shown(
    database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text('{"type": "order.paid", "data": {}}\n')
    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path)) as api:
        await tenant_made(api, bearer(BOB))
        for command in (["tenants", "list"], ["publish", "--file", str(events), "--tenant", "acme"]):
            unknown = await run(api.server.port, *command)
            assert unknown.code == 1
            assert "DISPATCHER_CLIENT_TOKEN" in unknown.err
        monkeypatch.setenv("DISPATCHER_CLIENT_TOKEN", BOB)
        assert (await run(api.server.port, "tenants", "list")).code == 0
        published = await run(api.server.port, "publish", "--file", str(events), "--tenant", "acme")
        assert published.code == 0, published.err
        assert await api.count("event") == 1
        monkeypatch.setenv("DISPATCHER_CLIENT_TOKEN", BOB + "x")
        refused = await run(api.server.port, "tenants", "list")
        assert refused.code == 1
        assert BOB not in refused.err + refused.out + run_cli("config").out


async def test_a_certificate_of_the_settings_opens_a_service_that_wants_one(
    database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority()
    certificate, key = authority.issue(uris=[ADMIN]).written(tmp_path, "client")
    async with guarded(database, tmp_path, "mtls", **mtls_files(tmp_path, authority)) as api:
        monkeypatch.setenv("DISPATCHER_CLIENT_CA_FILE", str(tmp_path / "ca.crt"))
        assert (await run(api.server.port, "tenants", "list", "--timeout", "2")).code == 3
        monkeypatch.setenv("DISPATCHER_CLIENT_CERTIFICATE_FILE", str(certificate))
        monkeypatch.setenv("DISPATCHER_CLIENT_KEY_FILE", str(key))
        found = await run(api.server.port, "tenants", "list")
        assert found.code == 0, found.err
        monkeypatch.setenv("DISPATCHER_CLIENT_KEY_FILE", str(tmp_path / "none"))
        missing = await run(api.server.port, "tenants", "list")
        assert missing.code == 2
        assert "none" in missing.err
