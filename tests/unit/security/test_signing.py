"""Standard Webhooks signatures, judged by two verifiers that are not ours."""

import base64
import pickle
from datetime import UTC, datetime

import pytest
import standardwebhooks
import svix
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model import SigningAlgorithm
from dispatcher.security.secrets import Secret
from dispatcher.security.signing import (
    HmacKey,
    SigningSecretError,
    format_public,
    format_secret,
    generate_secret,
    key_of,
    new_signing_secret,
    parse_secret,
    parse_signing_secret,
    sign_webhook,
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
    signature = sign_webhook([HmacKey(parse_secret(secret))], "evt_1", now_s(), body)
    verify_by_third_parties(secret, body, headers("evt_1", now_s(), signature))


def test_during_a_rotation_receivers_with_either_secret_verify():
    old, new = generate_secret(), generate_secret()
    at = now_s()
    signature = sign_webhook([HmacKey(parse_secret(new)), parse_secret(old)], "evt_2", at, b"{}")
    assert [part[:3] for part in signature.split(" ")] == ["v1,", "v1,"]
    for secret in (old, new):
        verify_by_third_parties(secret, b"{}", headers("evt_2", at, signature))


@pytest.mark.parametrize("changed", [("evt_9", 0, b"{}"), ("evt_1", 1, b"{}"), ("evt_1", 0, b"{ }")])
def test_a_signature_covers_id_timestamp_and_body(changed):
    secret, at = generate_secret(), now_s()
    signature = sign_webhook([HmacKey(parse_secret(secret))], "evt_1", at, b"{}")
    webhook_id, later_s, body = changed
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret).verify(body, headers(webhook_id, at + later_s, signature))


def test_the_published_example_of_the_specification_signs_the_same():
    key = HmacKey(parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
    assert (
        sign_webhook([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_a_prepared_key_can_be_used_again():
    key = HmacKey(b"k" * 32)
    assert sign_webhook([key], "a", 1, b"x") == sign_webhook([key], "a", 1, b"x") != sign_webhook([key], "a", 1, b"y")


def test_nothing_is_ever_sent_unsigned():
    with pytest.raises(ValueError, match="no live signing key"):
        sign_webhook([], "evt_1", 1, b"")


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


def test_an_ed25519_signature_is_verified_by_the_public_key_alone() -> None:
    secret = new_signing_secret(SigningAlgorithm.ED25519)
    key = key_of(secret.algorithm, secret.private)
    version, _, encoded = sign_webhook([key], "msg_1", 1_700_000_000, b"{}").partition(",")
    assert version == "v1a"
    public = base64.b64decode(format_public(secret.public).removeprefix("whpk_"))
    verifier = Ed25519PublicKey.from_public_bytes(public)
    verifier.verify(base64.b64decode(encoded), b"msg_1.1700000000.{}")
    with pytest.raises(InvalidSignature):
        verifier.verify(base64.b64decode(encoded), b"msg_1.1700000001.{}")


def test_keys_of_both_kinds_sign_side_by_side() -> None:
    keys = [key_of(SigningAlgorithm.HMAC_SHA256, b"s" * 32), key_of(SigningAlgorithm.ED25519, b"e" * 32)]
    assert [each.partition(",")[0] for each in sign_webhook(keys, "m", 1, b"").split(" ")] == ["v1", "v1a"]


def test_a_private_key_in_the_published_form_is_read() -> None:
    """RFC 8032 section 7.1, test 1."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    found = parse_signing_secret("whsk_" + base64.b64encode(seed + public).decode())
    assert (found.algorithm, found.private, found.public) == (SigningAlgorithm.ED25519, seed, public)
    assert found.shown == ""
    signed = key_of(found.algorithm, found.private).sign(b"")
    assert signed.hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e0652249015")


@pytest.mark.parametrize(
    "text", ["whsk_", "whsk_AAAA", *("whsk_" + base64.b64encode(b"x" * size).decode() for size in (32, 64))]
)
def test_what_is_no_private_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(SigningSecretError) as caught:
        parse_signing_secret(text)
    assert text == "whsk_" or text[5:] not in str(caught.value)


def test_neither_kind_of_key_is_printed_or_pickled() -> None:
    for algorithm in SigningAlgorithm:
        key = key_of(algorithm, b"0123456789abcdef0123456789abcdef")
        assert "0123" not in repr(key)
        assert "0123" not in repr(new_signing_secret(algorithm, lambda _: b"0123456789abcdef0123456789abcdef"))
        with pytest.raises(TypeError):
            pickle.dumps(key)
