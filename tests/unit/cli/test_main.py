"""What every command has: help, version, exit codes, errors without a traceback, a quick start."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

from dispatcher import __version__
from dispatcher.cli.failure import exit_code_of
from dispatcher.cli.status import Code
from tests.support.cli import run_cli

COMMANDS = (
    "serve",
    "migrate",
    "config",
    "health",
    "prestop",
    "publish",
    "deliveries",
    "tenants",
    "endpoints",
    "event-types",
)
SUBCOMMANDS = [
    *itertools.product(("tenants", "endpoints", "event-types"), ("create", "list", "get", "update", "delete")),
    *itertools.product(("endpoints",), ("rotate-key", "test", "status")),
    *itertools.product(("deliveries",), ("list", "get")),
]


def test_help_names_every_command_and_the_exit_codes():
    result = run_cli("--help")
    assert result.code == 0
    for command in COMMANDS:
        assert f" {command} " in result.out
    assert "Exit codes" in result.out


@pytest.mark.parametrize("command", [*[(name,) for name in COMMANDS], *SUBCOMMANDS], ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...]):
    result = run_cli(*command, "--help")
    assert result.code == 0
    assert "Usage: dispatcher " + " ".join(command) in result.out


def test_the_version_is_printed():
    assert run_cli("--version").out == f"dispatcher {__version__}\n"


def test_an_unknown_command_or_option_ends_with_2():
    assert run_cli("nonsense").code == 2
    assert run_cli("config", "--nonsense").code == 2


def test_help_loads_nothing_slow():
    slow = ("grpc", "google", "webhooks", "asyncpg", "aiohttp", "opentelemetry", "uvloop", "dispatcher.config")
    program = (
        "import sys\nfrom dispatcher.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"sys.exit(','.join(sorted(set({slow!r}) & set(sys.modules))) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_module_runs_as_a_program():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "dispatcher", "--version"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert (ran.returncode, ran.stdout) == (0, f"dispatcher {__version__}\n")


def test_config_shows_settings_with_secrets_masked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DISPATCHER_DATABASE_URL", "postgresql://me:hunter2@db/x")
    monkeypatch.setenv("DISPATCHER_ATTEMPTS_MAX", "7")
    table = run_cli("config")
    assert table.code == 0
    assert "hunter2" not in table.out
    assert "postgresql://me:***@db/x" in table.out
    changed = {row["name"]: row["value"] for row in run_cli("config", "--changed", "--json").json}
    assert changed["attempts_max"] == "7"
    assert changed["database_url"] == "postgresql://me:***@db/x"


@pytest.mark.parametrize("command", [["config"], ["serve"], ["tenants", "list"]], ids=" ".join)
def test_wrong_settings_are_named_and_end_with_2(monkeypatch: pytest.MonkeyPatch, command: list[str]):
    monkeypatch.setenv("DISPATCHER_ATTEMPT_MAX", "7")
    result = run_cli(*command)
    assert result.code == 2
    assert "DISPATCHER_ATTEMPT_MAX: unknown setting; did you mean DISPATCHER_ATTEMPTS_MAX?" in result.err
    assert "Traceback" not in result.err


def test_serve_and_migrate_say_what_must_be_set(monkeypatch: pytest.MonkeyPatch):
    for variable in ("DISPATCHER_DATABASE_URL", "DISPATCHER_DATABASE_DIRECT_URL", "DISPATCHER_SECRET_KEYS"):
        monkeypatch.delenv(variable, raising=False)
    serve, migrate = run_cli("serve"), run_cli("migrate")
    assert serve.code == migrate.code == 2
    assert "DISPATCHER_SECRET_KEYS: must be set" in serve.err
    assert "DISPATCHER_AUTH_MODE: must be set" in serve.err
    assert "DISPATCHER_DATABASE_URL: must be set" in migrate.err


def test_a_target_that_is_no_address_is_refused():
    result = run_cli("tenants", "list", "--target", "nowhere")
    assert result.code == 2
    assert "--target must be host:port" in result.err


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for file, reason in ((tmp_path / "gone", "No such file"), (tmp_path, "Is a directory")):
        result = run_cli("publish", "-f", str(file), "-t", "acme")
        assert result.code == 2
        assert f"cannot read {file}: {reason}" in result.err


def test_every_code_has_an_exit_code():
    assert {exit_code_of(code) for code in Code} == {0, 1, 2, 3, 4, 5}


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dispatcher.config.from_environment", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_cli("config")
