"""One HTTP exchange with an endpoint as a record: what is asked, and how it ended. No I/O here."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from dispatcher.security.addresses import IPNetwork
from dispatcher.security.egress import EndpointUrl
from dispatcher.security.endpoint_tls import EndpointTls

ERROR_CHARACTERS_MAX = 200


class ExchangeKind(enum.StrEnum):
    """How an exchange ended. RESPONSE: a whole response came, whatever its status; everything else is a failure.

    RESPONSE_TOO_LARGE is about the head (header lines, their number): of a larger body only the beginning is read and
    the status counts. AUTHENTICATION_FAILED: there was no token to send, so nothing was sent. EGRESS_PROXY_FAILED: the
    receiver has not been reached, and by all that is known that is not its fault.
    """

    RESPONSE = "RESPONSE"
    TIMEOUT = "TIMEOUT"
    CONNECTION_FAILED = "CONNECTION_FAILED"
    TLS_FAILED = "TLS_FAILED"
    NAME_NOT_RESOLVED = "NAME_NOT_RESOLVED"
    ADDRESS_REFUSED = "ADDRESS_REFUSED"
    INVALID_RESPONSE = "INVALID_RESPONSE"
    RESPONSE_TOO_LARGE = "RESPONSE_TOO_LARGE"
    AUTHENTICATION_FAILED = "AUTHENTICATION_FAILED"
    EGRESS_PROXY_FAILED = "EGRESS_PROXY_FAILED"


@dataclass(slots=True)  # not frozen, nor is an exchange: that would double what making one costs
class WebhookRequest:
    """One webhook to post. `timeout_s` is the deadline for everything: connecting, sending, the whole response.

    `headers` go out as they are, without Host and Content-Length; a CIMultiDict saves a copy. `tls` is None for the
    system's roots and no certificate of our own. `allowed_networks` narrows the policy; empty for no more than that.
    `excerpt_bytes_max` is how much of the body is kept, None for what the client keeps. `sender` is on whose behalf it
    goes out, such as the endpoint: what an egress proxy fails at is weighed for each by itself. `used_s` is how much of
    its time had passed before, in which a token was fetched.
    """

    url: EndpointUrl
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    timeout_s: float
    tls: EndpointTls | None = None
    allowed_networks: tuple[IPNetwork, ...] = ()
    excerpt_bytes_max: int | None = None
    sender: Hashable = None
    used_s: float = 0.0


@dataclass(slots=True)
class Exchange:
    """How one post ended.

    `status_code` is set whenever a response head arrived, also if the body then failed. `retry_after` is that header as
    received, at most 64 characters. `excerpt` is the beginning of the body. `error` is empty for RESPONSE; it holds no
    secret, path or query. `peer` is the address connected to, `duration_s` by the monotonic clock.
    """

    kind: ExchangeKind
    duration_s: float
    status_code: int | None = None
    retry_after: str | None = None
    excerpt: bytes = field(default=b"", repr=False)
    truncated: bool = False
    error: str = ""
    peer: str | None = None

    @property
    def is_success(self) -> bool:
        """A whole response with a 2xx status."""
        return self.kind is ExchangeKind.RESPONSE and self.status_code is not None and 200 <= self.status_code <= 299


def bounded_error(text: str) -> str:
    """Text fit for a record and a log line: printable ASCII, at most 200 characters."""
    printable = "".join(character if " " <= character <= "~" else "?" for character in text[:ERROR_CHARACTERS_MAX])
    return printable.strip()
