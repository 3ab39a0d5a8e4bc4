"""The admissions and the health of the endpoints of the owned partitions; they outlive the endpoints' lanes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from dispatcher.delivery.admission import Admission, CircuitChange
from dispatcher.delivery.circuit import CircuitState
from dispatcher.delivery.endpoint import EndpointRuntime
from dispatcher.delivery.health import EndpointHealth, Trouble
from dispatcher.model import EndpointKey, EndpointState

CHANGES_MAX = 32
"""Changes of circuits kept of one endpoint until they are written; later ones are only counted."""


@dataclass(frozen=True, slots=True)
class Summary:
    """All that a record of an endpoint's health tells; `circuits` not closed: index, state, opened at, probe at."""

    failing_since: datetime | None = None
    exhausted_heads: int = 0
    trouble: Trouble | None = None
    circuits: tuple[tuple[int, CircuitState, float, float], ...] = ()
    throttle_per_s: float | None = None


WELL = Summary()
"""Nothing is on record of an endpoint like that."""


@dataclass(slots=True)
class Standing:
    """One endpoint's. `changes` of circuits (and the type of the event that caused each) are not yet told.

    `recorded`: what the record says; None where that is a former owner's word.
    """

    admission: Admission
    health: EndpointHealth
    state: EndpointState
    recorded: Summary | None = WELL
    changes: list[tuple[CircuitChange, str]] = field(default_factory=list)

    @property
    def summary(self) -> Summary:
        """What the record should say."""
        health, throttle = self.health, self.admission.throttled_per_s
        return Summary(
            health.failing_since,
            health.exhausted_heads,
            health.trouble,
            tuple((i, c.state, c.opened_at, c.probe_at) for i, c in self.admission.open_circuits),
            None if throttle is None else round(throttle, 2),
        )


class Admissions:
    """By endpoint. Bounded by what is owned, and pruned of those that are at rest."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._standings: dict[EndpointKey, Standing] = {}

    def __len__(self) -> int:
        return len(self._standings)

    def get(self, key: EndpointKey) -> Standing | None:
        """The endpoint's, if it has any."""
        return self._standings.get(key)

    def apply(self, runtime: EndpointRuntime) -> Admission:
        """Use what the endpoint says now; the gate for its lane."""
        now = self._clock()
        standing = self._standings.get(runtime.key)
        if standing is None:
            admission = Admission(runtime.policies.admission)
            recorded = WELL if runtime.health is None else None
            standing = Standing(admission, EndpointHealth.of(runtime.health), runtime.state, recorded)
            self._standings[runtime.key] = standing
        elif standing.state is EndpointState.DISABLED and runtime.state is EndpointState.ACTIVE:
            standing.health.enabled()
            standing.admission.try_now(now)
        standing.state = runtime.state
        standing.admission.configure(runtime.policies.admission, now)
        return standing.admission

    def items(self) -> Iterator[tuple[EndpointKey, Standing]]:
        """All of them; not to be changed meanwhile."""
        return iter(self._standings.items())

    def prune(self, is_in_use: Callable[[EndpointKey], bool]) -> None:
        """Forget those that a fresh one would not differ from."""
        now = self._clock()
        for key in [
            key
            for key, standing in self._standings.items()
            if not is_in_use(key)
            and standing.admission.is_at_rest(now)
            and not standing.changes
            and standing.recorded == WELL
            and standing.health == EndpointHealth()
        ]:
            del self._standings[key]

    def discard(self, key: EndpointKey) -> None:
        """The endpoint is deleted."""
        self._standings.pop(key, None)

    def forget(self, keys: Iterable[EndpointKey]) -> None:
        """Their partition is no longer ours."""
        for key in keys:
            self._standings.pop(key, None)
