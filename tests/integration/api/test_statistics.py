"""Statuses with their statistics over a real channel: what is told, to whom, and what is left out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from webhooks.v1 import delivery_pb2, endpoint_pb2, tenant_pb2, tenant_status_pb2

from dispatcher.api.deliveries import STATISTICS_EACH_MAX, STATISTICS_MAX, STATISTICS_WAITING_MAX
from dispatcher.api.interceptors import ANSWER_MARGIN_S
from dispatcher.api.turns import RETRY_S
from dispatcher.errors import NotFoundError
from dispatcher.model import Outcome
from dispatcher.store import attempts, endpoints, recent
from dispatcher.store import tenant_status as store
from dispatcher.store.recent import StatisticsLimits
from tests.integration.api.test_access import ALICE, BOB, bearer, guarded, tenant_made, with_tokens
from tests.support.api import Api, event, refused, serving
from tests.support.backlog import add_rows, attempt_at
from tests.support.postgres import TestDatabase
from tests.support.waiting import until

ENDPOINT = "tenants/acme/endpoints/billing"
PLACES = STATISTICS_MAX + STATISTICS_WAITING_MAX
"""At work or waiting, all tenants together."""
NONE_SET = ("attempt_duration_p50", "attempt_duration_p90", "attempt_duration_p99")


async def endpoint_status(api: Api, endpoint: str = ENDPOINT, **options: Any) -> delivery_pb2.EndpointStatus:
    request = delivery_pb2.GetEndpointStatusRequest(name=f"{endpoint}/status")
    return await api.deliveries.GetEndpointStatus(request, **options)


async def tenant_status(api: Api, tenant: str = "acme", **options: Any) -> tenant_status_pb2.TenantStatus:
    request = tenant_status_pb2.GetTenantStatusRequest(name=f"tenants/{tenant}/status")
    return await api.deliveries.GetTenantStatus(request, **options)


async def tenants_for(api: Api, calls: int) -> list[str]:
    """The tenants for so many calls at once, each with no more than it may have open."""
    names = [f"t{number}" for number in range(-(-calls // STATISTICS_EACH_MAX))]
    for name in names:
        await api.tenant(name)
    return (names * STATISTICS_EACH_MAX)[:calls]


async def until_done(tasks: Iterable[asyncio.Task[Any]], count: int) -> tuple[list[Any], list[Any]]:
    """Those that have ended, so many at least, and the others."""

    async def are_done() -> bool:
        return sum(task.done() for task in tasks) >= count

    await until(are_done, 10)
    return [task for task in tasks if task.done()], [task for task in tasks if not task.done()]


async def never(*_arguments: Any) -> Any:
    await asyncio.Event().wait()


async def with_backlog(api: Api, database: TestDatabase, rows: int, delivered: int, name: str = "billing") -> None:
    """`rows` committed an hour ago, of which so many were delivered just now, and one failed."""
    await api.endpoint(name)
    key = (await endpoints.get(api.database, "acme", name)).key
    connection = await database.connect()
    try:
        hour_ago = datetime.now(UTC) - timedelta(hours=1)
        await connection.execute("UPDATE cursor SET time = $1 WHERE endpoint_id = $2", hour_ago, key.endpoint_id)
        made = await add_rows(connection, key, rows, time=hour_ago, data=b"x" * 100)
    finally:
        await connection.close()
    now = datetime.now(UTC)
    done = [attempt_at(row, start_time=now, duration_s=0.2) for row in made[:delivered]]
    failed = attempt_at(made[delivered], start_time=now, duration_s=4.0, outcome=Outcome.TIMEOUT, status_code=None)
    await attempts.append(api.database, [*done, failed])


async def test_an_endpoints_status_tells_how_it_fared_and_when_its_backlog_will_be_gone(
    api: Api, database: TestDatabase
) -> None:
    await api.tenant()
    await with_backlog(api, database, 80, 60)
    status = await endpoint_status(api)
    recent = status.recent
    assert (status.backlog_count, recent.attempt_count, recent.succeeded_count) == (20, 61, 60)
    assert recent.window.ToTimedelta() == timedelta(seconds=300)
    assert recent.success_ratio == pytest.approx(60 / 61)
    assert recent.delivered_per_second == pytest.approx(60 / 300)
    assert recent.attempts_per_second == pytest.approx(61 / 300)
    assert recent.committed_per_second == 0
    assert recent.attempt_duration_p50.ToTimedelta() == timedelta(seconds=0.2)
    assert recent.attempt_duration_p99.ToTimedelta() == timedelta(seconds=4)
    assert (recent.payload_bytes_p50, recent.payload_bytes_max) == (100, 100)
    assert (recent.endpoint_count, recent.truncated) == (1, False)
    assert status.time_to_drain.ToTimedelta() == status.expected_wait.ToTimedelta() == timedelta(seconds=100)
    assert status.next_attempt_time == status.blocked_by.next_attempt_time


async def test_what_comes_in_as_fast_as_it_leaves_never_drains_and_waits_all_the_same(
    api: Api, database: TestDatabase
) -> None:
    await api.tenant()
    await with_backlog(api, database, 80, 60)
    await api.publish(*[event(f"new-{n}") for n in range(60)])
    status = await endpoint_status(api)
    assert status.recent.committed_per_second == pytest.approx(status.recent.delivered_per_second)
    assert not status.HasField("time_to_drain")
    assert status.expected_wait.ToTimedelta() == timedelta(seconds=400)


async def test_a_paused_endpoint_says_nothing_of_when_its_backlog_will_be_gone(
    api: Api, database: TestDatabase
) -> None:
    await api.tenant()
    await with_backlog(api, database, 80, 60)
    await api.endpoints.PauseEndpoint(endpoint_pb2.PauseEndpointRequest(name=ENDPOINT))
    status = await endpoint_status(api)
    assert status.recent.attempt_count == 61
    for name in ("time_to_drain", "expected_wait", "next_attempt_time"):
        assert not status.HasField(name), name


async def test_an_endpoint_that_never_was_attempted_has_no_durations(api: Api) -> None:
    await api.tenant()
    await api.endpoint()
    status = await endpoint_status(api)
    assert status.HasField("recent")
    assert not [name for name in NONE_SET if status.recent.HasField(name)]
    assert status.HasField("time_to_drain"), "there is no backlog"
    assert status.time_to_drain.ToTimedelta() == timedelta(0)
    assert not status.HasField("next_attempt_time")


async def test_a_tenants_status_is_that_of_all_its_endpoints(api: Api, database: TestDatabase) -> None:
    await api.tenant()
    await with_backlog(api, database, 80, 60)
    await with_backlog(api, database, 100, 10, "slow")
    await api.endpoints.PauseEndpoint(endpoint_pb2.PauseEndpointRequest(name="tenants/acme/endpoints/slow"))
    status = await tenant_status(api)
    assert (status.name, status.state) == ("tenants/acme/status", tenant_pb2.Tenant.STATE_ACTIVE)
    assert (status.endpoints.total, status.endpoints.active, status.endpoints.paused) == (2, 1, 1)
    assert (status.backlog_count, status.held_count) == (110, 90)
    assert status.oldest_pending_age.ToTimedelta() >= timedelta(hours=1)
    assert [(b.endpoint, b.backlog_count, b.state) for b in status.largest] == [
        ("tenants/acme/endpoints/slow", 90, endpoint_pb2.Endpoint.STATE_PAUSED),
        (ENDPOINT, 20, endpoint_pb2.Endpoint.STATE_ACTIVE),
    ]
    assert (status.recent.attempt_count, status.recent.endpoint_count) == (72, 2)
    assert status.time_to_drain.ToTimedelta() == timedelta(seconds=100), "of what is not paused"
    await api.tenants.PauseTenant(tenant_pb2.PauseTenantRequest(name="tenants/acme"))
    paused = await tenant_status(api)
    assert (paused.state, paused.held_count) == (tenant_pb2.Tenant.STATE_PAUSED, 110)
    assert not paused.HasField("time_to_drain")


async def test_the_bounds_are_those_of_the_settings(database: TestDatabase) -> None:
    bounds = {"statistics_attempts_max": 100, "statistics_window_s": 600, "statistics_worst_max": 1}
    async with serving(database.options, **bounds) as api:
        await api.tenant()
        await with_backlog(api, database, 200, 150)
        await with_backlog(api, database, 9, 0, "other")
        status = await endpoint_status(api)
        assert (status.recent.attempt_count, status.recent.truncated) == (100, True)
        assert status.recent.window.ToTimedelta() < timedelta(seconds=60)
        whole = await tenant_status(api)
        assert (len(whole.oldest), len(whole.largest), whole.endpoints.total) == (1, 1, 2)
        assert whole.recent.attempt_count == 50 + 1, "they share the limit"
        assert whole.recent.window.ToTimedelta() == timedelta(seconds=600)


async def test_many_ask_for_a_tenants_status_and_few_at_a_time_are_worked_out(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = await tenants_for(api, PLACES)
    at_once = most = 0
    read = store.read

    async def counted(*arguments: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            return await read(*arguments)
        finally:
            at_once -= 1

    monkeypatch.setattr(store, "read", counted)
    assert len(await asyncio.gather(*[tenant_status(api, name) for name in names])) == PLACES
    assert most == STATISTICS_MAX


async def test_more_calls_for_a_tenants_status_than_may_wait_are_refused_and_none_waits_longer_than_a_call_may_take(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = 0

    async def stay(*_arguments: Any) -> Any:
        nonlocal entered
        entered += 1
        await never()

    async def have_entered() -> bool:
        return entered == STATISTICS_MAX

    async with serving(database.options, statistics_timeout_s=1) as api:
        names = await tenants_for(api, PLACES + 3)
        monkeypatch.setattr(store, "read", stay)
        stuck = [asyncio.create_task(tenant_status(api, name, timeout=30)) for name in names[:STATISTICS_MAX]]
        await until(have_entered)
        refusals = [
            asyncio.create_task(refused(tenant_status(api, name, timeout=30))) for name in names[STATISTICS_MAX:]
        ]
        done, waiting = await until_done(refusals, 3)
        assert (len(done), len(waiting)) == (3, STATISTICS_WAITING_MAX), "those beyond are refused at once"
        for error in [*[task.result() for task in done], *await asyncio.gather(*waiting)]:
            assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_STATUSES_MAX")
            assert error.detail(error_details_pb2.RetryInfo).retry_delay.ToTimedelta() == timedelta(seconds=RETRY_S)
        for task in stuck:
            task.cancel()
        await asyncio.wait(stuck)
        monkeypatch.undo()
        assert (await tenant_status(api, names[0], timeout=30)).name, "their turns are free again"


async def test_a_tenant_that_asks_and_asks_keeps_no_other_from_its_status(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = await tenants_for(api, STATISTICS_EACH_MAX + 1)
    monkeypatch.setattr(store, "read", never)
    many = [asyncio.create_task(tenant_status(api, names[0], timeout=30)) for _ in range(PLACES)]
    beyond, waiting = await until_done(many, PLACES - STATISTICS_EACH_MAX)
    assert len(waiting) == STATISTICS_EACH_MAX
    codes = {task.exception().code() for task in beyond}
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    other = asyncio.create_task(tenant_status(api, names[1], timeout=30))
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    monkeypatch.undo()
    assert (await other).name == f"tenants/{names[1]}/status"


async def test_endpoint_statuses_that_are_asked_for_in_great_number_come_without_statistics(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would take the pool and the core from the deliveries."""
    async with serving(database.options, statistics_timeout_s=20) as api:
        await api.tenant()
        await api.endpoint()
        monkeypatch.setattr(recent, "of_endpoint", never)
        many = [asyncio.create_task(endpoint_status(api, timeout=30)) for _ in range(PLACES)]
        beyond, waiting = await until_done(many, PLACES - STATISTICS_EACH_MAX)
        assert len(waiting) == STATISTICS_EACH_MAX
        assert not any(task.result().HasField("recent") for task in beyond)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        monkeypatch.undo()
        assert (await endpoint_status(api)).HasField("recent"), "their turns are free again"


