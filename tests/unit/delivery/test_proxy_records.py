"""The record of attempts does not grow with an outage of the egress proxy."""

from __future__ import annotations

from uuid import UUID

from dispatcher.delivery.proxy_records import ENDPOINTS_MAX, ProxyRecords
from dispatcher.model import EndpointKey
from tests.support.lanes import KEY

OTHER = EndpointKey(UUID(int=77), UUID(int=78))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_of_an_endpoint_the_first_is_recorded_and_then_one_in_each_interval() -> None:
    clock = Clock()
    records, taken = ProxyRecords(10, clock), []
    for clock.now in range(35):
        if records.take(KEY):
            taken.append(clock.now)
    assert taken == [0, 10, 20, 30]


def test_endpoints_are_recorded_apart_and_what_is_over_is_forgotten() -> None:
    clock = Clock()
    records = ProxyRecords(10, clock)
    assert [records.take(key) for key in (KEY, OTHER, KEY, OTHER)] == [True, True, False, False]
    clock.now = 10
    assert records.take(OTHER)
    assert len(records) == 1


def test_what_is_remembered_is_bounded() -> None:
    records = ProxyRecords(10, Clock())
    for number in range(ENDPOINTS_MAX + 10):
        assert records.take(EndpointKey(UUID(int=1), UUID(int=number)))
    assert len(records) == ENDPOINTS_MAX
