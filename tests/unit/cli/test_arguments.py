"""Arguments as requests."""

from __future__ import annotations

import pytest

from dispatcher.cli.arguments import child_name, duration, map_field, nested, pairs, tenant_name, update_request
from dispatcher.cli.deliveries import delivery_parent
from dispatcher.cli.endpoint_options import EndpointOptions, Ordering, State
from dispatcher.cli.failure import UsageError


def test_names_are_taken_short_or_full():
    assert tenant_name("acme") == tenant_name("tenants/acme") == "tenants/acme"
    assert child_name("e1", "acme", "endpoints") == "tenants/acme/endpoints/e1"
    assert child_name("tenants/acme/endpoints/e1", None, "endpoints") == "tenants/acme/endpoints/e1"
    assert delivery_parent(None, "acme") == "tenants/acme/endpoints/-"


@pytest.mark.parametrize(
    ("given", "tenant"),
    [("e1", None), ("tenants/acme/eventTypes/x", None), ("tenants/acme/endpoints/e1", "other"), ("a/b", "acme")],
)
def test_names_that_do_not_fit_are_refused(given: str, tenant: str | None):
    with pytest.raises(UsageError):
        child_name(given, tenant, "endpoints")


@pytest.mark.parametrize("given", ["", "a/b", "tenants/", "tenants/a/b"])
def test_what_is_no_tenant_is_refused(given: str):
    with pytest.raises(UsageError):
        tenant_name(given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("10s", "10s"),
        ("500ms", "0.5s"),
        ("1.5m", "90s"),
        ("24h", "86400s"),
        ("7d", "604800s"),
        ("3", "3s"),
        ("0s", "0s"),
    ],
)
def test_durations_become_proto_json(given: str, expected: str):
    assert duration(given, "--x") == expected


@pytest.mark.parametrize("given", ["", "-1s", "1 week", "s", "1e3s", "∞"])
def test_what_is_no_duration_is_refused(given: str):
    with pytest.raises(UsageError, match="--x"):
        duration(given, "--x")


def test_pairs_keep_what_follows_the_first_mark_and_refuse_a_second_of_a_key():
    assert pairs(["a=b=c", "d="], "--label") == {"a": "b=c", "d": ""}
    assert pairs(["x-a: b:c"], "--header", ":") == {"x-a": "b:c"}
    for bad in (["a"], ["=b"], ["a=1", "a=2"]):
        with pytest.raises(UsageError):
            pairs(bad, "--label")


def test_a_map_is_cleared_only_when_asked_to():
    assert map_field("labels", None, "--label") == {}
    assert map_field("labels", None, "--label", clear=True) == {"labels": {}}
    with pytest.raises(UsageError):
        map_field("labels", ["a=b"], "--label", clear=True)


def test_an_update_has_a_mask_of_exactly_what_was_given():
    fields = EndpointOptions(url="https://x", state=State.PAUSED, ordering=Ordering.ORDERED_BY_KEY).fields()
    request = update_request("endpoint", "tenants/a/endpoints/e", fields, etag=None, validate_only=True)
    assert request == {
        "endpoint": {
            "name": "tenants/a/endpoints/e",
            "http": {"url": "https://x"},
            "state": "STATE_PAUSED",
            "deliverySettings": {"orderingMode": "ORDERING_MODE_ORDERED_BY_KEY"},
        },
        "updateMask": "http.url,deliverySettings.orderingMode,state",
        "validateOnly": True,
    }


def test_paths_become_nested_messages():
    assert nested({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
