"""The lines that helm prints after an installation work as they stand, on a service with the chart's own settings."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatcher.config import Settings
from dispatcher.security.tokens import hash_of
from tests.support.chart import CI_VALUES, needs_helm, notes, render, values_file
from tests.support.chart_pods import with_files
from tests.support.cli import run_cli
from tests.support.commands import needs_grpcurl, run_commands
from tests.support.node import SECRET_KEYS
from tests.support.postgres import TestDatabase
from tests.support.process import Served
from tests.support.readme import ROOT
from tests.support.receiver import Receiver
from tests.support.waiting import until

pytestmark = [needs_helm, needs_grpcurl]
OPERATOR_TOKEN, SHOP_TOKEN = "dsp_" + "t" * 40, "dsp_" + "s" * 40
BESIDE_THE_POOL = 2
"""Connections of a process that DISPATCHER_DATABASE_POOL_SIZE_MAX does not count: store.listen's and store.upkeep's."""


def commands(text: str) -> list[str]:
    """The lines that an operator types."""
    return [line.strip() for line in text.splitlines() if re.match(r" +(kubectl|curl|grpcurl|export) ", line)]


def settings_of(folder: Path) -> dict[str, str]:
    """What minimal-values.yaml tells a pod, but for where it listens and its secrets' files, which the test has. Its
    policy has two principals, as those of the other sets of values."""
    overlay = {"auth": {"policy": {"bindings": [
        {"principals": ["shop"], "roles": ["publisher"], "tenants": ["acme"], "event_types": ["order.*"]},
        {"principals": ["operator"], "roles": ["manager", "reader", "operator"], "tenants": ["*"]},
    ]}}}  # fmt: skip
    made = with_files(render("minimal", overlay), folder)
    kept = {name: value for name, value in made.items() if not name.endswith(("_LISTEN", "_URL_FILE", "_KEYS_FILE"))}
    tokens = {"operator": OPERATOR_TOKEN, "shop": SHOP_TOKEN}
    entries = [f"{{principal: {who}, sha256: {hash_of(token)}}}" for who, token in tokens.items()]
    (folder / "secrets" / "auth-tokens").write_text(f"tokens: [{', '.join(entries)}]")
    kept["DISPATCHER_EGRESS_ALLOWED_NETWORKS"] = "127.0.0.0/8"
    return {name: value for name, value in kept.items() if name.startswith("DISPATCHER_")}


async def test_the_lines_after_an_installation_work(database: TestDatabase, receiver: Receiver, tmp_path: Path) -> None:
    lines = [line for line in commands(notes("minimal")) if not line.startswith("kubectl")]
    assert sum(line.startswith("grpcurl") for line in lines) == 6
    script = "\n".join(lines)
    for name, token in {" TOKEN": OPERATOR_TOKEN, " PUBLISHER_TOKEN": SHOP_TOKEN}.items():
        assert f"{name}=…" in script
        script = script.replace(f"{name}=…", f"{name}={token}")
    served = Served(database.dsn, tmp_path, settings_of(tmp_path), base={"DISPATCHER_SECRET_KEYS": SECRET_KEYS})
    try:
        await served.started()

        async def is_serving() -> bool:  # grpc.health follows /readyz a moment later
            told = await asyncio.to_thread(run_cli, "health", "--target", f"127.0.0.1:{served.grpc_port}")
            return told.code == 0

        await until(is_serving, 10)
        ports = {"50051": served.grpc_port, "50052": served.admin_port, "8080": served.ops_port}
        exchanged = {f"127.0.0.1:{old}": f"127.0.0.1:{new}" for old, new in ports.items()}
        exchanged["https://example.com/hooks"] = f"http://127.0.0.1:{receiver.port}/"
        told = await asyncio.to_thread(run_commands, script, exchanged)
    finally:
        served.kill()
    for expected in (
        "ready",
        '"SERVING"',
        "instances/",
        '"tenants/acme"',
        "tenants/acme/endpoints/billing",
        "order-16-paid",
    ):
        assert expected in told


@pytest.mark.parametrize("name", CI_VALUES)
def test_the_notes_name_what_was_made_and_how_one_says_who_one_is(name: str) -> None:
    text = notes(name)
    rendered = render(name)
    for command in (line for line in commands(text) if line.startswith("kubectl")):
        assert "deployment/d-dispatcher" in command
    assert "d-dispatcher.webhooks.svc.cluster.local:50051" in text
    said = {"minimal": "authorization: Bearer", "keda": "authorization: Bearer", "production": "-cert client.crt"}
    said |= {"istio": "x-forwarded-client-cert: URI=", "linkerd": "l5d-client-id: "}
    grpcurl = [line for line in commands(text) if line.startswith("grpcurl")]
    assert len(grpcurl) == 6
    (publishing,) = (line for line in grpcurl if "PublisherService/Publish" in line)
    assert all(said[name] in line for line in grpcurl if line is not publishing)
    has_digest = "@sha256:" in rendered.container["image"]
    assert ("pin image.digest" in text) != has_digest


@pytest.mark.parametrize("name", CI_VALUES)
def test_who_publishes_is_somebody_else_than_who_operates(name: str) -> None:
    """No principal of a shipped policy may do all of it, save for minimal's, and each line says as whom it goes."""
    lines = [line for line in commands(notes(name)) if line.startswith("grpcurl")]
    (publishing,) = (line for line in lines if "PublisherService/Publish" in line)
    others = [line for line in lines if line is not publishing]
    mark = re.compile(r"PUBLISHER|publisher[.]crt")
    assert mark.search(publishing)
    assert not any(mark.search(line.replace("PublisherService", "")) for line in others)
    roles = [
        set(each["roles"]) for each in yaml.safe_load(Path(values_file(name)).read_text())["auth"]["policy"]["bindings"]
    ]
    assert any("publisher" in each for each in roles)
    assert any({"operator", "manager"} <= each for each in roles)


