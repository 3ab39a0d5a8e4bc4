"""The folder in which `dispatcher dev` keeps what it needs from one run to the next.

folder/dev.lock        held while a run uses the folder; holds its process id
folder/postgres        the database, see `embedded.postgres`
folder/secret.keys     the key that seals stored secrets, made on first use; mode 0600
folder/dispatcher.log  the service's log, started over when it has grown too large
"""

from __future__ import annotations

import base64
import fcntl
import os
import secrets
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TextIO

LOG_BYTES_MAX = 16 * 1024 * 1024
KEY_BYTES = 32


class FolderInUseError(Exception):
    """Another run uses the folder; `pid` is its process id where it is known."""

    def __init__(self, folder: Path, pid: str) -> None:
        super().__init__(f"{folder} is in use{f' by process {pid}' if pid else ''}")
        self.pid = pid


class LocalFolder(AbstractContextManager["LocalFolder"]):
    """The folder, made where it is missing and ours alone while entered. OSError where it can't be made or written."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock: IO[str] | None = None

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def log_file(self) -> Path:
        return self.path / "dispatcher.log"

    def __enter__(self) -> Self:
        """Raises FolderInUseError. A killed run holds nothing: the kernel lets its lock go."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (self.path / "dev.lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read(20).strip()
            lock.close()
            raise FolderInUseError(self.path, pid) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def secret_keys(self) -> str:
        """The key-encryption key in the form of DISPATCHER_SECRET_KEYS; the same at each run."""
        file = self.path / "secret.keys"
        if not file.exists():
            text = f"local:{base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}\n"
            _write_private(file, text)
        return file.read_text(encoding="ascii").strip()

    def open_log(self) -> TextIO:
        """The log, to be appended to and closed by the caller."""
        too_large = self.log_file.exists() and self.log_file.stat().st_size > LOG_BYTES_MAX
        return self.log_file.open("w" if too_large else "a", encoding="utf-8", buffering=1)


def _write_private(file: Path, text: str) -> None:
    """Put a file in its place whole and readable by us only: a run that is killed meanwhile leaves no half of a key."""
    fresh = file.with_name(f"{file.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as writer:
        writer.write(text)
        writer.flush()
        os.fsync(writer.fileno())
    fresh.rename(file)
