"""What README shows works as it stands: its commands and programs are run against a served process, nothing faked.

Only addresses are exchanged, for free ports.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.security.signing import generate_secret
from tests.support.commands import BIN, needs_grpcurl, publish_as_readme_says, run_commands, user_environment
from tests.support.postgres import TestDatabase
from tests.support.process import Served, free_ports, processes
from tests.support.readme import ROOT, commands, shown_files

EXAMPLES = ROOT / "docs" / "examples"
LIMIT_S = 60.0
POLL_S = 0.05
PORTS = ("GRPC", "ADMIN", "OPS")
needs_node = pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="node is not installed")


class Program:
    """An example that runs until it is closed; its output is read from a file."""

    def __init__(self, command: list[str], log_file: Path, **variables: str) -> None:
        self.log_file = log_file
        with log_file.open("wb") as log:
            self.process = subprocess.Popen(command, env=user_environment(**variables), stdout=log, stderr=log)

    def lines(self) -> list[str]:
        return self.log_file.read_text().splitlines()

    def wait_for(self, beginning: str) -> str:
        """The first line that begins so; AssertionError with all lines where none comes in time."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            found = [line for line in self.lines() if line.startswith(beginning)]
            if found:
                return found[0]
            assert time.monotonic() < deadline, f"no line begins with {beginning!r}: {self.lines()}"
            time.sleep(POLL_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)


