"""Standard Webhooks signatures, judged by two verifiers that are not ours."""

import base64
import pickle
from datetime import UTC, datetime

import pytest
import standardwebhooks
import svix
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.security.secrets import Secret
from dispatcher.security.signing import (
    HmacKey,
    SigningSecretError,
    format_secret,
    generate_secret,
    parse_secret,
    sign_v1,
)


def headers(webhook_id, timestamp_s, signature):
    return {"webhook-id": webhook_id, "webhook-timestamp": str(timestamp_s), "webhook-signature": signature}


def now_s():
    return int(datetime.now(UTC).timestamp())


def verify_by_third_parties(secret, body, given_headers):
    standardwebhooks.Webhook(secret).verify(body, given_headers)
    svix.Webhook(secret).verify(body, given_headers)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"type":"order.paid","data":{"name":"\xc3\xa9"}}', b'"' + b"x" * 100_000 + b'"']
)
def test_third_party_verifiers_accept_a_signature(body):
    secret = generate_secret()
    signature = sign_v1([HmacKey(parse_secret(secret))], "evt_1", now_s(), body)
    verify_by_third_parties(secret, body, headers("evt_1", now_s(), signature))


def test_during_a_rotation_receivers_with_either_secret_verify():
    old, new = generate_secret(), generate_secret()
    at = now_s()
    signature = sign_v1([HmacKey(parse_secret(new)), parse_secret(old)], "evt_2", at, b"{}")
    assert [part[:3] for part in signature.split(" ")] == ["v1,", "v1,"]
    for secret in (old, new):
        verify_by_third_parties(secret, b"{}", headers("evt_2", at, signature))


@pytest.mark.parametrize("changed", [("evt_9", 0, b"{}"), ("evt_1", 1, b"{}"), ("evt_1", 0, b"{ }")])
def test_a_signature_covers_id_timestamp_and_body(changed):
    secret, at = generate_secret(), now_s()
    signature = sign_v1([HmacKey(parse_secret(secret))], "evt_1", at, b"{}")
    webhook_id, later_s, body = changed
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret).verify(body, headers(webhook_id, at + later_s, signature))


def test_the_published_example_of_the_specification_signs_the_same():
    key = HmacKey(parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
    assert (
        sign_v1([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_a_prepared_key_can_be_used_again():
    key = HmacKey(b"k" * 32)
    assert sign_v1([key], "a", 1, b"x") == sign_v1([key], "a", 1, b"x") != sign_v1([key], "a", 1, b"y")


def test_nothing_is_ever_sent_unsigned():
    with pytest.raises(ValueError, match="no live signing key"):
        sign_v1([], "evt_1", 1, b"")


def test_a_generated_secret_holds_32_bytes_of_the_given_source():
    assert generate_secret(lambda count: b"r" * count) == "whsec_" + base64.b64encode(b"r" * 32).decode()
    assert generate_secret() != generate_secret()


@given(st.binary(min_size=24, max_size=64))
def test_a_secret_of_24_to_64_bytes_survives_its_text_form(secret):
    assert parse_secret(format_secret(secret)) == secret
    assert parse_secret(format_secret(secret).rstrip("=")) == secret


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        "whsk_" + base64.b64encode(b"k" * 32).decode(),
        base64.b64encode(b"k" * 32).decode(),
        "whsec_" + base64.b64encode(b"k" * 23).decode(),
        "whsec_" + base64.b64encode(b"k" * 65).decode(),
        "whsec_" + "!" * 44,
        "whsec_ " + base64.b64encode(b"k" * 32).decode(),
        "whsec_" + "é" * 40,
        "whsec_" + base64.b64encode(b"k" * 32).decode() + "\n",
    ],
)
def test_what_is_no_secret_is_refused_without_being_repeated(text):
    with pytest.raises(SigningSecretError) as refused:
        parse_secret(text)
    assert len(text) < 20 or text[8:] not in str(refused.value)


def test_a_key_never_shows_its_secret():
    key = HmacKey(Secret(b"topsecret" * 4))
    assert "topsecret" not in f"{key!r} {key} {key!s}"
    with pytest.raises(TypeError):
        pickle.dumps(key)
