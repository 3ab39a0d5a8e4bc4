"""Takes batches from a thread that reads and parses, a few ahead of the sender, so that neither waits for the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

from dispatcher.cli.records import BadLine, Batch

BATCHES_AHEAD_MAX = 4

Item = Batch | BadLine


class Feed:
    """An iterator moved into a daemon thread: one that hangs in a read of standard input does not hold up the exit.

    Make it within the running event loop.
    """

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Item | BaseException | None] = asyncio.Queue()
        self._slots = threading.Semaphore(BATCHES_AHEAD_MAX)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="publish-read", daemon=True)
        self._thread.start()

    async def next(self) -> Item | None:
        """The next item; None once there is no more, for ever. An error of reading is raised here."""
        item = await self._queue.get()
        self._slots.release()
        if item is None or isinstance(item, BaseException):
            self._queue.put_nowait(None)
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Let the thread end at its next item."""
        self._closed.set()
        self._slots.release()

    def _read(self) -> None:
        try:
            for item in self._items:
                self._put(item)
                if self._closed.is_set():
                    return
            self._put(None)
        except Exception as error:  # noqa: BLE001 - crosses from the thread to whoever waits in `next`
            self._put(error)

    def _put(self, item: Item | BaseException | None) -> None:
        self._slots.acquire()
        if not self._closed.is_set():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
