"""The unanswered requests of a stream, what a refusal calls for, and how long a retry waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.cli.records import Batch, EventRecord
from dispatcher.cli.status import Code, ServiceStatus, Violation
from dispatcher.cli.window import RETRY_DELAY_MAX_S, RetryPolicy, Verdict, Window, judge


def batch(first: int, count: int = 1, line_bytes: int = 10) -> Batch:
    return Batch(tuple(EventRecord(line, str(line), "t", b"") for line in range(first, first + count)), line_bytes)


def send_all(window: Window) -> list[int]:
    """First lines of what may be sent now."""
    sent = []
    while (request := window.next_unsent()) is not None:
        window.mark_sent()
        sent.append(request.batch.first_line)
    return sent


def test_a_window_is_bounded_in_requests_and_bytes():
    window = Window(requests_max=2, bytes_max=25)
    window.add(batch(1))
    assert not window.wants_more  # not sent yet
    send_all(window)
    assert window.wants_more
    window.add(batch(2))
    send_all(window)
    assert not window.wants_more
    window.settle()
    assert window.wants_more
    window.add(batch(3, line_bytes=15))
    send_all(window)
    window = Window(requests_max=9, bytes_max=25)
    window.add(batch(1, line_bytes=30))
    send_all(window)
    assert not window.wants_more


def test_after_a_rewind_everything_unanswered_is_sent_again_in_order_with_new_sequences():
    window = Window()
    for line in (1, 2, 3):
        window.add(batch(line))
    assert send_all(window) == [1, 2, 3]
    assert window.expects(1)
    window.settle()
    window.rewind()
    assert not window.expects(2)
    assert send_all(window) == [2, 3]
    assert window.expects(4)


def test_halves_travel_alone_and_before_the_rest():
    window = Window()
    window.add(batch(1, 3))
    window.add(batch(4))
    send_all(window)
    window.rewind()
    window.halve_front()
    assert send_all(window) == [1]
    window.settle()
    assert send_all(window) == [2]
    assert not window.wants_more
    window.settle()
    assert send_all(window) == [4]


@given(count=st.integers(2, 50), bad=st.integers(0, 49))
def test_halving_finds_the_one_bad_event_after_publishing_all_before_it(count: int, bad: int):
    bad %= count
    window = Window()
    window.add(batch(0, count))
    accepted: list[int] = []
    while True:
        send_all(window)
        lines = [record.line for record in window.front.batch.records]
        if bad not in lines:
            accepted += lines
            window.settle()
            continue
        window.rewind()
        if lines == [bad]:
            break
        window.halve_front()
    assert accepted == list(range(bad))


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (ServiceStatus(Code.UNAVAILABLE), Verdict.RETRY),
        (ServiceStatus(Code.UNAVAILABLE, reason="COMMIT_UNKNOWN"), Verdict.RETRY),
        (ServiceStatus(Code.RESOURCE_EXHAUSTED, reason="PUBLISH_QUEUE_FULL"), Verdict.RETRY),
        (ServiceStatus(Code.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)"), Verdict.STOP),
        (ServiceStatus(Code.INTERNAL, "RST_STREAM"), Verdict.RETRY),
        (ServiceStatus(Code.INTERNAL, reason="INTERNAL"), Verdict.STOP),
        (ServiceStatus(Code.OK), Verdict.RETRY),
        (ServiceStatus(Code.INVALID_ARGUMENT, violations=(Violation("events[0].id", ""),)), Verdict.BLAME_EVENT),
        (ServiceStatus(Code.INVALID_ARGUMENT, violations=(Violation("parent", ""),)), Verdict.STOP),
        (ServiceStatus(Code.ALREADY_EXISTS), Verdict.BLAME_EVENT),
        (ServiceStatus(Code.FAILED_PRECONDITION), Verdict.BLAME_EVENT),
        (ServiceStatus(Code.NOT_FOUND), Verdict.STOP),
        (ServiceStatus(Code.UNAUTHENTICATED), Verdict.STOP),
    ],
)
def test_a_refusal_is_judged_by_who_speaks_and_what_about(status: ServiceStatus, verdict: Verdict):
    assert judge(status) is verdict


def test_a_retry_waits_at_least_as_long_as_asked_and_grows_to_a_bound():
    policy = RetryPolicy(backoff_min_s=0.1, backoff_max_s=5.0)
    asked = ServiceStatus(Code.UNAVAILABLE, retry_delay_s=3.0)
    assert policy.delay_s(1, asked, 0.0) == 3.0
    assert policy.delay_s(3, ServiceStatus(Code.UNAVAILABLE), 0.5) == pytest.approx(0.2)
    assert policy.delay_s(10_000, ServiceStatus(Code.UNAVAILABLE), 1.0) == 5.0
    endless = ServiceStatus(Code.UNAVAILABLE, retry_delay_s=1e9)
    assert policy.delay_s(1, endless, 0.0) == RETRY_DELAY_MAX_S
