"""Which headers an endpoint may add."""

import pytest

from dispatcher.security.headers import (
    HEADER_COUNT_MAX,
    HEADER_NAME_BYTES_MAX,
    HEADER_VALUE_BYTES_MAX,
    check_endpoint_headers,
)


def test_ordinary_headers_pass():
    assert check_endpoint_headers({"X-Api-Version": "2", "x-empty": "", "X-Note": "a b\tc"}) == []


@pytest.mark.parametrize(
    "name",
    [
        "webhook-id", "Webhook-Signature", "webhook-anything", "Host", "content-length", "Content-Type",
        "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect", "User-Agent",
        "traceparent", "tracestate", "baggage", "cookie", "Set-Cookie", "authorization", "Proxy-Authorization",
        "proxy-connection", "x-forwarded-for", "X-Forwarded-Client-Cert", "l5d-client-id", "x-envoy-original-path",
        "content-encoding", "date", "forwarded",
    ],
)  # fmt: skip
def test_a_reserved_name_is_refused_in_any_case(name):
    [violation] = check_endpoint_headers({name: "x"})
    assert violation.field == f"headers[{name}]"


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a:", "a\r\n", "é", "a\x00", "(a)", "a" * (HEADER_NAME_BYTES_MAX + 1)]
)
def test_a_malformed_name_is_refused_and_shown_harmlessly(name):
    [violation] = check_endpoint_headers({name: "x"})
    assert violation.field.isascii()
    assert violation.field.isprintable()


@pytest.mark.parametrize(
    "value", ["a\r\nb: c", "a\nb", "a\x00", " a", "a ", "\t", "é", "\x7f", "v" * (HEADER_VALUE_BYTES_MAX + 1)]
)
def test_a_malformed_value_is_refused_without_being_repeated(value):
    [violation] = check_endpoint_headers({"x-a": value}, "endpoint.http.headers")
    assert violation.field == "endpoint.http.headers[x-a]"
    assert value not in violation.description or len(value) < 3


def test_a_name_given_twice_in_another_case_is_refused():
    [violation] = check_endpoint_headers({"X-A": "1", "x-a": "2"})
    assert "twice" in violation.description


def test_number_and_total_size_are_bounded():
    assert check_endpoint_headers({f"x-{number}": "1" for number in range(HEADER_COUNT_MAX)}) == []
    assert check_endpoint_headers({f"x-{number}": "1" for number in range(HEADER_COUNT_MAX + 1)})[0].field == "headers"
    assert check_endpoint_headers({f"x-{number}": "v" * 4000 for number in range(5)})[0].field == "headers"
