"""Whose fault it is when the proxy gives no reason: what it has opened to others meanwhile tells. Pure; all times are
monotonic seconds.

    tunnel to another ─▶ ours fails ─▶ tunnel to another ─▶ ours begins, and fails again
    └──────── proves one failure of the receiver ──────┘                 └─ counts as the receiver's, on that proof

Each proof counts once, so that never more is counted than the receiver has failed while the proxy was at work; and an
outage of the proxy, in which no tunnel is opened at all, proves nothing. Others are those that the proxy reaches in the
same way: a proxy that has lost IPv6, or its way out to the world, may well go on opening tunnels within.

Each endpoint has proofs of its own, whoever else has webhooks for the same receiver: what one has brought about, by a
timeout that is too short, say, is not held against another; and the more endpoints a dead receiver has, the more of
their failures a single tunnel proves.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

OPENED_MAX = 256
"""Receivers that are remembered as reached, of each way out."""
REACHED_S = 86_400.0
"""So long a receiver is asked for again, only to learn whether the proxy works: later its address may be another's."""
DOUBTS_MAX = 100_000
"""Endpoints whose receivers are remembered as not reached, of each way out."""
PROOFS_MAX = 1024
"""Failures of one endpoint that are proven and not yet counted."""
PROVEN_S = 3600.0
"""So long after it a failure proves anything; an endpoint's own retries may be far apart."""

Pair = Hashable
"""For whom the receiver is wanted, and its host and port: what failures belong together."""


