"""TestEndpoint's ping: like a webhook, but no event, no sequence, and every outcome is a result."""

import orjson
import pytest
from standardwebhooks import Webhook

from dispatcher.delivery.exchange import Exchange, ExchangeKind
from dispatcher.delivery.prober import Prober
from dispatcher.model import Outcome
from tests.support.deliveries import NOW
from tests.support.endpoints import SECRET_TEXT, runtime_of, sealed_key
from tests.support.exchanges import Receiver


async def test_a_ping_is_signed_as_a_webhook_is_and_uses_up_no_sequence():
    receiver = Receiver()
    result = await Prober(receiver).ping(runtime_of(headers={"X-Team": "billing"}, timeout_s=3.0))
    (request,) = receiver.requests
    assert set(request.headers) == {
        "X-Team",
        "content-type",
        "user-agent",
        "webhook-attempt",
        "webhook-event-type",
        "webhook-id",
        "webhook-signature",
        "webhook-timestamp",
    }
    assert request.headers["webhook-event-type"] == "dispatcher.ping"
    assert request.headers["webhook-id"] == result.event_id
    assert "." not in result.event_id
    assert request.timeout_s == 3.0
    verified = Webhook(SECRET_TEXT).verify(request.body, dict(request.headers))
    assert verified == orjson.loads(request.body)
    assert (verified["type"], verified["id"]) == ("dispatcher.ping", result.event_id)


async def test_status_latency_and_excerpt_are_told_also_of_a_success():
    result = await Prober(Receiver(Exchange(ExchangeKind.RESPONSE, 0.2, 200, excerpt=b"pong"))).ping(runtime_of())
    assert (result.outcome, result.status_code, result.latency_s) == (Outcome.SUCCEEDED, 200, 0.2)
    assert result.response_excerpt == b"pong"
    assert result.error is None


async def test_a_failure_is_a_result():
    answer = Exchange(ExchangeKind.NAME_NOT_RESOLVED, 0.1, error="no such name")
    result = await Prober(Receiver(answer)).ping(runtime_of())
    assert (result.outcome, result.status_code, result.error) == (Outcome.NAME_NOT_RESOLVED, None, "no such name")


async def test_a_url_refused_now_is_told_without_a_request():
    receiver = Receiver()
    result = await Prober(receiver).ping(runtime_of(url="gopher://x/"))
    assert result.outcome is Outcome.ADDRESS_REFUSED
    assert receiver.requests == []


async def test_two_pings_have_different_ids():
    prober = Prober(Receiver())
    assert (await prober.ping(runtime_of())).event_id != (await prober.ping(runtime_of())).event_id


async def test_no_ping_goes_out_unsigned():
    receiver = Receiver()
    with pytest.raises(ValueError, match="no live signing key"):
        await Prober(receiver).ping(runtime_of(keys=[sealed_key(expires=NOW.replace(year=2001))]))
    assert receiver.requests == []
