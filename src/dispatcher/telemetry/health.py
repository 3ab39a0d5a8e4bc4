"""Whether this instance should get traffic: named checks, each with a grace. gRPC health and /readyz read this state.

starting ──started()──▶ ready ◀──database_seen()── (database away ≥ grace: not ready)
   any state ──start_draining()──▶ draining, for good
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

STARTING = "starting"
DRAINING = "draining"
DATABASE = "database"


@dataclass(frozen=True, slots=True)
class Problem:
    """A failed check: what it is called, what is wrong in a few words, for how long in seconds."""

    check: str
    text: str
    age_s: float


class Health:
    """Named checks; one that fails counts once it has failed for its grace. One blip must not unroute the fleet."""

    def __init__(self, *, database_away_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._grace_s = {DATABASE: database_away_s}
        self._failing: dict[str, tuple[float, str]] = {STARTING: (clock(), "not yet serving")}

    def fail(self, check: str, text: str) -> None:
        """`check` fails; the time counts from its first failure in a row. `text` must hold no secret."""
        since, _ = self._failing.get(check, (self._clock(), ""))
        self._failing[check] = (since, text)

    def clear(self, check: str) -> None:
        """`check` holds again; draining never ends."""
        if check != DRAINING:
            self._failing.pop(check, None)

    def started(self) -> None:
        """All parts run: traffic may come."""
        self.clear(STARTING)

    def start_draining(self) -> None:
        """This instance is about to stop: no new traffic."""
        self.fail(DRAINING, "shutting down")

    def database_lost(self, text: str) -> None:
        """An operation found the database away."""
        self.fail(DATABASE, text)

    def database_seen(self) -> None:
        """An operation reached the database."""
        self._failing.pop(DATABASE, None)

    @property
    def is_draining(self) -> bool:
        """Whether shutdown has begun."""
        return DRAINING in self._failing

    @property
    def is_ready(self) -> bool:
        """Whether traffic should come here."""
        return not self._failing or not self.problems()

    def problems(self) -> tuple[Problem, ...]:
        """The checks that have failed for longer than their grace."""
        now = self._clock()
        return tuple(
            Problem(check, text, now - since)
            for check, (since, text) in self._failing.items()
            if now - since >= self._grace_s.get(check, 0.0)
        )
