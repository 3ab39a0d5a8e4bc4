"""A test run's folder in memory: gone at the end, and what a killed run has left is removed by the next."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import memory
from tests.support.memory import folder_in_memory

HOLD = """
import sys, time
from pathlib import Path
from tests.support.memory import folder_in_memory

with folder_in_memory(Path("otherwise"), Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def a_run_that_is_killed(shared: Path) -> tuple[subprocess.Popen[str], Path]:
    run = subprocess.Popen([sys.executable, "-c", HOLD, str(shared)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    return run, Path(run.stdout.readline().strip())


def test_a_folder_in_use_is_left_alone_and_one_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    run, used = a_run_that_is_killed(tmp_path)
    try:
        with folder_in_memory(tmp_path / "otherwise", tmp_path) as own:
            assert used.is_dir()
            assert own.is_dir()
        assert not own.exists()
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait(10)
    assert used.is_dir()
    with folder_in_memory(tmp_path / "otherwise", tmp_path):
        assert not used.exists()


def test_where_memory_is_short_or_there_is_none_the_other_folder_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    otherwise = tmp_path / "otherwise"
    with folder_in_memory(otherwise, tmp_path / "missing") as folder:
        assert folder == otherwise
    monkeypatch.setattr(memory, "FREE_BYTES_MIN", 1 << 60)
    with folder_in_memory(otherwise, tmp_path) as folder:
        assert folder == otherwise
    assert list(tmp_path.iterdir()) == []
