"""The command line against the real API on a real database: the journey of a newcomer, and the refusals on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path

import pytest

from tests.support.api import Api, serving
from tests.support.cli import CliResult, run_cli
from tests.support.postgres import TestDatabase

EVENTS = Path(str(resources.files("dispatcher.embedded") / "events.jsonl"))
SHIPPED = [json.loads(line) for line in EVENTS.read_text().splitlines()]


@pytest.fixture
async def api(database: TestDatabase) -> AsyncIterator[Api]:
    async with serving(database.options) as served:
        yield served


async def run(api: Api, *arguments: str) -> CliResult:
    return await asyncio.to_thread(run_cli, *arguments, "--target", f"127.0.0.1:{api.server.port}")


async def made(api: Api, *arguments: str) -> dict[str, object]:
    """Run a command that must succeed; its JSON."""
    result = await run(api, *arguments, "--json")
    assert result.code == 0, result.err
    return result.json


async def test_resources_are_created_read_changed_listed_and_deleted(api: Api):
    assert (await made(api, "tenants", "create", "acme", "--display-name", "Acme", "-l", "stage=prod"))["uid"]
    changed = await made(api, "tenants", "update", "acme", "--display-name", "Acme Ltd")
    assert (changed["displayName"], changed["labels"]) == ("Acme Ltd", {"stage": "prod"})

    await made(api, "event-types", "create", "order.paid", "-t", "acme", "--description", "Paid")
    assert (await made(api, "event-types", "update", "order.paid", "-t", "acme", "--archived"))["archived"] is True

    url = "https://receiver.example/hook"
    created = await made(
        api, "endpoints", "create", "e1", "-t", "acme", "--url", url, "-H", "x-team:billing", "--attempt-timeout", "5s"
    )
    assert str(created["signingKeys"][0]["secret"]).startswith("whsec_")
    updated = await made(api, "endpoints", "update", "e1", "-t", "acme", "--state", "paused", "--max-in-flight", "3")
    settings = updated["deliverySettings"]
    assert updated["state"] == "STATE_PAUSED"
    assert (settings["maxInFlight"], settings["timeout"], settings["headers"]) == (3, "5s", {"x-team": "billing"})
    rotated = await made(api, "endpoints", "rotate-key", "e1", "-t", "acme", "--overlap", "1h")
    assert len(rotated["endpoint"]["signingKeys"]) == 2

    listed = await made(api, "endpoints", "list", "-t", "acme", "--filter", "state = PAUSED")
    assert [endpoint["name"] for endpoint in listed["endpoints"]] == ["tenants/acme/endpoints/e1"]
    shown = await run(api, "endpoints", "get", "e1", "-t", "acme")
    assert "whsec_" not in shown.out
    assert url in shown.out
    assert (await run(api, "tenants", "delete", "acme")).code == 5
    for arguments in (
        ["endpoints", "delete", "e1", "-t", "acme"],
        ["event-types", "delete", "order.paid", "-t", "acme"],
    ):
        assert (await run(api, *arguments)).code == 0
    assert (await run(api, "tenants", "delete", "acme")).code == 0
    assert (await run(api, "tenants", "get", "acme")).code == 4


async def test_the_shipped_events_are_stored_in_order_and_seen(api: Api):
    await made(api, "tenants", "create", "acme")
    await made(api, "endpoints", "create", "e1", "-t", "acme", "--url", "https://receiver.example/hook")
    summary = await made(api, "publish", "-f", str(EVENTS))
    count = len(SHIPPED)
    assert (summary["accepted"], summary["duplicates"], summary["failed"]) == (count, 0, 0)
    keys = await api.database.fetch("SELECT ordering_key FROM outbox ORDER BY seq")
    assert [row["ordering_key"] for row in keys] == [event.get("ordering_key") for event in SHIPPED]
    status = await made(api, "endpoints", "status", "e1", "-t", "acme")
    assert status["lastSequence"] == status["backlogCount"] == str(count)
    listed = await run(api, "deliveries", "list", "-t", "acme", "--endpoint", "e1", "--page-size", "3")
    assert f"tenants/acme/endpoints/e1/deliveries/{count}" in listed.out


async def test_a_refused_line_is_named_and_all_before_it_is_stored(api: Api, tmp_path: Path):
    await made(api, "tenants", "create", "acme")
    file = tmp_path / "events.jsonl"
    lines = [json.dumps({"id": f"e{n}", "type": "order.paid", "data": n}) for n in range(1, 101)]
    lines[41] = json.dumps({"id": "e42", "type": "dispatcher.mine", "data": 42})
    file.write_text("\n".join(lines))
    result = await run(api, "publish", "-f", str(file))
    assert result.code == 2
    assert "line 42: " in result.err
    assert "INVALID_ARGUMENT" in result.err
    assert await api.count("event") == 41

    lines[41] = json.dumps({"id": "e1", "type": "order.paid", "data": "other content"})
    file.write_text("\n".join(lines))
    result = await run(api, "publish", "-f", str(file), "--keep-going", "--json")
    assert result.code == 5
    assert "reason EVENT_ID_REUSED" in result.err
    assert {key: result.json[key] for key in ("accepted", "duplicates", "failed")} == {
        "accepted": 58,
        "duplicates": 41,
        "failed": 1,
    }
    assert await api.count("event") == 99


async def test_bad_fields_are_shown_with_what_to_send_instead(api: Api):
    await made(api, "tenants", "create", "acme")
    result = await run(api, "endpoints", "create", "-t", "acme", "--url", "ftp://x", "-H", "cookie:1")
    assert result.code == 2
    assert "endpoint.http.url: " in result.err
    assert "cookie" in result.err
    assert "Traceback" not in result.err


async def test_an_unknown_tenant_ends_publish_with_4(api: Api):
    result = await run(api, "publish", "-f", str(EVENTS), "-t", "nobody")
    assert result.code == 4
    assert "tenants/nobody" in result.err
