"""Who should own which partitions: a pure plan from a view that all instances share; no I/O, no clock.

Every instance computes the same targets from the same view and carries out its own part of them. Views that differ for
a moment are harmless: a lease is taken only when the database says that it is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from dispatcher.model import PARTITION_COUNT


@dataclass(frozen=True, slots=True)
class View:
    """What one instance sees. `owners` maps partitions to the owner of a lease in force; the others are free.

    `live` are the instances that share the work: not draining, heard of lately. `releasing` are partitions of `me` that
    are being drained already and still count as held.
    """

    me: UUID
    live: frozenset[UUID]
    owners: Mapping[int, UUID]
    releasing: frozenset[int] = field(default_factory=frozenset)
    partition_count: int = PARTITION_COUNT


@dataclass(frozen=True, slots=True)
class Plan:
    """What `View.me` should do now: partitions to acquire and partitions to begin to give back, ascending."""

    acquire: tuple[int, ...] = ()
    release: tuple[int, ...] = ()


def decide(view: View) -> Plan:
    """The part of the common plan that is mine. Targets differ by at most one; a balanced fleet gives nothing back."""
    held = sorted(p for p, owner in view.owners.items() if owner == view.me)
    target = targets(view).get(view.me, 0)
    if len(held) > target:
        return Plan(release=_surplus(held, len(held) - target, view.releasing))
    return Plan(acquire=assignments(view).get(view.me, ()))


def targets(view: View) -> dict[UUID, int]:
    """How many partitions each live instance should own. Those that hold most get the odd ones: nothing flaps."""
    counts = _counts(view)
    share, odd = divmod(view.partition_count, max(1, len(counts)))
    return {instance: share + (1 if rank < odd else 0) for rank, instance in enumerate(_ranked(counts))}


def assignments(view: View) -> dict[UUID, tuple[int, ...]]:
    """Free partitions handed out in order to those below their target, none to two."""
    counts, wanted = _counts(view), targets(view)
    free = [p for p in range(view.partition_count) if p not in view.owners]
    assigned: dict[UUID, tuple[int, ...]] = {}
    for instance in _ranked(counts):
        missing = max(0, wanted[instance] - counts[instance])
        assigned[instance], free = tuple(free[:missing]), free[missing:]
    return assigned


def _counts(view: View) -> dict[UUID, int]:
    """Partitions held per live instance."""
    counts = dict.fromkeys(view.live, 0)
    for owner in view.owners.values():
        if owner in counts:
            counts[owner] += 1
    return counts


def _ranked(counts: Mapping[UUID, int]) -> list[UUID]:
    return sorted(counts, key=lambda instance: (-counts[instance], instance))


def _surplus(held: list[int], count: int, releasing: frozenset[int]) -> tuple[int, ...]:
    """Which to give back: those on their way count first, and are left out of the answer: they have begun."""
    order = sorted(held, key=lambda p: (p not in releasing, -p))
    return tuple(sorted(p for p in order[:count] if p not in releasing))
