"""JWTs: only the issuer's keys, only asymmetric algorithms, only for us, only while they hold."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dispatcher.errors import UnauthenticatedError
from dispatcher.security.jwt import KeySet, KeySetError, TokenRules, UnknownKeyError, verify

RULES = TokenRules("https://issuer.example", ("dispatcher",))
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = Ed25519PrivateKey.generate()


def public(key: Any, kid: str, **more: str) -> dict[str, Any]:
    kinds = {rsa.RSAPrivateKey: "RSAAlgorithm", ec.EllipticCurvePrivateKey: "ECAlgorithm"}
    name = next((name for kind, name in kinds.items() if isinstance(key, kind)), "OKPAlgorithm")
    found = json.loads(getattr(jwt.algorithms, name).to_jwk(key.public_key()))
    return {**found, "kid": kid, "use": "sig", **more}


KEYS = KeySet.parse(json.dumps({"keys": [public(RSA_KEY, "r"), public(EC_KEY, "e"), public(ED_KEY, "d")]}))


def claims(**changed: Any) -> dict[str, Any]:
    usual = {"iss": RULES.issuer, "aud": "dispatcher", "sub": "alice", "exp": time.time() + 60, "groups": ["ops", 7]}
    return {name: value for name, value in {**usual, **changed}.items() if value is not None}


def token(key: Any = RSA_KEY, algorithm: str = "RS256", kid: str | None = "r", **changed: Any) -> str:
    return jwt.encode(claims(**changed), key, algorithm, headers={"kid": kid} if kid else {})


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(RSA_KEY, "RS256", "r"), (EC_KEY, "ES256", "e"), (ED_KEY, "EdDSA", "d")]
)
def test_a_token_of_the_issuer_is_its_subjects(key: Any, algorithm: str, kid: str) -> None:
    found = verify(token(key, algorithm, kid), KEYS, RULES).caller
    assert found.principal == "alice"
    assert dict(found.claims)["groups"] == ("ops",)


def test_an_audience_may_be_one_of_several() -> None:
    assert verify(token(aud=["x", "dispatcher"]), KEYS, RULES).caller.principal == "alice"


def test_another_claim_may_name_the_caller() -> None:
    rules = TokenRules(RULES.issuer, RULES.audiences, principal_claim="client_id")
    assert verify(token(client_id="shop"), KEYS, rules).caller.principal == "shop"
    with pytest.raises(UnauthenticatedError):
        verify(token(), KEYS, rules)


def unsigned(algorithm: str) -> str:
    def part(value: Mapping[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': algorithm, 'kid': 'r'})}.{part(claims())}."


PUBLIC_PEM = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def confused() -> str:
    """HS256 with the public key's text for a secret, made by hand since libraries refuse to."""
    import hashlib
    import hmac

    head = unsigned("HS256").rpartition(".")[0]
    mac = hmac.new(PUBLIC_PEM, head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("expired", token(exp=time.time() - 31)),
        ("not yet", token(nbf=time.time() + 86_400)),
        ("another audience", token(aud="other")),
        ("no audience", token(aud=None)),
        ("another issuer", token(iss="https://evil.example")),
        ("no issuer", token(iss=None)),
        ("no expiry", token(exp=None)),
        ("no subject", token(sub=None)),
        ("a subject with spaces", token(sub="alice smith")),
        ("a subject that is no text", jwt.encode({**claims(), "sub": 7}, RSA_KEY, "RS256", headers={"kid": "r"})),
        ("another key under this id", token(rsa.generate_private_key(65537, 2048))),
        ("another algorithm of the key", token(RSA_KEY, "PS256")),
        ("no algorithm", unsigned("none")),
        ("no algorithm in capitals", unsigned("NONE")),
        ("the public key as an HMAC secret", confused()),
        ("a signature cut off", token()[:-4]),
        ("other claims under a signature", ".".join([token().split(".")[0], token(sub="bob").split(".")[1], "AAAA"])),
        ("nothing", ""),
        ("dots", ".."),
        ("no JSON", "YQ.YQ.YQ"),
        ("too long", "a" * 20_000),
    ],
)
def test_a_token_that_is_not_wholly_right_is_nobodys(name: str, text: str) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        verify(text, KEYS, RULES)
    assert not text or text not in str(caught.value)


def test_a_key_that_is_not_known_may_be_new() -> None:
    for kid in ("other", None):
        with pytest.raises(UnknownKeyError):
            verify(token(kid=kid), KEYS, RULES)


def test_a_single_key_needs_no_id() -> None:
    only = KeySet.parse(json.dumps({"keys": [public(RSA_KEY, "r")]}))
    assert verify(token(kid=None), only, RULES).caller.principal == "alice"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no JSON", "x"),
        ("no keys", "{}"),
        ("none", '{"keys": []}'),
        ("a secret", '{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "s"}]}'),
        ("a key for encryption", json.dumps({"keys": [public(RSA_KEY, "r", use="enc")]})),
        ("the same id twice", json.dumps({"keys": [public(RSA_KEY, "r"), public(EC_KEY, "r")]})),
        ("a short key", json.dumps({"keys": [public(rsa.generate_private_key(65537, 1024), "r")]})),
        ("a private key", json.dumps({"keys": [{**public(ED_KEY, "d"), "d": "AAAA"}]})),
        ("half a key", '{"keys": [{"kty": "RSA", "kid": "r"}]}'),
        ("an unknown curve", '{"keys": [{"kty": "EC", "crv": "P-1", "kid": "r"}]}'),
    ],
)
def test_a_key_set_that_is_not_wholly_right_is_refused(name: str, text: str) -> None:
    with pytest.raises(KeySetError):
        KeySet.parse(text)
