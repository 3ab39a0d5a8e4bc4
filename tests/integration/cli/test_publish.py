"""`dispatcher publish` over a real channel: order, retries, resumption, blame, and what it says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.rpc import code_pb2
from webhooks.v1 import tenant_pb2

from tests.support.cli import CliResult, interruptible_cli, run_cli
from tests.support.fake_service import (
    Break,
    Decision,
    EndInPeace,
    FakePublisher,
    FakeResources,
    Hang,
    Request,
    bad_request,
    fake_service,
    refusal,
    retry_info,
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def write_events(path: Path, count: int) -> Path:
    file = path / "events.jsonl"
    file.write_text("".join(json.dumps({"type": "order.paid", "data": {"n": n}}) + "\n" for n in range(1, count + 1)))
    return file


def published(publisher: FakePublisher) -> list[int]:
    return [json.loads(event.data)["n"] for event in publisher.events]


def publish(publisher: FakePublisher, file: Path, *arguments: str) -> CliResult:
    with fake_service(publisher) as target:
        return run_cli("publish", "-f", str(file), "-t", "acme", "--target", target, "--json", *arguments)


def once(number: int, decision: Decision) -> Callable[[Request, int], Decision]:
    """Do this to the request of that number, and commit all others."""
    return lambda _request, seen: decision if seen == number else None


def test_all_events_are_published_in_the_order_of_the_lines_with_ids(tmp_path: Path):
    publisher = FakePublisher()
    result = publish(publisher, write_events(tmp_path, 1000))
    assert result.code == 0
    assert published(publisher) == list(range(1, 1001))
    assert publisher.parents == {"tenants/acme"}
    assert all(len(event.id) == 36 and event.id[14] == "7" for event in publisher.events)
    summary = result.json
    assert (summary["accepted"], summary["duplicates"], summary["failed"], summary["retries"]) == (1000, 0, 0, 0)


def test_a_broken_stream_is_resumed_from_the_first_unanswered_request(tmp_path: Path):
    publisher = FakePublisher(once(5, Break()))
    result = publish(publisher, write_events(tmp_path, 1000), "--batch", "10")
    assert result.code == 0
    assert published(publisher) == list(range(1, 1001))
    assert len(publisher.stream_times) == 2
    assert (result.json["accepted"], result.json["duplicates"], result.json["retries"]) == (1000, 0, 1)


def test_what_was_committed_but_not_answered_is_stored_and_counted_once(tmp_path: Path):
    publisher = FakePublisher(once(3, Break(after_commit=True)))
    result = publish(publisher, write_events(tmp_path, 100), "--batch", "10")
    assert result.code == 0
    assert published(publisher) == list(range(1, 101))
    assert (result.json["accepted"], result.json["duplicates"]) == (100, 0)


def test_resource_exhausted_waits_as_long_as_retry_info_asks(tmp_path: Path):
    full = refusal(code_pb2.RESOURCE_EXHAUSTED, "the queue is full", "PUBLISH_QUEUE_FULL", retry_info(0.7))
    publisher = FakePublisher(once(2, full))
    result = publish(publisher, write_events(tmp_path, 50), "--batch", "10")
    assert result.code == 0
    assert published(publisher) == list(range(1, 51))
    first, second = publisher.stream_times
    assert second - first >= 0.7


def test_a_server_that_ends_the_stream_in_peace_gets_the_rest_on_a_new_one(tmp_path: Path):
    publisher = FakePublisher(once(4, EndInPeace()))
    result = publish(publisher, write_events(tmp_path, 100), "--batch", "10")
    assert result.code == 0
    assert published(publisher) == list(range(1, 101))


def test_silence_counts_as_a_broken_stream(tmp_path: Path):
    publisher = FakePublisher(once(1, Hang()))
    result = publish(publisher, write_events(tmp_path, 20), "--timeout", "0.3")
    assert result.code == 0
    assert published(publisher) == list(range(1, 21))
    assert result.json["retries"] == 1


def test_retries_are_bounded_and_the_line_to_go_on_from_is_named(tmp_path: Path):
    publisher = FakePublisher(lambda request, _seen: None if json.loads(request.events[0].data)["n"] == 1 else Break())
    result = publish(publisher, write_events(tmp_path, 30), "--batch", "10", "--retries", "2")
    assert result.code == 3
    assert published(publisher) == list(range(1, 11))
    assert (result.json["failed"], result.json["resume_line"]) == (1, 11)
    assert re.search(r"line 11: gave up after [23] retries: the connection broke", result.err)


def test_no_service_at_all_is_said_and_ends_with_3(tmp_path: Path):
    with fake_service(FakePublisher()) as gone:
        pass
    file = write_events(tmp_path, 3)
    result = run_cli("publish", "-f", str(file), "-t", "acme", "--target", gone, "--retries", "1")
    assert result.code == 3
    assert "gave up after 1 retries" in result.err
    assert "Traceback" not in result.err


def refuse_number(bad: int) -> Callable[[Request, int], Decision]:
    def decide(request: Request, _seen: int) -> Decision:
        numbers = [json.loads(event.data)["n"] for event in request.events]
        if bad not in numbers:
            return None
        violation = bad_request(f"events[{numbers.index(bad)}].type", "must not begin with dispatcher.")
        return refusal(code_pb2.INVALID_ARGUMENT, "events: bad", "INVALID_REQUEST", violation)

    return decide


def test_a_refused_event_is_found_in_its_batch_and_nothing_after_it_is_published(tmp_path: Path):
    publisher = FakePublisher(refuse_number(137))
    result = publish(publisher, write_events(tmp_path, 500))
    assert result.code == 2
    assert published(publisher) == list(range(1, 137))
    assert "line 137: events: bad" in result.err
    assert "events[0].type: must not begin with dispatcher." in result.err
    assert (result.json["accepted"], result.json["failed"], result.json["resume_line"]) == (136, 1, 137)


def test_keep_going_passes_over_the_refused_event_only(tmp_path: Path):
    publisher = FakePublisher(refuse_number(137))
    result = publish(publisher, write_events(tmp_path, 500), "--keep-going")
    assert result.code == 2
    assert published(publisher) == [n for n in range(1, 501) if n != 137]
    assert (result.json["accepted"], result.json["failed"]) == (499, 1)


def test_an_unknown_tenant_ends_the_run_at_once(tmp_path: Path):
    publisher = FakePublisher(once(1, refusal(code_pb2.NOT_FOUND, "tenant 'tenants/acme' does not exist", "GONE")))
    result = publish(publisher, write_events(tmp_path, 500), "--keep-going")
    assert result.code == 4
    assert publisher.events == []
    assert len(publisher.stream_times) == 1
    assert "tenant 'tenants/acme' does not exist" in result.err


def test_a_bad_line_is_named_and_all_before_it_is_published(tmp_path: Path):
    file = write_events(tmp_path, 20)
    lines = file.read_text().splitlines()
    lines[12] = '{"type": "order.paid", "dat": 1}'
    file.write_text("\n".join(lines))
    publisher = FakePublisher()
    result = publish(publisher, file)
    assert result.code == 2
    assert published(publisher) == list(range(1, 13))
    assert "line 13: unknown field 'dat'; did you mean `data`?" in result.err
    assert result.json["resume_line"] == 13
    again = publish(publisher, file, "--start-line", "14")
    assert again.code == 0
    assert published(publisher) == [n for n in range(1, 21) if n != 13]


def test_ids_of_the_file_are_kept_and_duplicates_counted(tmp_path: Path):
    file = tmp_path / "events.jsonl"
    file.write_text('{"id":"a","type":"t","data_text":"x"}\n{"id":"b","type":"t","data_base64":"AAE="}\n')
    publisher = FakePublisher()
    assert publish(publisher, file).json["accepted"] == 2
    assert publish(publisher, file).json["duplicates"] == 2
    assert [(event.id, event.data) for event in publisher.events] == [("a", b"x"), ("b", b"\x00\x01")]


def test_the_rate_is_held(tmp_path: Path):
    result = publish(FakePublisher(), write_events(tmp_path, 41), "--rate", "100")
    assert result.code == 0
    assert 0.3 <= result.json["duration_s"] < 5


def test_the_only_tenant_is_the_default(tmp_path: Path):
    publisher = FakePublisher()
    one = tenant_pb2.ListTenantsResponse(tenants=[tenant_pb2.Tenant(name="tenants/solo")])
    two = tenant_pb2.ListTenantsResponse(
        tenants=[tenant_pb2.Tenant(name="tenants/a"), tenant_pb2.Tenant(name="tenants/b")]
    )
    resources = FakeResources({"TenantService.ListTenants": [one, two]})
    with fake_service(publisher, resources) as target:
        first = run_cli("publish", "-f", str(write_events(tmp_path, 3)), "--target", target)
        second = run_cli("publish", "-f", str(write_events(tmp_path, 3)), "--target", target)
    assert first.code == 0
    assert publisher.parents == {"tenants/solo"}
    assert second.code == 2
    assert "--tenant is needed" in second.err


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED])
def test_a_stream_broken_by_something_on_the_way_is_resumed(tmp_path: Path, code: grpc.StatusCode):
    publisher = FakePublisher(once(2, Break(code)))
    result = publish(publisher, write_events(tmp_path, 40), "--batch", "10")
    assert result.code == 0
    assert published(publisher) == list(range(1, 41))


def test_standard_input_is_published_as_it_comes():
    publisher = FakePublisher()
    with fake_service(publisher) as target:
        command = [sys.executable, "-m", "dispatcher", "publish", "-f", "-", "-t", "acme", "--target", target]
        with subprocess.Popen(
            command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            process.stdin.write('{"type":"t","data":{"n":1}}\n')
            process.stdin.flush()
            wait_until(lambda: published(publisher) == [1])
            out, _ = process.communicate('{"type":"t","data":{"n":2}}', timeout=20)
    assert process.returncode == 0
    assert published(publisher) == [1, 2]
    assert "2 accepted, 0 duplicates, 0 failed" in out


def test_ctrl_c_ends_it_at_once_and_names_the_line_to_go_on_from(tmp_path: Path):
    publisher = FakePublisher(lambda _request, seen: Hang() if seen == 3 else None)
    file = write_events(tmp_path, 100)
    with fake_service(publisher) as target:
        options = ("-f", str(file), "-t", "acme", "--target", target, "--batch", "10", "--json")
        with subprocess.Popen(
            interruptible_cli("publish", *options),
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            wait_until(lambda: publisher.hung)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    summary = json.loads(out)
    assert summary["resume_line"] == summary["accepted"] + 1
    assert "Traceback" not in err


def wait_until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