@contextlib.contextmanager
def program(command: list[str], log_file: Path, **variables: str) -> Iterator[Program]:
    running = Program(command, log_file, **variables)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def served(database: TestDatabase, tmp_path: Path) -> Iterator[Served]:
    with processes(database.dsn, tmp_path) as (one,):
        yield one


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node examples with what their package.json names."""
    folder = tmp_path_factory.mktemp("node") / "examples"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    shutil.copy(EXAMPLES / "service_config.json", folder.parent)
    run_commands("npm install --no-audit --no-fund", {}, folder)
    assert not (folder / "package-lock.json").exists(), "it would name the registry of this machine"
    return folder


def grpc_of(served: Served) -> str:
    return f"127.0.0.1:{served.grpc_port}"


def run_python_client(served: Served, event_id: str) -> str:
    command = [sys.executable, str(EXAMPLES / "python_client.py"), grpc_of(served), "tenants/acme", event_id]
    done = subprocess.run(command, env=user_environment(), capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_shows_the_programs_as_they_are() -> None:
    shown = shown_files()
    programs = {path.suffix for path in EXAMPLES.rglob("*") if path.is_file()}
    assert {".py", ".mjs"} <= programs
    expected = {f"docs/examples/{name}" for name in ("python_client.py", "python_receiver.py")}
    expected |= {f"docs/examples/node/{name}" for name in ("client.mjs", "receiver.mjs")}
    assert shown.keys() == expected
    for path, text in shown.items():
        assert text == (ROOT / path).read_text(), f"README shows another {path}"


@needs_grpcurl
def test_the_python_receiver_verifies_what_grpcurl_and_the_python_client_publish(
    served: Served, tmp_path: Path
) -> None:
    secret, (port,) = generate_secret(), free_ports(1)
    command = [sys.executable, str(EXAMPLES / "python_receiver.py"), str(port)]
    with program(command, tmp_path / "receiver.log", WEBHOOK_SECRET=secret) as receiver:
        told = publish_as_readme_says(served, port, secret)
        assert '"endpointCount": 1' in told
        assert '"lastSequence": "1"' in told
        assert "becomes the header `webhook-id`" in told, "describe shows the comments"
        assert receiver.wait_for("1 ") == '1 order-16-paid order.paid {"order": 16}'
        assert "duplicate" not in run_python_client(served, "order-17-paid")
        assert "duplicate: true" in run_python_client(served, "order-17-paid")
        run_python_client(served, "order-18-paid")
        assert receiver.wait_for("3 ") == '3 order-18-paid order.paid {"order": 17}'
        handled = [line for line in receiver.lines() if "order.paid" in line]
        assert [line.split()[1] for line in handled] == ["order-16-paid", "order-17-paid", "order-18-paid"]


@needs_grpcurl
def test_a_receiver_with_another_secret_accepts_nothing(served: Served, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, str(EXAMPLES / "python_receiver.py"), str(port)]
    with program(command, tmp_path / "receiver.log", WEBHOOK_SECRET=generate_secret()) as receiver:
        publish_as_readme_says(served, port, generate_secret())
        receiver.wait_for("127.0.0.1 - -")
        assert any(" 401 " in line for line in receiver.lines())
        assert not any("order-16-paid" in line for line in receiver.lines())


def test_the_python_client_waits_for_a_service_that_is_away(database: TestDatabase, tmp_path: Path) -> None:
    away = Served(database.dsn, tmp_path)
    command = [sys.executable, str(EXAMPLES / "python_client.py"), grpc_of(away), "tenants/acme", "order-17-paid"]
    with program(command, tmp_path / "client.log") as client, contextlib.ExitStack() as stack:
        client.wait_for("UNAVAILABLE")
        stack.callback(away.kill)
        away.start()
        away.wait_ready()
        # It gets through to the service, which knows no such tenant: that is told and not tried again.
        assert client.process.wait(LIMIT_S) == 1
        assert "NOT_FOUND" in client.log_file.read_text()


@needs_grpcurl
@needs_node
def test_the_node_receiver_verifies_what_the_node_client_publishes(
    served: Served, node_folder: Path, tmp_path: Path
) -> None:
    secret, (port,) = generate_secret(), free_ports(1)
    protos = commands("node").replace("(cd docs/examples/node && npm install)\n", "")
    exchanged = {
        "make proto-package": f"make proto-package BIN={BIN}",
        "127.0.0.1:50051": grpc_of(served),
        "docs/examples/node/client.mjs": str(node_folder / "client.mjs"),
    }
    with program(
        ["node", str(node_folder / "receiver.mjs"), str(port)], tmp_path / "r.log", WEBHOOK_SECRET=secret
    ) as receiver:
        publish_as_readme_says(served, port, secret)
        assert receiver.wait_for("1 ") == '1 order-16-paid order.paid {"order": 16}'
        answer = json.loads(run_commands(protos, exchanged).splitlines()[-1])
        assert answer["eventId"] == "order-18-paid"
        assert receiver.wait_for("2 ") == '2 order-18-paid order.paid {"order": 17}'


@needs_grpcurl
@needs_node
def test_the_node_receiver_refuses_what_another_secret_signed(
    served: Served, node_folder: Path, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    command = ["node", str(node_folder / "receiver.mjs"), str(port)]
    with program(command, tmp_path / "r.log", WEBHOOK_SECRET=generate_secret()) as receiver:
        publish_as_readme_says(served, port, generate_secret())
        attempts = '{"parent": "tenants/acme/endpoints/billing/deliveries/1"}'
        call = f"grpcurl -plaintext -d '{attempts}' {grpc_of(served)} webhooks.v1.DeliveryService/ListAttempts"
        deadline = time.monotonic() + LIMIT_S
        while '"statusCode": 401' not in (told := run_commands(call, {})):
            assert time.monotonic() < deadline, told
            time.sleep(POLL_S)
        assert receiver.lines() == []


def test_the_production_commands_migrate_and_serve(empty_database: TestDatabase, tmp_path: Path) -> None:
    ours = tmp_path / "dispatcher"  # whatever is installed, the test is of this tree
    ours.write_text(f'#!/bin/sh\nexec {sys.executable} -m dispatcher "$@"\n')
    ours.chmod(0o755)
    script = f"cd {tmp_path}\n" + commands("production").replace("dispatcher serve ", "exec dispatcher serve ")
    assert "exec" in script
    script = script.replace("postgresql://dispatcher@db.internal/dispatcher", empty_database.dsn)
    variables = {
        f"DISPATCHER_{name}_LISTEN": f"127.0.0.1:{port}" for name, port in zip(PORTS, free_ports(3), strict=True)
    }
    variables |= {"DISPATCHER_LOG_FORMAT": "json", "PATH": f"{tmp_path}:{user_environment()['PATH']}"}
    with program(["bash", "-euo", "pipefail", "-c", script], tmp_path / "serve.log", **variables) as serving:
        serving.wait_for("applied 0001_initial")
        while not any('"message":"serving"' in line for line in serving.lines()):
            serving.wait_for('{"time"')
            assert serving.process.poll() is None, serving.lines()
            time.sleep(POLL_S)
        serving.process.send_signal(signal.SIGTERM)
        assert serving.process.wait(LIMIT_S) == 0, serving.lines()
