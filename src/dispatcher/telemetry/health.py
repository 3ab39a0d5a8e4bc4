"""Whether this instance should get traffic: pure state that gRPC health and /readyz read.

starting ──started()──▶ ready ◀──▶ not ready (the database has been away for database_away_s)
   any of these ──start_draining()──▶ draining, for good
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
    """Named checks. The database has a grace, `database_away_s`: one blip must not unroute the fleet."""

    def __init__(self, *, database_away_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._database_grace_s = database_away_s
        self._database_away_s: Callable[[], float] = lambda: 0.0
        self._failing: dict[str, tuple[float, str]] = {STARTING: (clock(), "not yet serving")}

    def follow_database(self, away_s: Callable[[], float]) -> None:
        """`away_s` tells for how many seconds the database has been away, 0.0 while it answers."""
        self._database_away_s = away_s

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

    def start_draining(self, why: str = "shutting down") -> None:
        """This instance is about to stop, or was taken out of service: no new traffic."""
        self.fail(DRAINING, why)

    @property
    def is_draining(self) -> bool:
        """Whether shutdown has begun."""
        return DRAINING in self._failing

    @property
    def is_ready(self) -> bool:
        """Whether traffic should come here."""
        return not self.problems()

    def problems(self) -> tuple[Problem, ...]:
        """The checks that fail now."""
        now = self._clock()
        found = [Problem(check, text, now - since) for check, (since, text) in self._failing.items()]
        away_s = self._database_away_s()
        if away_s > 0 and away_s >= self._database_grace_s:
            found.append(Problem(DATABASE, "does not answer", away_s))
        return tuple(found)
