"""The demo's pure parts: its verdict, its events, what it settles for, and how it registers its endpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from dispatcher.cli.dev import problems_of
from dispatcher.cli.dev_events import (
    BATCH_EVENTS_MAX,
    Acknowledgements,
    batch_events,
    event_batches,
    read_templates,
)
from dispatcher.cli.dev_service import local_settings, preferences, refuse_authentication, refuse_other_database
from dispatcher.cli.dev_shop import ENDPOINTS, new_secret, owed_to, register
from dispatcher.cli.failure import CliError, UsageError
from dispatcher.cli.records import EventRecord
from dispatcher.cli.status import OK_STATUS, Code, ServiceError, ServiceStatus
from dispatcher.cli.window import Answer
from dispatcher.config import ConfigError
from dispatcher.embedded import EVENTS_FILE
from dispatcher.embedded.ledger import OrderLedger
from dispatcher.routing.patterns import matches

DSN = "postgresql://postgres@/postgres"
AWAY = ServiceStatus(Code.UNAVAILABLE, "away")


def ledger_after(receipts: str, published: str = "123") -> OrderLedger:
    """A ledger of one ordered endpoint that has seen these one-letter events; `!` before one spoils its signature."""
    ledger = OrderLedger()
    ledger.add_endpoint("a")
    for event in published:
        ledger.acknowledged(event, ["a"], sent_s=0.0)
    spoilt = False
    for event in receipts:
        if event == "!":
            spoilt = True
        elif spoilt:
            ledger.refused(event)
            spoilt = False
        else:
            ledger.received("a", event, at_s=1.0, accepted=True, attempt=1)
    return ledger


def test_a_demo_in_which_all_came_in_order_has_no_problems() -> None:
    assert problems_of(ledger_after("123").totals(), 3) == ()
    assert problems_of(ledger_after("1223").totals(), 3) == ()


@pytest.mark.parametrize(
    ("receipts", "asked", "problem"),
    [
        ("132", 3, "out of order"),
        ("12", 3, "missing"),
        ("", 3, "missing"),
        ("1!223", 3, "does not verify"),
        ("123", 4, "acknowledged"),
    ],
)
def test_what_is_reordered_dropped_spoilt_or_never_acknowledged_is_a_problem(
    receipts: str, asked: int, problem: str
) -> None:
    assert problem in " ".join(problems_of(ledger_after(receipts).totals(), asked))


def test_the_events_go_round_with_ids_of_their_own_and_stop_at_the_count() -> None:
    templates = read_templates(EVENTS_FILE)
    numbers = iter(range(10_000))
    batches = list(event_batches(templates, lambda: str(next(numbers)), events_max=7, count=len(templates) + 3))
    records = [record for batch in batches for record in batch.records]
    assert [record.id for record in records] == [str(number) for number in range(len(templates) + 3)]
    assert [record.type for record in records[-3:]] == [record.type for record in templates[:3]]
    assert max(len(batch.records) for batch in batches) == 7


def test_a_modest_rate_sends_single_events_and_no_limit_sends_many() -> None:
    assert (batch_events(50.0), batch_events(1000.0), batch_events(None)) == (1, 5, BATCH_EVENTS_MAX)


def test_every_event_of_the_file_is_owed_to_those_whom_the_service_would_match() -> None:
    types = Counter(record.type for record in read_templates(EVENTS_FILE))
    for event_type in types:
        expected = {e.name for e in ENDPOINTS if any(matches(pattern, event_type) for pattern in e.event_types)}
        assert set(owed_to(event_type)) == expected
    assert all(any(name in owed_to(event_type) for event_type in types) for name in (e.name for e in ENDPOINTS))


class Notes:
    """An acknowledgement log that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def acknowledged(self, event_id: str, endpoints: Iterable[str], *, sent_s: float, ordering_key: str = "") -> None:
        self.told.append((event_id, sent_s))


class FakeStream:
    """Answers what it is given to answer."""

    def __init__(self, *answers: Answer | None) -> None:
        self.answers = list(answers)

    async def send(self, sequence: int, parent: str, records: Iterable[EventRecord]) -> None: ...
    async def finish(self) -> None: ...
    def cancel(self) -> None: ...

    async def receive(self) -> Answer | None:
        return self.answers.pop(0)


def record(event_id: str) -> EventRecord:
    return EventRecord(line=1, id=event_id, type="order.paid", data=b"{}")


