"""Each way a receiver may fail has its own outcome on record, is tried again, and lets nothing overtake it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from webhooks.v1 import attempt_pb2, endpoint_pb2
from webhooks.v1.attempt_pb2 import AttemptOutcome

from tests.support.postgres import TestDatabase
from tests.support.receiver import Answer, Behaviour, BreakOff, Drip, Hang, Receiver, Reset
from tests.support.service import running_service
from tests.support.waiting import until

BIG = b"x" * 100_000
FAILURES: dict[str, tuple[Behaviour, AttemptOutcome.ValueType, int]] = {
    "500": (Answer(500, b"sorry"), attempt_pb2.ATTEMPT_OUTCOME_HTTP_ERROR, 500),
    "302": (Answer(302, headers={"location": "http://127.0.0.1/"}), attempt_pb2.ATTEMPT_OUTCOME_HTTP_ERROR, 302),
    "reset": (Reset(), attempt_pb2.ATTEMPT_OUTCOME_CONNECTION_FAILED, 0),
    "reset in the body": (BreakOff(), attempt_pb2.ATTEMPT_OUTCOME_CONNECTION_FAILED, 200),
    "hang": (Hang(asyncio.Event()), attempt_pb2.ATTEMPT_OUTCOME_TIMEOUT, 0),
    "slow drip": (Drip(), attempt_pb2.ATTEMPT_OUTCOME_TIMEOUT, 200),
    "head too large": (
        Answer(200, headers={"x-pad": "y" * 100_000}),
        attempt_pb2.ATTEMPT_OUTCOME_RESPONSE_TOO_LARGE,
        0,
    ),
    "500 too large": (Answer(500, BIG), attempt_pb2.ATTEMPT_OUTCOME_HTTP_ERROR, 500),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_failure_is_on_record_and_tried_again_in_order(database: TestDatabase, failure: str) -> None:
    behaviour, outcome, status_code = FAILURES[failure]
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        endpoint = await service.endpoint("a", receiver.url("a"), timeout={"nanos": 300_000_000})
        assert endpoint.delivery_settings.timeout.nanos == 300_000_000
        receiver.on("a", behaviour, behaviour)
        await service.publish("one", "two")
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 2)
        failed, again, delivered = await service.until_attempts("a", 3, 1)
    assert [r.event_id for r in receiver.of("a")] == ["one", "one", "one", "two"]
    assert (failed.outcome, again.outcome) == (outcome, outcome)
    assert failed.status_code == status_code
    assert delivered.outcome == attempt_pb2.ATTEMPT_OUTCOME_SUCCEEDED
    assert failed.response_excerpt == (b"sorry" if failure == "500" else failed.response_excerpt)
    assert delivered.response_excerpt == b""


async def test_of_an_oversized_body_only_the_beginning_is_read_and_the_status_decides(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        receiver.on("a", Answer(500, BIG), Answer(200, BIG))
        await service.publish("one")
        await receiver.wait_for(2)
        failed, delivered = await service.until_attempts("a", 2, 1)
    assert 0 < len(failed.response_excerpt) <= service.node.core.settings.response_excerpt_bytes_max
    assert delivered.outcome == attempt_pb2.ATTEMPT_OUTCOME_SUCCEEDED
    assert delivered.response_excerpt == b""


def a_date(seconds: float) -> str:
    """An HTTP-date has whole seconds: rounded up, so that it is not earlier than meant."""
    return format_datetime((datetime.now(UTC) + timedelta(seconds=seconds + 1)).replace(microsecond=0), usegmt=True)


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("status_code", [429, 503])
async def test_a_retry_after_is_waited_for(database: TestDatabase, status_code: int, form: str) -> None:
    async with Receiver() as receiver, running_service(database.dsn, retry_max_s="5") as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        receiver.on(
            "a", lambda _r: Answer(status_code, headers={"retry-after": "1" if form == "seconds" else a_date(1)})
        )
        await service.publish("one")
        await receiver.wait_for(2)
    refused, delivered = receiver.of("a")
    assert 0.99 <= delivered.at_s - refused.at_s < 5


async def test_a_retry_after_is_clamped_to_the_longest_wait(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:  # retry_max_s is 0.1 here
        await service.tenant()
        await service.endpoint("a", receiver.url("a"))
        receiver.on("a", Answer(500, headers={"retry-after": "3600"}))
        await service.publish("one")
        await receiver.wait_for(2, timeout_s=5)


async def test_a_final_status_is_not_tried_again(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint("a", receiver.url("a"), retry_policy={"final_status_codes": [400, 422]})
        receiver.on("a", Answer(422), Answer(500))
        await service.publish("refused", "next")
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 1)
        reason = await service.database.fetchval("SELECT reason FROM decision")
    assert [r.event_id for r in receiver.of("a")] == ["refused", "next", "next"]
    assert reason == "FINAL_STATUS"


async def test_a_schedule_of_the_tenant_holds_unless_the_endpoint_has_its_own(database: TestDatabase) -> None:
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant(default_retry_policy={"schedule": {"waits": [{"seconds": 0}, {"seconds": 0}]}})
        await service.endpoint("tenants", receiver.url("tenants"))
        await service.endpoint("own", receiver.url("own"), retry_policy={"max_attempts": 2})
        receiver.default = Answer(500)
        await service.publish("one")
        await receiver.wait_for(5)

        async def are_given_up() -> bool:
            return await service.database.fetchval("SELECT count(*) FROM dead_letter") == 2

        await until(are_given_up, 5)
        counts = await service.database.fetch("SELECT attempts FROM dead_letter ORDER BY attempts")
    assert [row["attempts"] for row in counts] == [2, 3]
    assert len(receiver.requests) == 5


async def test_age_counts_from_a_deliverys_own_first_attempt(database: TestDatabase) -> None:
    """What waited behind a head that was given up has its whole time: it was never tried."""
    async with Receiver() as receiver, running_service(database.dsn) as service:
        await service.tenant()
        await service.endpoint(
            "a",
            receiver.url("a"),
            circuit_breaker={"off": True},
            retry_policy={"max_age": {"seconds": 1, "nanos": 500_000_000}},
        )
        receiver.on("a", lambda request: Answer(500 if request.event_id == "one" else 204))
        await service.publish("one", "two")
        await receiver.wait_for(lambda: len(receiver.accepted("a")) == 1)
        (row,) = await service.database.fetch("SELECT seq, reason, time FROM decision")
        first = (await service.until_attempts("a", 1, 1))[0].start_time.ToDatetime(tzinfo=UTC)
    assert (row["seq"], row["reason"]) == (1, "AGE_EXCEEDED")
    assert row["time"] - first >= timedelta(seconds=1.5)
    assert [r.event_id for r in receiver.accepted("a")] == ["two"]


async def test_a_takeover_ends_no_back_off(database: TestDatabase) -> None:
    hourly = {"schedule": {"waits": [{"seconds": 3600}] * 3}}
    async with Receiver() as receiver:
        receiver.on("a", Answer(500))
        async with running_service(database.dsn) as service:
            await service.tenant()
            mode = endpoint_pb2.ORDERING_MODE_UNORDERED
            await service.endpoint("a", receiver.url("a"), ordering_mode=mode, retry_policy=hourly)
            await service.publish("late")
            await service.until_attempts("a", 1)
            await service.node.crash()
        async with running_service(database.dsn) as service:
            await service.publish("next")
            await receiver.wait_for(lambda: len(receiver.accepted("a")) == 1)
            blocked = (await service.status("a")).blocked_by
            assert (blocked.attempt_count, len(receiver.of("a"))) == (1, 2)
            due = blocked.next_attempt_time.ToDatetime() - blocked.last_attempt.start_time.ToDatetime()
            assert 3599 < due.total_seconds() < 3700
            await service.retry("a", 1)
            await receiver.wait_for(lambda: len(receiver.accepted("a")) == 2)
    assert [r.event_id for r in receiver.of("a")] == ["late", "next", "late"]
