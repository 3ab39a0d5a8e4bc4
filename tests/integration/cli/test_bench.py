"""`dispatcher bench` against a service that fails: what was made is removed, and what can't be is named."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from google.rpc import code_pb2
from webhooks.v1 import endpoint_pb2, publisher_pb2, tenant_pb2

from tests.support.cli import CliResult, interruptible_cli, run_cli
from tests.support.fake_service import FakeResources, fake_service, refusal

WAIT_S = 20.0
SMALL = ("--endpoints", "3", "--seconds", "0.1", "--settle", "0.1", "--timeout", "5")
MADE = {
    "TenantService.CreateTenant": tenant_pb2.Tenant(),
    "EndpointService.CreateEndpoint": endpoint_pb2.Endpoint(),
    "PublisherService.Publish": publisher_pb2.PublishResponse(),
    "EndpointService.DeleteEndpoint": empty_pb2.Empty(),
    "TenantService.DeleteTenant": empty_pb2.Empty(),
}
UNAVAILABLE = refusal(code_pb2.UNAVAILABLE, "the database is away", "DATABASE_UNAVAILABLE")


def bench(resources: FakeResources, *arguments: str) -> CliResult:
    with fake_service(resources=resources) as target:
        return run_cli("bench", "--target", target, *SMALL, *arguments)


def removed(resources: FakeResources) -> list[str]:
    """Names without the tenant's random part, in the order of the calls."""
    names = [request.name for method, request in resources.calls if ".Delete" in method]
    return [re.sub(r"bench-[0-9a-f]+", "T", name) for name in names]


ALL = ["tenants/T/endpoints/e2", "tenants/T/endpoints/e1", "tenants/T/endpoints/e0", "tenants/T"]


def test_what_may_have_been_made_is_removed_and_the_first_error_is_told() -> None:
    timed_out = refusal(code_pb2.DEADLINE_EXCEEDED, "too late", "COMMIT_UNKNOWN")
    resources = FakeResources(MADE | {"EndpointService.CreateEndpoint": [endpoint_pb2.Endpoint(), timed_out]})
    result = bench(resources)
    assert removed(resources) == ALL[1:]
    assert result.code == 3
    assert "EndpointService.CreateEndpoint" in result.err


def test_a_tenant_whose_creation_timed_out_is_removed_too() -> None:
    timed_out = refusal(code_pb2.DEADLINE_EXCEEDED, "too late", "COMMIT_UNKNOWN")
    resources = FakeResources(MADE | {"TenantService.CreateTenant": timed_out})
    assert bench(resources).code == 3
    assert removed(resources) == ALL[-1:]


def test_what_cannot_be_removed_is_named_and_costs_neither_the_rest_nor_the_verdict() -> None:
    answers = [empty_pb2.Empty(), UNAVAILABLE, empty_pb2.Empty()]
    resources = FakeResources(MADE | {"EndpointService.DeleteEndpoint": answers})
    result = bench(resources)
    assert removed(resources) == ALL
    assert result.code == 1
    assert re.search(
        r"left behind: tenants/bench-\w+/endpoints/e1: .*the database is away", result.err.replace("\n", " ")
    )
    assert "published" in result.out


def test_what_is_gone_already_is_not_left_behind() -> None:
    gone = refusal(code_pb2.NOT_FOUND, "no such endpoint", "ENDPOINT_NOT_FOUND")
    resources = FakeResources(MADE | {"EndpointService.DeleteEndpoint": gone})
    assert "left behind" not in bench(resources).err
    assert removed(resources) == ALL


@pytest.mark.parametrize(("listen", "url"), [("127.0.0.1:0", "http://127.0.0.1:"), ("[::1]:0", "http://[::1]:")])
def test_the_default_url_is_where_the_receiver_listens(listen: str, url: str) -> None:
    resources = FakeResources(dict(MADE))
    bench(resources, "--listen", listen)
    urls = [request.endpoint.http.url for method, request in resources.calls if "CreateEndpoint" in method]
    assert [re.sub(r":\d+/", ":PORT/", each) for each in urls] == [f"{url}PORT/e/{number}" for number in range(3)]


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "nosuch.invalid:0", "nowhere", "taken"])
def test_where_it_cannot_listen_or_be_reached_nothing_is_made(listen: str) -> None:
    resources = FakeResources(dict(MADE))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}" if listen == "taken" else listen
        result = bench(resources, "--listen", address)
    assert (result.code, resources.calls) == (2, [])
    assert result.err.startswith("error: --")


@dataclass(slots=True)
class Hanging(FakeResources):
    """Calls of one method are not answered before `released`. `published` and `reached`: one to publish, or to hang,
    has come."""

    hangs: str = ""
    published: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def _answer(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        if method == "PublisherService.Publish":
            self.published.set()
        if method == self.hangs:
            self.calls.append((method, request))
            self.reached.set()
            self.released.wait(WAIT_S)
            return self.answers[method]
        return FakeResources._answer(self, method, request, context)


@contextmanager
def running(resources: Hanging) -> Iterator[subprocess.Popen[str]]:
    """The command as a process, whose call hangs."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    options = ("--endpoints", "3", "--seconds", "600", "--timeout", "60")
    with fake_service(resources=resources) as target:
        process = subprocess.Popen(
            interruptible_cli("bench", "--target", target, *options),
            env=environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(WAIT_S)
            resources.released.set()


def test_ctrl_c_does_not_wait_for_calls_on_their_way_and_removes_after_them() -> None:
    resources = Hanging(dict(MADE), hangs="PublisherService.Publish")
    with running(resources) as process:
        assert resources.reached.wait(WAIT_S)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130, "the calls have a minute"
        methods = [method for method, _ in resources.calls]
    assert removed(resources) == ALL
    assert "PublisherService.Publish" not in methods[methods.index("EndpointService.DeleteEndpoint") :]


def test_a_second_ctrl_c_says_what_is_left() -> None:
    resources = Hanging(dict(MADE), hangs="EndpointService.DeleteEndpoint")
    with running(resources) as process:
        assert resources.published.wait(WAIT_S)
        process.send_signal(signal.SIGINT)
        assert resources.reached.wait(WAIT_S)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=WAIT_S)
        assert process.returncode == 130
    assert re.search(r"left behind: tenants/bench-\w+", err)
