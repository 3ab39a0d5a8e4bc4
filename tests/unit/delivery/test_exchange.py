"""What a failed exchange is called, whatever the HTTP library raised."""

import errno
import ssl

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.delivery.client.failures import classify
from dispatcher.delivery.client.wire import Reading
from dispatcher.delivery.exchange import ERROR_CHARACTERS_MAX, Exchange, ExchangeKind, WebhookRequest, bounded_error
from dispatcher.security.addresses import AddressKind
from dispatcher.security.egress import AddressRefusedError, parse_url
from dispatcher.security.endpoint_tls import EndpointTls, client_context


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (TimeoutError(), ExchangeKind.TIMEOUT),
        (aiohttp.ConnectionTimeoutError("https://secret.example/token"), ExchangeKind.TIMEOUT),
        (AddressRefusedError("10.0.0.1", AddressKind.PRIVATE), ExchangeKind.ADDRESS_REFUSED),
        (aiohttp.ServerDisconnectedError(), ExchangeKind.CONNECTION_FAILED),
        (aiohttp.ClientPayloadError("x"), ExchangeKind.CONNECTION_FAILED),
        (aiohttp.ClientOSError(errno.ECONNRESET, "Connection reset by peer"), ExchangeKind.CONNECTION_FAILED),
        (OSError(errno.EMFILE, "Too many open files"), ExchangeKind.CONNECTION_FAILED),
        (OSError(), ExchangeKind.CONNECTION_FAILED),
        (RuntimeError("https://secret.example/token"), ExchangeKind.INVALID_RESPONSE),
        (ValueError("https://secret.example/token"), ExchangeKind.INVALID_RESPONSE),
    ],
)
def test_every_failure_has_a_kind_and_a_harmless_sentence(failure, kind):
    got, error = classify(failure, Reading())
    assert got is kind
    assert error
    assert "secret" not in error


@given(st.text(max_size=400))
def test_error_texts_are_bounded_printable_ascii(text):
    error = bounded_error(text)
    assert len(error) <= ERROR_CHARACTERS_MAX
    assert error.isascii()
    assert error == "" or error.isprintable()


def test_records_do_not_print_headers_bodies_or_excerpts():
    request = WebhookRequest(parse_url("https://example.com/"), {"authorization": "hidden"}, b"hidden", 1.0)
    exchange = Exchange(ExchangeKind.RESPONSE, 0.1, 200, excerpt=b"hidden")
    assert "hidden" not in f"{request} {exchange}"


@pytest.mark.parametrize(("status", "success"), [(199, False), (200, True), (299, True), (300, False), (None, False)])
def test_success_is_a_whole_response_with_a_2xx_status(status, success):
    assert Exchange(ExchangeKind.RESPONSE, 0.1, status).is_success == success
    assert not Exchange(ExchangeKind.TIMEOUT, 0.1, status).is_success


def test_tls_is_always_verified_and_at_least_1_2():
    context = client_context(EndpointTls())
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
