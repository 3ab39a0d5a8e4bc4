"""What broke an exchange: the closed kind and a sentence for the record.

The sentence is made here, since aiohttp's own may quote the URL. Whatever a hostile peer provokes has a place here.
"""

from __future__ import annotations

import ssl
from typing import TypeVar

import aiohttp
from aiohttp import http_exceptions

from dispatcher.delivery.client.wire import Reading
from dispatcher.delivery.exchange import ExchangeKind, bounded_error
from dispatcher.security.egress import AddressRefusedError
from dispatcher.security.resolver import NameNotResolvedError

_Error = TypeVar("_Error", bound=BaseException)


class NotConnectedError(TimeoutError):
    """There was no connection to write to within `within_s`."""

    def __init__(self, within_s: float) -> None:
        super().__init__(f"no connection within {within_s:g} s")


def classify(failure: Exception, reading: Reading) -> tuple[ExchangeKind, str]:
    """The closed kind of a failure and a sentence for the record, made here since aiohttp's own may quote the URL."""
    refused = _find(failure, AddressRefusedError)
    if refused is not None:
        return ExchangeKind.ADDRESS_REFUSED, bounded_error(str(refused))
    if isinstance(failure, aiohttp.ClientConnectorDNSError | NameNotResolvedError):
        cause = failure.os_error if isinstance(failure, aiohttp.ClientConnectorDNSError) else failure
        return ExchangeKind.NAME_NOT_RESOLVED, bounded_error(str(cause))
    if isinstance(failure, aiohttp.ClientSSLError | ssl.SSLError | ssl.CertificateError):
        return ExchangeKind.TLS_FAILED, _tls_error(failure)
    if isinstance(failure, NotConnectedError):
        return ExchangeKind.TIMEOUT, str(failure)
    if isinstance(failure, TimeoutError):
        return ExchangeKind.TIMEOUT, f"{_missing(reading)} before the deadline"
    too_large = _find(failure, http_exceptions.LineTooLong)
    if too_large is not None or "Too many headers" in str(failure):
        return ExchangeKind.RESPONSE_TOO_LARGE, "the response has too many or too long header lines"
    if isinstance(failure, aiohttp.ClientConnectionError | OSError | aiohttp.ClientPayloadError):
        return _connection_failure(failure, reading)
    if isinstance(failure, aiohttp.ClientResponseError | http_exceptions.HttpProcessingError):
        return ExchangeKind.INVALID_RESPONSE, "the response is not valid HTTP/1.1"
    return ExchangeKind.INVALID_RESPONSE, bounded_error(f"the exchange failed: {type(failure).__name__}")


def _missing(reading: Reading) -> str:
    if reading.protocol is None:
        return "no connection"
    return "no response" if reading.status_code is None else "the response body was not complete"


def _connection_failure(failure: Exception, reading: Reading) -> tuple[ExchangeKind, str]:
    if isinstance(failure, aiohttp.ServerDisconnectedError):
        return ExchangeKind.CONNECTION_FAILED, "the connection was closed without a response"
    if reading.status_code is not None:
        return ExchangeKind.CONNECTION_FAILED, "the connection was lost before the response was complete"
    cause = failure.os_error if isinstance(failure, aiohttp.ClientConnectorError) else failure
    detail = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause) or type(cause).__name__
    return ExchangeKind.CONNECTION_FAILED, bounded_error(f"the connection failed: {detail}")


def _tls_error(failure: Exception) -> str:
    cause = failure.__cause__ or failure  # aiohttp's own errors are SSLErrors as well, without the detail
    if isinstance(cause, ssl.SSLCertVerificationError):
        return bounded_error(f"the certificate is not trusted: {cause.verify_message}")
    if isinstance(cause, ssl.SSLError):
        return bounded_error(f"the TLS handshake failed: {cause.reason}")
    return "the TLS handshake failed"


def _find(failure: BaseException, wanted: type[_Error]) -> _Error | None:
    """The first of `failure` and its causes (at most eight) that is a `wanted`."""
    error: BaseException | None = failure
    for _ in range(8):
        if error is None:
            return None
        if isinstance(error, wanted):
            return error
        error = error.__cause__ or getattr(error, "os_error", None) or error.__context__
    return None
