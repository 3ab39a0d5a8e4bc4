"""Events of Publish: digest, defaults and the rules' borders; each bad field over the wire is tested in integration."""

from __future__ import annotations

import copy
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from webhooks.v1 import event_pb2

from dispatcher.api.convert.checks import Violations
from dispatcher.api.convert.events import PublishLimits, digest, is_content_type, read_publish
from dispatcher.model import NewEvent

LIMITS = PublishLimits(data_bytes_max=10, events_max=3)


def read(*events: event_pb2.Event) -> tuple[tuple[NewEvent, ...], Violations]:
    violations = Violations()
    _, result = read_publish("tenants/acme", events, LIMITS, "tp", violations, make_id=lambda: UUID(int=7))
    return result, violations


def accepts(event: event_pb2.Event) -> bool:
    return not read(event)[1]


def test_what_is_at_the_limits_is_accepted() -> None:
    assert accepts(
        event_pb2.Event(
            id="a" * 64,
            type=".".join(["a"] * 64),
            data=b"x" * 10,
            data_content_type="a/" + "b" * 254,
            ordering_key="~ " * 63 + "~~",
            attributes={f"a{i}": "ü" * 1024 for i in range(32)},
            source="ü" * 1024,
            subject="ü" * 1024,
            time=Timestamp(seconds=253_402_300_799, nanos=999_999_999),
        )
    )


def test_an_event_takes_defaults_and_what_the_call_gives() -> None:
    ((event,), _) = read(event_pb2.Event(type="a", data_text=""))
    assert event == NewEvent(str(UUID(int=7)), None, "a", b"", "application/json", None, {}, None, None, None, "tp")


def test_only_events_with_the_callers_id_have_a_digest() -> None:
    (events, _) = read(event_pb2.Event(type="a", data=b""), event_pb2.Event(id="x", type="a", data=b""))
    assert [event.digest is None for event in events] == [True, False]


def test_a_type_that_only_resembles_ours_is_accepted() -> None:
    assert accepts(event_pb2.Event(type="dispatchers.ping", data=b""))
    assert accepts(event_pb2.Event(type="dispatcher", data=b""))
    assert not accepts(event_pb2.Event(type="dispatcher.ping", data=b""))


@pytest.mark.parametrize(
    "text", ["text/plain", "application/cloudevents+json; charset=utf-8", 'a/b ; c="d\\"e;" ;f=g', "a/b;c=d"]
)
def test_media_types_are_accepted(text: str) -> None:
    assert is_content_type(text)


@pytest.mark.parametrize(
    "text", ["text", "/", "a/", "a/b;", "a/b; c", "a/b; c=", " a/b", "a/b\n", "a/b; c=ü", "a b/c", 'a/b;c="']
)
def test_what_is_no_media_type_is_refused(text: str) -> None:
    assert not is_content_type(text)


BASE = event_pb2.Event(
    id="1",
    type="a",
    data=b"bc",
    data_content_type="a/b",
    ordering_key="k",
    attributes={"ab": "cd", "e": "f"},
    source="s",
    subject="u",
    time=Timestamp(seconds=5),
)


def digest_of(event: event_pb2.Event) -> bytes | None:
    limits = PublishLimits(data_bytes_max=1000, events_max=1)
    return read_publish("tenants/acme", [event], limits, None, Violations())[1][0].digest


@pytest.mark.parametrize(
    "changed",
    [
        {"type": "b"},
        {"data": b"c"},
        {"data_content_type": "a/c"},
        {"ordering_key": ""},
        {"source": ""},
        {"subject": "us"},
        {"time": Timestamp(seconds=5, nanos=1)},
        {"time": None},
        {"attributes": {"ab": "cd"}},
        {"attributes": {"abc": "d", "e": "f"}},
        {"attributes": {"ab": "cde", "f": ""}},
    ],
)
def test_every_part_of_the_content_is_in_the_digest(changed: dict[str, object]) -> None:
    other = copy.deepcopy(BASE)
    for name, value in changed.items():
        other.ClearField(name)
        other.MergeFrom(event_pb2.Event(**{name: value}))
    assert digest_of(other) != digest_of(BASE)


def test_text_and_bytes_and_a_spelled_out_default_are_the_same_content() -> None:
    plain = event_pb2.Event(id="1", type="a", data=b"x")
    spelled = event_pb2.Event(id="1", type="a", data_text="x", data_content_type="application/json")
    assert digest_of(plain) == digest_of(spelled)


def test_the_digest_is_stable_across_releases() -> None:
    """It is stored for as long as ids are remembered: a change of it makes every retry a reused id."""
    assert digest(BASE, BASE.data, BASE.data_content_type).hex() == DIGEST


DIGEST = "d7db18a06cf3921dc2a07fd8497105c49b379fcc1cb72f2193ddb8eeb7093e4a"


@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), min_size=2, max_size=2))
def test_no_two_neighbouring_parts_run_into_one_another(pairs: list[tuple[str, str]]) -> None:
    events = [event_pb2.Event(id="1", type="a", data=b"", source=source, subject=subject) for source, subject in pairs]
    assert (digest_of(events[0]) == digest_of(events[1])) == (pairs[0] == pairs[1])


def test_each_bad_field_of_each_event_is_collected() -> None:
    _, violations = read(event_pb2.Event(id="."), event_pb2.Event(type="a", data=b"x" * 11, ordering_key="ü"))
    with pytest.raises(Exception, match="id: ") as caught:
        violations.raise_if_any()
    fields = [violation.field for violation in caught.value.violations]  # type: ignore[attr-defined]
    assert fields == [
        "events[0].id",
        "events[0].type",
        "events[0].data",
        "events[1].data",
        "events[1].ordering_key",
    ]
