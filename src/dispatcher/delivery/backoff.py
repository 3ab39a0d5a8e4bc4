"""Pauses between tries of our own (the database's absence); what an endpoint gets is `retry`."""

from __future__ import annotations

import random


class Backoff:
    """Waits that double from `min_s` to `max_s`, each shortened by up to half so that instances don't march in step."""

    __slots__ = ("_bound_s", "_max_s", "_min_s")

    def __init__(self, min_s: float, max_s: float) -> None:
        self._min_s, self._max_s, self._bound_s = min_s, max_s, min_s

    def next_s(self) -> float:
        """The next wait in seconds."""
        bound_s, self._bound_s = self._bound_s, min(self._bound_s * 2, self._max_s)
        return bound_s * random.uniform(0.5, 1.0)  # noqa: S311 - spread, no secret

    def reset(self) -> None:
        """It worked: begin from the least wait again."""
        self._bound_s = self._min_s
