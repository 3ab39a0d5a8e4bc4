"""What stands before every call, without a network: order of the steps, and what a failing record does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from webhooks.v1 import tenant_pb2

from dispatcher.api.guard import MALFORMED, REFUSALS_LOGGED_PER_S, Guard, Rates, actor, admission
from dispatcher.errors import (
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from dispatcher.security.access import Access
from dispatcher.security.authentication import Credentials
from dispatcher.security.authorization import AccessPolicy
from dispatcher.security.callers import AuthMode, Caller
from dispatcher.store.audit import AuditCall

DELETE = "webhooks.v1.TenantService/DeleteTenant"
REQUEST = tenant_pb2.DeleteTenantRequest(name="tenants/acme")
POLICY = AccessPolicy.parse("bindings: [{principals: [ops], roles: [operator], tenants: ['*']}]")


class Call:
    """What grpc knows of a call."""

    def __init__(self, who: str = "ops") -> None:
        self.who = who

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        return {}

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return (("who", self.who),)

    def peer(self) -> str:
        return "ipv4:192.0.2.1:7"


class ByName:
    """Believes what is said."""

    async def caller_of(self, credentials: Credentials, /) -> Caller:
        who = credentials.only("who")
        if who == "nobody":
            raise UnauthenticatedError("who are you?")
        return Caller(who, AuthMode.TOKENS)


class Trail:
    """Remembers; fails where told."""

    def __init__(self, fails_at: str = "", error: Exception | None = None) -> None:
        self.told: list[str] = []
        self.fails_at, self.error = fails_at, error or UnavailableError("away")

    async def begun(self, _: AuditCall) -> None:
        self._tell("begun")

    async def ended(self, _: AuditCall, status: str) -> None:
        self._tell(status)

    def _tell(self, word: str) -> None:
        if word == self.fails_at:
            raise self.error
        self.told.append(word)


def guard(trail: Trail | None = None, rates: Rates | None = None) -> Guard:
    return Guard(Access(ByName(), lambda: POLICY), rates or Rates(1000.0, 1000), trail or Trail())


async def test_a_change_is_on_record_before_and_after_with_who_asked_for_it() -> None:
    trail = Trail()
    async with guard(trail).admitted(DELETE, REQUEST, Call()):
        assert trail.told == ["begun"]
        assert actor() == "ops"
    assert trail.told == ["begun", "OK"]
    assert actor() == "anonymous"
    with pytest.raises(RuntimeError):
        admission()


async def test_what_can_not_be_put_on_record_is_not_carried_out() -> None:
    for error in (UnavailableError("away"), RuntimeError("disk")):
        with pytest.raises(type(error)):
            async with guard(Trail("begun", error)).admitted(DELETE, REQUEST, Call()):
                pytest.fail("it was carried out")


@pytest.mark.parametrize("error", [UnavailableError("away"), RuntimeError("disk full"), TimeoutError()])
async def test_what_was_carried_out_is_answered_though_its_end_is_not_on_record(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with guard(Trail("OK", error)).admitted(DELETE, REQUEST, Call()):
        pass
    assert "not on record" in caplog.text


async def test_how_a_call_failed_is_on_record() -> None:
    for error, status in ((NotFoundError("t", "n"), "NOT_FOUND"), (ValueError("bug"), "INTERNAL")):
        trail = Trail()
        with pytest.raises(type(error)):
            async with guard(trail).admitted(DELETE, REQUEST, Call()):
                raise error
        assert trail.told == ["begun", status]


async def test_a_call_whose_caller_has_gone_is_on_record_as_cancelled() -> None:
    trail, begun = Trail(), asyncio.Event()

    async def call() -> None:
        async with guard(trail).admitted(DELETE, REQUEST, Call()):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert trail.told == ["begun", "CANCELLED"]


@pytest.mark.parametrize(
    ("method", "request_", "who", "error"),
    [
        (DELETE, REQUEST, "nobody", UnauthenticatedError),
        (DELETE, MALFORMED, "nobody", UnauthenticatedError),
        (DELETE, REQUEST, "shop", PermissionDeniedError),
        (DELETE, MALFORMED, "ops", InvalidRequestError),
        ("webhooks.v1.TenantService/New", REQUEST, "ops", PermissionDeniedError),
    ],
)
async def test_who_may_not_is_refused_before_anything_is_on_record(
    method: str, request_: Any, who: str, error: type[Exception]
) -> None:
    trail = Trail()
    with pytest.raises(error):
        async with guard(trail).admitted(method, request_, Call(who)):
            pytest.fail("it was carried out")
    assert trail.told == []


async def test_refusals_are_logged_but_not_without_bound(caplog: pytest.LogCaptureFixture) -> None:
    made = guard()
    with caplog.at_level(logging.WARNING):
        for _ in range(200):
            with pytest.raises(PermissionDeniedError):
                async with made.admitted(DELETE, REQUEST, Call("shop")):
                    pytest.fail("it was carried out")
    assert 1 <= caplog.text.count("a call was refused") <= REFUSALS_LOGGED_PER_S + 5


async def test_rates_are_each_callers_own() -> None:
    now = 0.0
    rates = Rates(1.0, 2, lambda: now)
    for _ in range(2):
        rates.take("a")
    with pytest.raises(OverloadedError) as caught:
        rates.take("a")
    assert 0 < caught.value.retry_after_s <= 1
    rates.take("b")
    now = 1.0
    rates.take("a")


async def test_a_stream_of_nobody_in_particular_has_no_rate() -> None:
    made = Guard(Access(), Rates(0.001, 1), None)
    found = await made.identify(Call())
    async with asyncio.timeout(1):
        for _ in range(1000):
            await found.next_of_stream()
