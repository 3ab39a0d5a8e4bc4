"""A folder in memory for what a test run creates and unlinks by the hundred thousand files.

Every database of a test is 600 files: ext4 searches long for inodes that were not deleted in the last minutes, which
took a fifth of the processors' time.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "dispatcher-tests-"
LOCK = "run.lock"
FREE_BYTES_MIN = 4 * 1024**3


@contextmanager
def folder_in_memory(otherwise: Path, shared: Path = SHARED_MEMORY) -> Iterator[Path]:
    """A new folder that is gone at the end; `otherwise` where there is no memory to spare for it. Those that killed
    runs have left are removed."""
    if not shared.is_dir() or shutil.disk_usage(shared).free < FREE_BYTES_MIN:
        yield otherwise
        return
    _sweep(shared)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=shared))
    unlocked = folder / "lock.new"
    with unlocked.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        unlocked.rename(folder / LOCK)  # only now, so that nobody finds it free
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(shared: Path) -> None:
    for lock_file in shared.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError), lock_file.open("r+") as lock:  # another's, in use, or gone meanwhile
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_file.parent, ignore_errors=True)
