"""Whom the proxy is asked for where it is in doubt: each way out in turn, and only as long as anything is to learn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from dispatcher.delivery.client.proxy_probe import TRIES_MAX, ProbeOptions, ProxyProbe
from dispatcher.delivery.client.tunnels import Target, Tunnels
from dispatcher.security.egress_proxy import EgressProxy

DEAD, OTHER, THIRD = Target("8.8.8.8", 443), Target("8.8.4.4", 443), Target("9.9.9.9", 443)
DEAD_V6, OTHER_V6 = Target("2001:4860:4860::8888", 443), Target("2001:4860:4860::8844", 443)


class Probe(ProxyProbe):
    """Opens what it is told to, and remembers what it was asked for."""

    def __init__(
        self, tunnels: Tunnels, opens: bool = True, interval_s: float = 0, clock: Callable[[], float] | None = None
    ) -> None:
        ticks: Iterator[int] = iter(range(1_000_000))
        super().__init__(
            EgressProxy.parse("http://127.0.0.1:1"),
            tunnels,
            ProbeOptions(interval_s=interval_s),
            clock or (lambda: float(next(ticks))),
        )
        self.asked: list[Target] = []
        self.opens = opens

    async def _opens(self, other: Target) -> bool:
        self.asked.append(other)
        await asyncio.sleep(0)
        return self.opens

    async def ended(self) -> None:
        assert self._task is not None
        await asyncio.wait_for(self._task, 5)


def reached(*targets: Target) -> Tunnels:
    tunnels = Tunnels(1e9)
    for target in targets:
        tunnels.opened(target, 0, "other")
    return tunnels


def fail(tunnels: Tunnels, probe: Probe, target: Target) -> None:
    tunnels.failed(tunnels.ask("dead", target, 0), 0)
    probe.want(target)


@pytest.mark.parametrize("opens", [True, False])
async def test_each_way_out_that_is_in_doubt_has_its_turn(opens: bool) -> None:
    """However often another one fails meanwhile."""
    tunnels = reached(OTHER, THIRD, OTHER_V6)
    probe = Probe(tunnels, opens)
    for _ in range(5):
        fail(tunnels, probe, DEAD)
    fail(tunnels, probe, DEAD_V6)
    await asyncio.sleep(0)
    fail(tunnels, probe, DEAD)
    await probe.ended()
    assert probe.asked[1] == OTHER_V6
    assert tunnels.is_in_doubt(DEAD) is tunnels.is_in_doubt(DEAD_V6) is not opens


async def test_where_a_webhook_has_told_meanwhile_nobody_is_asked_for() -> None:
    tunnels = reached(OTHER)
    probe = Probe(tunnels)
    fail(tunnels, probe, DEAD)
    tunnels.opened(OTHER, 1, "other")
    await probe.ended()
    assert probe.asked == []
    fail(tunnels, probe, DEAD)
    await probe.ended()
    assert probe.asked == [OTHER]


async def test_a_few_are_asked_for_where_none_is_opened_and_none_where_nobody_was_reached() -> None:
    tunnels = reached(OTHER, THIRD)
    probe = Probe(tunnels, opens=False)
    fail(tunnels, probe, DEAD)
    await probe.ended()
    assert len(probe.asked) == TRIES_MAX
    assert set(probe.asked) == {OTHER, THIRD}
    alone = Tunnels(60)
    probe = Probe(alone)
    fail(alone, probe, DEAD)
    await probe.ended()
    assert probe.asked == []


async def test_probes_are_as_far_apart_as_the_settings_say_whether_they_are_opened_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began_at: list[float] = []
    now = 0.0

    class Timed(Probe):
        """Each probe takes 1 s."""

        async def _opens(self, other: Target) -> bool:
            nonlocal now
            began_at.append(now)
            now += 1
            return await super()._opens(other)

    real_sleep = asyncio.sleep

    async def sleep(delay_s: float) -> None:
        nonlocal now
        now += delay_s
        await real_sleep(0)

    monkeypatch.setattr("dispatcher.delivery.client.proxy_probe.asyncio.sleep", sleep)
    tunnels = reached(OTHER)
    probe = Timed(tunnels, opens=False, interval_s=5, clock=lambda: now)
    fail(tunnels, probe, DEAD)
    await probe.ended()
    probe.opens = True
    for _ in range(2):
        fail(tunnels, probe, DEAD)
        await probe.ended()
    assert began_at == [0, 5, 10, 15, 20]
    now = 100
    fail(tunnels, probe, DEAD)
    await probe.ended()
    assert began_at[-1] == 100, "one that comes later than that is not kept waiting"