async def test_a_callers_deadline_bounds_its_tenants_status(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await api.tenant()
    left: list[float] = []

    async def read(_database: Any, _name: str, _limits: Any, deadline: float) -> Any:
        left.append(deadline - asyncio.get_running_loop().time())
        raise NotFoundError("Tenant", "tenants/acme")

    monkeypatch.setattr(store, "read", read)
    for options in ({}, {"timeout": 2.0}):
        await refused(tenant_status(api, **options))
    assert left == [pytest.approx(StatisticsLimits().call_s, abs=0.5), pytest.approx(2.0 - ANSWER_MARGIN_S, abs=0.5)]


async def test_statuses_are_for_those_who_may_see_endpoints(database: TestDatabase, tmp_path: Path) -> None:
    async with guarded(database, tmp_path, "tokens", **with_tokens(tmp_path)) as api:
        await tenant_made(api, bearer(BOB))
        assert (await tenant_status(api, metadata=bearer(BOB))).name == "tenants/acme/status"
        for call in (tenant_status, endpoint_status):
            error = await refused(call(api, metadata=bearer(ALICE)))
            assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
            assert "tenants/acme" in error.metadata["resource"]
            assert (await refused(call(api))).code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("name", ["tenants/acme", "tenants/-/status", "tenants/acme/endpoints/a/status", ""])
async def test_a_status_of_another_name_is_refused(api: Api, name: str) -> None:
    call = api.deliveries.GetTenantStatus(tenant_status_pb2.GetTenantStatusRequest(name=name))
    error = await refused(call)
    assert (error.code, error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["name"])


async def test_a_tenant_that_does_not_exist_has_no_status(api: Api) -> None:
    error = await refused(tenant_status(api))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
