"""The signals that end a process in good order."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

log = logging.getLogger(__name__)


def stop_on_signals(stop: Callable[[], None]) -> None:
    """SIGTERM and SIGINT begin the orderly end; a second one is left to its default and kills."""
    loop = asyncio.get_running_loop()

    def once(number: int) -> None:
        log.info("stopping", extra={"signal": signal.Signals(number).name})
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, once, number)
