"""Resource names, times and masks: what is read, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from webhooks.v1 import attempt_pb2, delivery_pb2, endpoint_pb2

from dispatcher.api.convert import endpoints, event_types, tenants
from dispatcher.api.convert.masks import Maskable
from dispatcher.api.convert.names import parse_name
from dispatcher.api.convert.times import is_valid_timestamp, timestamp, to_datetime, to_seconds
from dispatcher.errors import InvalidRequestError
from dispatcher.model import DeliveryState, EndpointState, OrderingMode, Outcome, TracePropagation

DELIVERY = "tenants/{tenant}/endpoints/{endpoint}/deliveries/{delivery}"


def test_a_name_is_read_by_its_pattern() -> None:
    assert parse_name("tenants/a/endpoints/b-1/deliveries/17", DELIVERY) == ("a", "b-1", "17")
    assert parse_name("tenants/a/endpoints/-/deliveries/-", DELIVERY, wild=True) == ("a", "-", "-")
    assert parse_name("tenants/a/events/-x", "tenants/{tenant}/events/{event}") == ("a", "-x")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/tenants/a/endpoints/b/deliveries/1",
        "tenants/a/endpoints/b/deliveries/1/",
        "tenants/a/endpoints/b/deliveries/01",
        "tenants/a/endpoints/b/deliveries/-1",
        "tenants/a/endpoints/-/deliveries/1",
        "tenants/a/endpoints/b/deliveries",
        "tenants/a/endpoints/b\n/deliveries/1",
        "tenants/a/endpoints//deliveries/1",
        "tenants/a/Endpoints/b/deliveries/1",
        "tenants/ä/endpoints/b/deliveries/1",
    ],
)
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_name(name, DELIVERY)


def test_a_tenant_is_never_a_wildcard() -> None:
    with pytest.raises(InvalidRequestError):
        parse_name("tenants/-/endpoints/-", "tenants/{tenant}/endpoints/{endpoint}", wild=True)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_survive_the_wire_to_the_microsecond(time: datetime) -> None:
    on_the_wire = timestamp(time)
    assert is_valid_timestamp(on_the_wire)
    assert to_datetime(on_the_wire) == time


@pytest.mark.parametrize(
    "bad",
    [Duration(seconds=1, nanos=-1), Duration(seconds=2**40), Duration(nanos=10**9), Duration(seconds=-1, nanos=1)],
)
def test_a_malformed_duration_has_no_seconds(bad: Duration) -> None:
    assert to_seconds(bad) is None


@pytest.mark.parametrize("maskable", [tenants.MASKABLE, event_types.MASKABLE, endpoints.MASKABLE])
def test_a_mask_can_name_what_the_messages_have(maskable: Maskable) -> None:
    assert maskable.leaves
    assert not maskable.ignored.intersection(maskable.leaves)


def test_every_field_of_an_endpoint_can_be_changed_or_is_known_not_to_be() -> None:
    known = {leaf.partition(".")[0] for leaf in endpoints.MASKABLE.leaves} | endpoints.MASKABLE.ignored
    assert known == set(endpoint_pb2.Endpoint.DESCRIPTOR.fields_by_name)
    of_settings = {leaf.partition(".")[2] for leaf in endpoints.MASKABLE.leaves if leaf.startswith("delivery_settings")}
    assert of_settings == set(endpoint_pb2.DeliverySettings.DESCRIPTOR.fields_by_name)


def test_every_word_of_the_model_has_its_word_on_the_wire() -> None:
    for outcome in Outcome:
        assert attempt_pb2.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{outcome.name}") == outcome.value
    for enum, words, prefix in (
        (endpoint_pb2.Endpoint.State, EndpointState, "STATE_"),
        (endpoint_pb2.OrderingMode, OrderingMode, "ORDERING_MODE_"),
        (endpoint_pb2.TracePropagation, TracePropagation, "TRACE_PROPAGATION_"),
        (delivery_pb2.Delivery.State, DeliveryState, "STATE_"),
    ):
        assert {prefix + word.value for word in words} | {f"{prefix}UNSPECIFIED"} == set(enum.keys())