@pytest.mark.parametrize("name", [*CI_VALUES, "tls"])
def test_each_variable_of_a_line_is_exported_and_quoted(name: str) -> None:
    text = notes("minimal", {"tls": {"secretName": "t"}}) if name == "tls" else notes(name)
    lines = commands(text)
    exported = re.findall(r"^export (\w+)=", "\n".join(lines), re.MULTILINE)
    assert set(re.findall(r"\$(\w+)", text)) == set(exported)
    assert len(exported) == len(set(exported))
    assert not any("$" in re.sub(r"'[^']*'|\"[^\"]*\"", "", line) for line in lines)


@pytest.mark.parametrize("kind", ["rules", "dashboards"])
def test_the_notes_say_who_sees_nothing_of_single_endpoints(kind: str) -> None:
    said = "secrets.opsToken is not set"
    on = {"monitoring": {kind: {"enabled": True}}}
    assert said in notes("minimal", on)
    assert said not in notes("minimal")
    assert said not in notes("minimal", on | {"secrets": {"opsToken": {"key": "ops-token"}}})
    open_to_all = {"auth": {"mode": "none", "policy": None}, "secrets": {"authTokens": {"key": ""}}}
    assert said not in notes("minimal", on | open_to_all)
    assert said in notes("istio")
    assert said not in notes("production")


@pytest.mark.parametrize("name", [*CI_VALUES, "tls"])
def test_the_operations_page_knows_the_flags_of_every_mode(name: str) -> None:
    tls = {"tls": {"secretName": "t"}}
    text = notes("minimal", tls) if name == "tls" else notes(name)
    line = next(line for line in commands(text) if "AdminService/GetStatus" in line)
    flags = line.removeprefix("grpcurl ").partition("127.0.0.1:")[0].strip()
    wire, _, who = flags.partition(" -H ")
    page = (ROOT / "docs" / "operations.md").read_text()
    section = page.partition("## Flags by how callers are known\n")[2].partition("\n## ")[0]
    assert f"`{wire}`" in section
    assert not who or f"`-H {who}`" in section


def test_every_runbook_with_a_call_points_there() -> None:
    calling = [page for page in (ROOT / "docs" / "runbooks").glob("*.md") if "grpcurl" in page.read_text()]
    assert len(calling) > 8
    for page in calling:
        assert "(../operations.md#flags-by-how-callers-are-known)" in page.read_text(), page.name


@pytest.mark.parametrize(
    ("name", "overlay", "expected"),
    [
        ("minimal", {}, (2 + 1) * (8 + BESIDE_THE_POOL)),
        ("production", {}, (12 + 1) * 2 * (6 + BESIDE_THE_POOL) + 1),  # a Job migrates
        ("keda", {"maxSurge": "25%", "config": {"DISPATCHER_WORKERS": "3"}}, (20 + 5) * 3 * (8 + BESIDE_THE_POOL) + 1),
    ],
)
def test_the_notes_say_how_many_connections_the_database_must_bear(
    name: str, overlay: dict[str, Any], expected: int
) -> None:
    assert f"it has {expected} connections to the database" in notes(name, overlay)
    defaults = (Settings.model_fields["workers"].default, Settings.model_fields["database_pool_size_max"].default)
    assert defaults == (1, 8)


def test_the_notes_warn_of_what_is_open() -> None:
    open_to_all = {"auth": {"mode": "none", "policy": None}, "secrets": {"authTokens": {"key": ""}}}
    text = notes("minimal", open_to_all)
    assert "whoever reaches the port may do everything" in text
    assert not any("-H " in line for line in commands(text))
    assert "run `dispatcher migrate`" in notes("minimal", {"migrations": {"mode": "none"}})
