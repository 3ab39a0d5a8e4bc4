"""Runs the command line within the test's process, as the shell would: arguments in, output and exit code out."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from typing import Any

from dispatcher.cli.main import main


@dataclass(frozen=True, slots=True)
class CliResult:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def interruptible_cli(*arguments: str) -> list[str]:
    """The command of a process that runs `dispatcher ARGUMENTS` and heeds SIGINT, though whoever runs the tests may
    ignore it. Nothing is done between fork and exec: gRPC's threads of this process would not bear it."""
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    return [sys.executable, "-c", f"{program}from dispatcher.cli.main import main; main()", *arguments]


def run_cli(*arguments: str) -> CliResult:
    """Run `dispatcher ARGUMENTS`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return CliResult(code, out.getvalue(), err.getvalue())