async def test_the_log_hears_of_acknowledged_events_only_and_counts_from_the_first_sending() -> None:
    notes, clock = Notes(), iter([1.0, 2.0, 3.0])
    book = Acknowledgements(notes, owed_to, monotonic=lambda: next(clock))
    broken = book.watch(FakeStream(Answer(1, OK_STATUS, 0), Answer(2, AWAY, 0)))
    await broken.send(1, "tenants/demo", [record("a")])
    await broken.send(2, "tenants/demo", [record("b")])
    assert [await broken.receive(), await broken.receive()]
    assert notes.told == [("a", 1.0)]
    anew = book.watch(FakeStream(Answer(3, OK_STATUS, 1), None))
    await anew.send(3, "tenants/demo", [record("b")])
    assert [await anew.receive(), await anew.receive()]
    assert notes.told == [("a", 1.0), ("b", 2.0)]


class FakeCaller:
    """Answers calls as a service would that knows `existing` endpoints and has `tombstoned` ones."""

    def __init__(self, *existing: str, tombstoned: tuple[str, ...] = (), refusal: ServiceStatus | None = None) -> None:
        self.existing = existing
        self.tombstoned = tombstoned
        self.refusal = refusal
        self.calls: list[tuple[str, str]] = []

    def call(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        name = request.get("endpointId") or request.get("name") or request.get("endpoint", {}).get("name", "")
        status = self.refusal
        if method == "EndpointService.CreateEndpoint" and name in self.tombstoned:
            status = ServiceStatus(Code.ALREADY_EXISTS, reason="ENDPOINT_ID_TOMBSTONED")
        elif method == "EndpointService.CreateEndpoint" and name in self.existing:
            status = ServiceStatus(Code.ALREADY_EXISTS, reason="ENDPOINT_EXISTS")
        if status is not None:
            raise ServiceError(status, method=method, target="test")
        self.calls.append((method.partition(".")[2], name))
        return {}


def register_with(caller: FakeCaller) -> list[tuple[str, str]]:
    register(caller, lambda name: f"http://127.0.0.1:1/{name}", {e.name: new_secret() for e in ENDPOINTS})
    return caller.calls


def test_all_endpoints_are_created_in_an_empty_database() -> None:
    created = [("CreateEndpoint", endpoint.name) for endpoint in ENDPOINTS]
    assert register_with(FakeCaller()) == [("CreateTenant", ""), *created]


def test_an_endpoint_of_an_earlier_run_gets_the_new_key_before_the_new_address() -> None:
    calls = register_with(FakeCaller("warehouse"))
    name = "tenants/demo/endpoints/warehouse"
    assert calls[1:3] == [("RotateSigningKey", name), ("UpdateEndpoint", name)]


def test_a_deleted_endpoint_comes_back_under_another_name() -> None:
    calls = register_with(FakeCaller(tombstoned=("audit", "audit-2")))
    assert ("CreateEndpoint", "audit-3") in calls


def test_a_refusal_to_register_is_one_clear_error() -> None:
    with pytest.raises(CliError, match="was refused"):
        register_with(FakeCaller(refusal=ServiceStatus(Code.INTERNAL, "broken", "INTERNAL")))


def test_variables_win_over_what_dev_prefers_and_its_own_database_over_both() -> None:
    environ = {"DISPATCHER_GRPC_LISTEN": "127.0.0.1:7", "DISPATCHER_RETRY_MIN_S": ""}
    settings = local_settings(environ, preferred=preferences(any_port=False), database_url=DSN)
    assert (settings.grpc_listen, settings.ops_listen, settings.retry_min_s) == ("127.0.0.1:7", "127.0.0.1:8080", 0.1)
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == DSN
    assert local_settings({}, preferred=preferences(any_port=True)).ops_listen == "127.0.0.1:0"
    with pytest.raises(ConfigError, match="DISPATCHER_NONSENSE"):
        local_settings({"DISPATCHER_NONSENSE": "1"}, preferred=preferences(any_port=False))


def test_stopping_takes_less_than_five_seconds_by_its_settings() -> None:
    settings = local_settings({}, preferred=preferences(any_port=False))
    assert settings.grpc_drain_s + settings.delivery_drain_s + settings.telemetry_flush_timeout_s <= 2.0


@pytest.mark.parametrize("variable", ["DISPATCHER_DATABASE_URL", "DISPATCHER_SECRET_KEYS_FILE"])
def test_a_database_or_keys_of_ones_own_are_refused_by_name(variable: str) -> None:
    with pytest.raises(UsageError, match=variable):
        refuse_other_database({variable: "x"})
    refuse_other_database({variable: ""})


def test_a_mode_that_would_shut_its_own_publisher_out_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="DISPATCHER_AUTH_MODE"):
        refuse_authentication({"DISPATCHER_AUTH_MODE": "tokens"})
    for environ in ({}, {"DISPATCHER_AUTH_MODE": ""}, {"DISPATCHER_AUTH_MODE": "none"}):
        refuse_authentication(environ)
