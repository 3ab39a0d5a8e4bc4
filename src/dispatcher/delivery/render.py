"""From an outbox row to the request that goes out; pure. The headers are README's "The webhook", nothing else.

Standard Webhooks 1.0: `webhook-id`, `webhook-timestamp`, `webhook-signature`. Two requests for one row differ in
`webhook-timestamp`, `webhook-signature`, `webhook-attempt` and `traceparent` alone.
"""

from __future__ import annotations

from dispatcher.delivery.endpoint import EndpointRuntime
from dispatcher.delivery.exchange import WebhookRequest
from dispatcher.model import OutboxRow
from dispatcher.security.http_signatures import message_signatures
from dispatcher.security.signing import sign_webhook
from dispatcher.security.urls import EndpointUrl


def render(
    runtime: EndpointRuntime,
    url: EndpointUrl,
    row: OutboxRow,
    attempt_number: int,
    timestamp_s: float,
    traceparent: str | None,
) -> WebhookRequest:
    """The request of attempt `attempt_number` (from 1) at `timestamp_s` (Unix seconds), for a row with its payload.

    Signed by every key that is live at that time; ValueError where none is. `traceparent` is sent as it is.
    """
    payload = row.payload
    if payload is None:
        raise ValueError("a row is rendered only once its payload has been read")
    headers = signed_headers(
        runtime,
        url,
        event_id=row.event_id,
        event_type=row.type,
        content_type=payload.content_type,
        body=payload.data,
        timestamp_s=timestamp_s,
    )
    headers["webhook-sequence"] = str(row.seq)
    headers["webhook-attempt"] = str(attempt_number)
    if row.ordering_key is not None:
        headers["webhook-ordering-key"] = row.ordering_key
    if row.replay_of is not None:
        headers["webhook-replay"] = "true"
    if traceparent is not None:
        headers["traceparent"] = traceparent
    return request_to(runtime, url, headers, payload.data)


def request_to(runtime: EndpointRuntime, url: EndpointUrl, headers: dict[str, str], body: bytes) -> WebhookRequest:
    """A request with all that the endpoint says of the way there."""
    return WebhookRequest(
        url=url,
        headers=headers,
        body=body,
        timeout_s=runtime.settings.timeout_s,
        tls=runtime.credentials.tls,
        allowed_networks=runtime.allowed_networks,
        sender=runtime.key,
    )


def signed_headers(
    runtime: EndpointRuntime,
    url: EndpointUrl,
    *,
    event_id: str,
    event_type: str,
    content_type: str,
    body: bytes,
    timestamp_s: float,
) -> dict[str, str]:
    """What every webhook says of itself, pings included, beside the endpoint's constant headers."""
    unix_s = int(timestamp_s)
    headers = {**runtime.fixed_headers}
    headers["content-type"] = content_type
    headers["webhook-id"] = event_id
    headers["webhook-timestamp"] = str(unix_s)
    headers["webhook-signature"] = sign_webhook(runtime.signers(timestamp_s), event_id, unix_s, body)
    if runtime.settings.http_signatures:
        keys = [(prepared.key_id, prepared.key) for prepared in runtime.live_keys(timestamp_s)]
        headers |= message_signatures(keys, url.text, headers, body, unix_s)
    headers["webhook-event-type"] = event_type
    return headers
