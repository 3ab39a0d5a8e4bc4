"""Which attempts that the egress proxy failed are kept on record: few, since an outage makes ever more of them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from dispatcher.model import EndpointKey

ENDPOINTS_MAX = 100_000
"""Endpoints that are remembered; beyond, the one recorded first is forgotten, and recorded again."""


class ProxyRecords:
    """At most one in `interval_s` of an endpoint, the first at once. `clock` is monotonic."""

    def __init__(self, interval_s: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._recorded: OrderedDict[EndpointKey, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recorded)

    def take(self, key: EndpointKey) -> bool:
        """Whether to record the attempt that has just failed; then it counts as recorded."""
        now = self._clock()
        while self._recorded and next(iter(self._recorded.values())) <= now - self._interval_s:
            self._recorded.popitem(last=False)
        if key in self._recorded:
            return False
        self._recorded[key] = now
        if len(self._recorded) > ENDPOINTS_MAX:
            self._recorded.popitem(last=False)
        return True