class Target(NamedTuple):
    """Where a tunnel leads to: an address, or the name that the settings give for the probe."""

    host: str
    port: int

    @classmethod
    def parse(cls, authority: str) -> Target:
        """From `host:port`, IPv6 in brackets."""
        host, _, port = authority.rpartition(":")
        return cls(host.strip("[]"), int(port))

    @property
    def authority(self) -> str:
        """As CONNECT has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Asked:
    """A tunnel that is wanted; the receiver's address may be another each time.

    `was_working`: a tunnel to another had been opened shortly before `began_at`.
    """

    pair: Pair
    target: Target
    began_at: float
    was_working: bool


@dataclass(slots=True)
class _Doubt:
    """Failures of one pair between the same two tunnels to others; the first of them ended at `ended_at`.

    `was_working`: a tunnel to another had been opened shortly before; `works_at`: when one was, shortly after. `proven`
    are failures of earlier ones that have not been counted.
    """

    target: Target
    ended_at: float
    was_working: bool
    proven: int = 0
    failures: int = 0
    works_at: float = math.inf


@dataclass(slots=True)
class _Reached:
    """A receiver to which a tunnel was opened, the last time at `opened_at`; for a webhook at `used_at`. `probed_at`:
    when one was asked for only to learn whether the proxy works; `is_away`: and was not opened."""

    opened_at: float = -math.inf
    used_at: float = -math.inf
    probed_at: float = -math.inf
    is_away: bool = False


@dataclass(slots=True)
class _WayOut:
    opened: OrderedDict[Target, _Reached] = field(default_factory=OrderedDict)
    doubts: OrderedDict[Pair, _Doubt] = field(default_factory=OrderedDict)
    unanswered: dict[Target, dict[Pair, _Doubt]] = field(default_factory=dict)
    """The doubts after which no tunnel has been opened to another yet."""

    def doubt(self, pair: Pair, doubt: _Doubt) -> None:
        """Instead of what was in doubt for that pair."""
        self.forget(pair)
        self.doubts[pair] = doubt
        self.unanswered.setdefault(doubt.target, {})[pair] = doubt
        while len(self.doubts) > DOUBTS_MAX:
            self.forget(next(iter(self.doubts)))

    def forget(self, pair: Pair) -> None:
        """Nothing is in doubt for that pair."""
        doubt = self.doubts.pop(pair, None)
        waiting = None if doubt is None else self.unanswered.get(doubt.target)
        if doubt is not None and waiting is not None:
            waiting.pop(pair, None)
            if not waiting:
                del self.unanswered[doubt.target]


class Tunnels:
    """What one proxy has opened and what it has not. A tunnel within `evidence_s` of a failure tells something of it;
    failures within `answer_s`, in which the next tunnel should have come, are in doubt together.

    A tunnel to `named`, if there is one, tells of every way out: somebody has said that the proxy always reaches it.
    """

    def __init__(self, evidence_s: float, named: Target | None = None, answer_s: float = 4.0) -> None:
        self._evidence_s = evidence_s
        self._answer_s = answer_s
        self._named = named
        self._named_at = -math.inf
        self._is_named_away = False
        self._ways: dict[Hashable, _WayOut] = {}

    def ask(self, pair: Pair, target: Target, now: float) -> Asked:
        """The proxy is asked for a tunnel."""
        return Asked(pair, target, now, self._works_for_others(target, now))

    def _works_for_others(self, target: Target, now: float) -> bool:
        since = now - self._evidence_s
        if target != self._named and self._named_at >= since:
            return True
        newest_first = reversed(self._way(target).opened.items())
        return next((known.opened_at for other, known in newest_first if other != target), -math.inf) >= since

    def opened(self, target: Target, now: float, pair: Pair = None) -> None:
        """The proxy has opened a tunnel; for `pair`, unless only to learn whether it works."""
        if target == self._named:
            self._named_at, self._is_named_away = now, False
            for way in self._ways.values():
                self._answer(way, target, now)
            return
        way = self._way(target)
        known = way.opened.setdefault(target, _Reached())
        known.opened_at, known.is_away = now, False
        if pair is None:
            known.probed_at = now
        else:
            known.used_at = now
        way.opened.move_to_end(target)
        while len(way.opened) > OPENED_MAX:
            way.opened.popitem(last=False)
        self.answered(target, pair)
        self._answer(way, target, now)

    def answered(self, target: Target, pair: Pair) -> None:
        """The receiver is reached, if only by a tunnel that was open before: what it failed at is over."""
        way = self._way(target)
        if way.doubts:
            way.forget(pair)

    def _answer(self, way: _WayOut, target: Target, now: float) -> None:
        for other in [other for other in way.unanswered if other != target]:
            for doubt in way.unanswered.pop(other).values():
                if now - doubt.ended_at <= self._evidence_s:
                    doubt.works_at = now

    def failed(self, asked: Asked, now: float) -> bool:
        """The proxy did not open a tunnel and did not say why. True: counts as the receiver's."""
        way, pair = self._way(asked.target), asked.pair
        doubt = way.doubts.get(pair)
        if doubt is None or not self._is_of(doubt, asked):
            proven = 0 if doubt is None else _proven(doubt, asked.began_at)
            doubt = _Doubt(asked.target, now, asked.was_working, proven)
            way.doubt(pair, doubt)
        doubt.failures += 1
        if not doubt.proven or not asked.was_working:
            return False
        doubt.proven -= 1
        return True

    def _is_of(self, doubt: _Doubt, asked: Asked) -> bool:
        """Whether what proves the doubt's failures proves this one as well: it has begun before the first of them had
        ended, or soon after and with no tunnel to another since. Were it a doubt of its own, failures that come faster
        than tunnels would never be proven."""
        since_s = asked.began_at - doubt.ended_at
        if since_s < 0:
            return True
        is_open = doubt.works_at == math.inf and since_s <= self._answer_s
        return is_open and doubt.was_working and asked.was_working and doubt.target == asked.target

    def way_of(self, target: Target) -> Hashable:
        """What tells of this target tells of all with the same."""
        return _way_of(target.host)

    def is_in_doubt(self, target: Target) -> bool:
        """Whether anything that failed by the way to the target waits for a tunnel to another."""
        return bool(self._way(target).unanswered)

    def others(self, target: Target, now: float) -> list[Target]:
        """Whom to ask the proxy for, to learn whether it works: the named one, unless it was not reached the last time,
        and those that webhooks have reached lately, in turn."""
        since = now - REACHED_S
        known = [(other, it) for other, it in reversed(self._way(target).opened.items()) if it.used_at >= since]
        known.sort(key=lambda one: (one[1].is_away, one[1].probed_at))
        reached = [other for other, _ in known if other != target]
        if self._named is None or self._named == target:
            return reached
        return [*reached, self._named] if self._is_named_away else [self._named, *reached]

    def not_opened(self, target: Target, now: float) -> None:
        """The proxy was asked for no more than to learn whether it works, and it did not open that one: others are
        asked for first from now on."""
        if target == self._named:
            self._is_named_away = True
            return
        opened = self._way(target).opened
        known = opened.get(target)
        if known is not None:
            known.opened_at, known.probed_at, known.is_away = -math.inf, now, True
            opened.move_to_end(target, last=False)

    def _way(self, target: Target) -> _WayOut:
        if target == self._named:
            return _WayOut()
        return self._ways.setdefault(self.way_of(target), _WayOut())


@lru_cache(maxsize=4096)
def _way_of(host: str) -> tuple[int, bool]:
    address = ipaddress.ip_address(host)
    return address.version, address.is_global


def _proven(doubt: _Doubt, began_at: float) -> int:
    """One that has begun before the proxy was seen at work again may have begun in the same outage."""
    if began_at - doubt.ended_at > PROVEN_S:
        return 0
    found = doubt.failures if doubt.was_working and doubt.works_at <= began_at else 0
    return min(doubt.proven + found, PROOFS_MAX)
