"""Files of the deployment that may change while we run: certificates, policies, tokens, keys.

Kubernetes changes a mounted Secret by swapping a link, so it is the content that is compared, not the time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

FILE_BYTES_MAX = 4 * 1024 * 1024

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class FileUnusableError(OSError):
    """A file can't be read or does not hold what it should; the message names the file, never its content."""


def read_bounded(path: str) -> bytes:
    """The content of a file of at most 4 MiB. Raises FileUnusableError."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise FileUnusableError(f"{path}: {error.strerror or 'cannot be read'}") from None
    if len(content) > FILE_BYTES_MAX:
        raise FileUnusableError(f"{path}: more than {FILE_BYTES_MAX} bytes")
    return content


class WatchedFiles(Generic[_T]):
    """What some files say together. The first reading must succeed; a later one that does not changes nothing, loudly:
    a half-written policy must neither open nor close the service."""

    def __init__(self, paths: Sequence[str], parse: Callable[[Sequence[bytes]], _T]) -> None:
        """Reads the files. `parse` raises ValueError for content that does not do. Raises FileUnusableError."""
        self._paths = tuple(paths)
        self._parse = parse
        self._contents = self._read()
        self.value = self._parsed(self._contents)
        self._refused: tuple[bytes, ...] | None = None

    def refresh(self) -> bool:
        """Read again; True where there is a new value."""
        try:
            contents = self._read()
            if contents in (self._contents, self._refused):
                return False
            self._refused = contents
            value = self._parsed(contents)
        except FileUnusableError as error:
            _log.error("a changed file is unusable, what it said before still holds", extra={"problem": str(error)})
            return False
        self.value, self._contents, self._refused = value, contents, None
        _log.info("a changed file was read", extra={"files": ", ".join(self._paths)})
        return True

    async def follow(self, interval_s: float) -> None:
        """Refresh for ever."""
        while True:
            await asyncio.sleep(interval_s)
            await asyncio.to_thread(self.refresh)

    def _read(self) -> tuple[bytes, ...]:
        return tuple(read_bounded(path) for path in self._paths)

    def _parsed(self, contents: Sequence[bytes]) -> _T:
        try:
            return self._parse(contents)
        except ValueError as error:
            raise FileUnusableError(f"{', '.join(self._paths)}: {error}") from None


def one_text(parse: Callable[[str], _T]) -> Callable[[Sequence[bytes]], _T]:
    """`parse` for a single file of UTF-8 text."""

    def parsed(contents: Sequence[bytes]) -> _T:
        try:
            text = contents[0].decode()
        except UnicodeDecodeError:
            raise ValueError("is not UTF-8 text") from None
        return parse(text)

    return parsed
