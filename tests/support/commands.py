"""Commands as a user types them: bash, with what a terminal has after `make run` and `make tools`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.process import Served
from tests.support.readme import ROOT, commands

BIN = Path(sys.executable).parent
COMMANDS_TIMEOUT_S = 120.0
GRPCURL = shutil.which("grpcurl", path=f"{BIN}:{ROOT / '.tools'}:{os.environ['PATH']}")
TOOLS_REQUIRED = os.environ.get("DISPATCHER_TEST_TOOLS") == "required"
"""`.ci/run` says so: a tool that is missing there fails the tests that need it, instead of skipping them."""
needs_grpcurl = pytest.mark.skipif(
    GRPCURL is None and not TOOLS_REQUIRED, reason="grpcurl is not installed: `make tools`"
)


def user_environment(**variables: str) -> dict[str, str]:
    """This process's environment with the tools and packages of the repository."""
    paths = [str(BIN), *([str(Path(GRPCURL).parent)] if GRPCURL else []), os.environ["PATH"]]
    packages = f"{ROOT / 'src'}:{ROOT / 'src' / 'generated'}"
    return {**os.environ, "PATH": ":".join(paths), "PYTHONPATH": packages, **variables}


def run_commands(script: str, exchanged: Mapping[str, str], cwd: Path = ROOT, **variables: str) -> str:
    """Run a page's block, each key of `exchanged` replaced; the first failure ends it. Answers standard output."""
    for old, new in exchanged.items():
        assert old in script, f"the page no longer says {old}"
        script = script.replace(old, new)
    command = ["bash", "-euo", "pipefail", "-c", script]
    environment = user_environment(**variables)
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=COMMANDS_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def publish_as_readme_says(served: Served, receiver_port: int, secret: str) -> str:
    """Tenant, endpoint and event of README's session with grpcurl."""
    exchanged = {
        "127.0.0.1:50051": f"127.0.0.1:{served.grpc_port}",
        "127.0.0.1:9000": f"127.0.0.1:{receiver_port}",
    }
    return run_commands(commands("session"), exchanged, WEBHOOK_SECRET=secret)
