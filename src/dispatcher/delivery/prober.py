"""TestEndpoint: one ping now, past the queue, with nothing stored and no sequence used up."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import orjson
import uuid_utils.compat

from dispatcher.delivery.attempt import Client, authenticated_post, outcome_of, refused
from dispatcher.delivery.endpoint import EndpointRuntime
from dispatcher.delivery.exchange import Exchange, bounded_error
from dispatcher.delivery.oauth import Tokens
from dispatcher.delivery.render import request_to, signed_headers
from dispatcher.model import RESERVED_TYPE_PREFIX, ProbeResult

PING_TYPE = f"{RESERVED_TYPE_PREFIX}ping"
"""A reserved type, so that a receiver can tell a ping from any event a publisher can send."""


def _new_event_id() -> str:
    return str(uuid_utils.compat.uuid7())


class Prober:
    """Sends pings signed and addressed as webhooks are; `wall_clock` is Unix seconds."""

    def __init__(
        self,
        client: Client,
        wall_clock: Callable[[], float] = time.time,
        new_event_id: Callable[[], str] = _new_event_id,
        tokens: Tokens | None = None,
    ) -> None:
        self._client = client
        self._tokens = tokens or Tokens(client)
        self._wall_clock = wall_clock
        self._new_event_id = new_event_id

    async def ping(self, runtime: EndpointRuntime) -> ProbeResult:
        """Post a ping with the endpoint's present settings, whatever its state; a failure is a result, no exception.

        Ends within the endpoint's timeout. Raises ValueError where no signing key is live.
        """
        event_id = self._new_event_id()
        exchange = await self._exchange(runtime, event_id)
        return ProbeResult(
            event_id=event_id,
            outcome=outcome_of(exchange),
            status_code=exchange.status_code,
            latency_s=exchange.duration_s,
            response_excerpt=exchange.excerpt,
            error=bounded_error(exchange.error) or None,
        )

    async def _exchange(self, runtime: EndpointRuntime, event_id: str) -> Exchange:
        if runtime.url is None:
            return refused(runtime.url_problem)
        now_s = self._wall_clock()
        body = _ping_body(event_id, now_s)
        headers = signed_headers(
            runtime,
            runtime.url,
            event_id=event_id,
            event_type=PING_TYPE,
            content_type="application/json",
            body=body,
            timestamp_s=now_s,
        )
        headers["webhook-attempt"] = "1"
        return await authenticated_post(
            self._client, self._tokens, runtime, request_to(runtime, runtime.url, headers, body)
        )


def _ping_body(event_id: str, now_s: float) -> bytes:
    sent = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return orjson.dumps({"type": PING_TYPE, "id": event_id, "time": sent})
