"""The webhook as the receiver sees it: which headers, which bytes, what a copy may differ in."""

import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError
from svix.webhooks import Webhook as SvixWebhook

from dispatcher.delivery.render import render
from dispatcher.security.signing import format_secret
from tests.support.deliveries import NOW, row_of
from tests.support.endpoints import SECRET_TEXT, runtime_of, sealed_key

NOW_S = NOW.timestamp()
OLD_SECRET = b"the retiring secret, 32 bytes ..."


def rendered(runtime=None, row=None, number=1, timestamp_s=NOW_S, traceparent=None):
    runtime = runtime or runtime_of()
    return render(runtime, runtime.url, row or row_of(), number, timestamp_s, traceparent)


def verify(request, secret=SECRET_TEXT):
    """A third party's verdict on the signature, its clock check aside (the timestamp is the test's)."""
    webhook = Webhook(secret)
    webhook_id, timestamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
    signature = webhook.sign(webhook_id, NOW.fromtimestamp(int(timestamp), NOW.tzinfo), request.body.decode())
    if signature not in request.headers["webhook-signature"].split(" "):
        raise WebhookVerificationError("no signature matches")


def test_the_headers_are_exactly_these():
    request = rendered(row=row_of(41, ordering_key="customer-7"), number=3, timestamp_s=NOW_S + 0.9)
    signature = request.headers["webhook-signature"]
    assert request.headers == {
        "content-type": "application/json",
        "user-agent": "dispatcher/0.1.0",
        "webhook-attempt": "3",
        "webhook-event-type": "order.paid",
        "webhook-id": "event-41",
        "webhook-ordering-key": "customer-7",
        "webhook-sequence": "41",
        "webhook-signature": signature,
        "webhook-timestamp": str(int(NOW_S)),
    }
    assert signature.startswith("v1,")
    assert request.body == b'{"amount":1}'
    assert (request.timeout_s, request.sender) == (5.0, runtime_of().key)
    assert request.url.text == "https://receiver.example/hook"


def test_without_an_ordering_key_there_is_no_such_header():
    assert "webhook-ordering-key" not in rendered().headers


def test_the_endpoints_own_headers_go_along():
    assert rendered(runtime_of(headers={"X-Team": "billing"})).headers["X-Team"] == "billing"


def test_the_content_type_is_the_published_one():
    row = row_of(data=b"\x00\xff")
    row.payload.content_type = "application/cloudevents+json; charset=utf-8"
    request = rendered(row=row)
    assert request.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert request.body == b"\x00\xff"


def test_only_the_traceparent_given_is_sent_and_nothing_else_of_a_trace():
    traceparent = f"00-{'1' * 32}-{'2' * 16}-01"
    assert rendered(traceparent=traceparent).headers["traceparent"] == traceparent
    for request in (rendered(), rendered(traceparent=traceparent)):
        assert not {"baggage", "tracestate"} & set(request.headers)
    assert "traceparent" not in rendered().headers


@given(
    data=st.binary(max_size=200),
    seq=st.integers(1, 2**62),
    ordering_key=st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
    attempts=st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
    ages_s=st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)),
)
def test_a_copy_differs_in_timestamp_signature_and_attempt_alone(data, seq, ordering_key, attempts, ages_s):
    row = row_of(seq, data=data, ordering_key=ordering_key)
    runtime = runtime_of(headers={"X-Team": "billing"})
    first, second = (
        rendered(runtime, row, number, NOW_S + age_s) for number, age_s in zip(attempts, ages_s, strict=True)
    )
    may_differ = {"webhook-timestamp", "webhook-signature", "webhook-attempt"}
    assert first.headers.keys() == second.headers.keys()
    assert {n: v for n, v in first.headers.items() if n not in may_differ} == {
        n: v for n, v in second.headers.items() if n not in may_differ
    }
    assert (first.body, first.url) == (second.body, second.url)


def test_a_row_read_anew_by_another_owner_renders_to_the_same_bytes():
    row, again = row_of(5), row_of(5)
    assert rendered(row=row) == rendered(row=again)
    assert row is not again


def test_third_party_verifiers_accept_the_signature_now():
    request = rendered(timestamp_s=time.time())
    assert Webhook(SECRET_TEXT).verify(request.body, dict(request.headers)) == {"amount": 1}
    SvixWebhook(SECRET_TEXT).verify(request.body, dict(request.headers))


def test_during_a_rotation_both_keys_sign_and_the_old_one_drops_out_at_its_time():
    expiry = NOW + timedelta(hours=1)
    runtime = runtime_of(keys=[sealed_key("new"), sealed_key("old", OLD_SECRET, expires=expiry)])
    before = rendered(runtime, number=1, timestamp_s=expiry.timestamp() - 1)
    after = rendered(runtime, number=2, timestamp_s=expiry.timestamp())
    assert len(before.headers["webhook-signature"].split(" ")) == 2
    verify(before, SECRET_TEXT)
    verify(before, format_secret(OLD_SECRET))
    assert len(after.headers["webhook-signature"].split(" ")) == 1
    verify(after, SECRET_TEXT)
    with pytest.raises(WebhookVerificationError):
        verify(after, format_secret(OLD_SECRET))


def test_nothing_is_rendered_unsigned():
    runtime = runtime_of(keys=[sealed_key(expires=NOW)])
    with pytest.raises(ValueError, match="no live signing key"):
        rendered(runtime, timestamp_s=NOW_S)


def test_a_row_without_its_payload_is_refused():
    with pytest.raises(ValueError, match="payload"):
        rendered(row=row_of(payload=None))
