"""SIGTERM in the middle of a stream: nothing is lost, nothing is repeated, the end comes in time and says 0."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.callers import WAIT_S, Caller, SteadyPublisher, calling
from tests.support.node import QUICK
from tests.support.postgres import TestDatabase
from tests.support.process import Served, processes
from tests.support.promises import assert_order_and_copies, failing_now_and_then, has_all
from tests.support.receiver import Receiver

ENDPOINTS = ["a", "b", "c", "d"]
STOP_S = float(QUICK["DISPATCHER_DELIVERY_DRAIN_S"]) + 2.0
"""Attempts are answered within milliseconds here, so the drain has no reason to use up its bound."""


async def test_sigterm_in_mid_stream_loses_and_repeats_nothing(database: TestDatabase, tmp_path: Path) -> None:
    with processes(database.dsn, tmp_path) as (served,):
        async with calling(served) as (caller,), Receiver() as receiver:
            await _make_endpoints(caller, receiver)
            publisher = SteadyPublisher("p", [caller])
            async with publisher.streaming():
                await receiver.wait_for(300, timeout_s=WAIT_S)
                await _stop(served)
                acknowledged = len(publisher.ids)
                await served.started()
                await receiver.wait_for(len(receiver.requests) + 100, timeout_s=WAIT_S)
            await receiver.wait_for(has_all(receiver, ENDPOINTS, [publisher]), timeout_s=WAIT_S)
        assert 0 < acknowledged < len(publisher.ids), "it was to be stopped in the middle"
        assert publisher.refusals, "the publisher never noticed"
        _assert_delivered_once(receiver, publisher)
        assert served.troubles() == []


async def test_a_rolling_restart_of_two_processes_loses_and_repeats_nothing(
    database: TestDatabase, tmp_path: Path
) -> None:
    with processes(database.dsn, tmp_path, 2) as both:
        async with calling(*both) as callers, Receiver() as receiver:
            await _make_endpoints(callers[0], receiver)
            publisher = SteadyPublisher("p", callers, pause_s=0.02)
            async with publisher.streaming():
                await receiver.wait_for(100, timeout_s=WAIT_S)
                for served in both:
                    await _stop(served)
                    await served.started()
                await receiver.wait_for(len(receiver.requests) + 100, timeout_s=WAIT_S)
            await receiver.wait_for(has_all(receiver, ENDPOINTS, [publisher]), timeout_s=WAIT_S)
        _assert_delivered_once(receiver, publisher)
        assert both[0].troubles() + both[1].troubles() == []


async def _make_endpoints(caller: Caller, receiver: Receiver) -> None:
    receiver.default = failing_now_and_then(0.05, delay_s=0.002)
    await caller.tenant()
    for name in ENDPOINTS:
        await caller.endpoint(name, receiver.url(name))


async def _stop(served: Served) -> None:
    began = time.monotonic()
    served.terminate()
    assert await served.exit_code(STOP_S) == 0
    assert time.monotonic() - began < STOP_S


def _assert_delivered_once(receiver: Receiver, publisher: SteadyPublisher) -> None:
    for name in ENDPOINTS:
        assert_order_and_copies(receiver, name, [publisher])
        accepted = [request.event_id for request in receiver.accepted(name)]
        assert accepted == publisher.ids, "an orderly stop leaves nothing to repeat"
