"""HTTP message signatures, checked by a verifier that is not ours."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import http_message_signatures
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import HTTPMessageVerifier, HTTPSignatureKeyResolver, InvalidSignature, algorithms

from dispatcher.model import SigningAlgorithm
from dispatcher.security.http_signatures import content_digest, message_signatures
from dispatcher.security.signing import Key, key_of

URL = "https://receiver.example/hook?a=1&b=%20"
BODY = b'{"hello": "world"}'
NOW = int(datetime.now(UTC).timestamp())
HEADERS = {"content-type": "application/json", "webhook-id": "evt_1", "webhook-timestamp": str(NOW)}


@dataclass
class Message:
    """What the verifier asks of a request."""

    method: str
    url: str
    headers: dict[str, str]


class Resolver(HTTPSignatureKeyResolver):
    def __init__(self, key: object) -> None:
        self._key = key

    def resolve_public_key(self, key_id: str) -> object:
        assert key_id == "key-1"
        return self._key

    resolve_private_key = resolve_public_key


ED = key_of(SigningAlgorithm.ED25519, b"e" * 32)
KINDS: list[tuple[Key, type, object]] = [
    (ED, algorithms.ED25519, Ed25519PublicKey.from_public_bytes(ED.public)),  # type: ignore[union-attr] # an Ed25519 key has one
    (key_of(SigningAlgorithm.HMAC_SHA256, b"h" * 32), algorithms.HMAC_SHA256, b"h" * 32),
]


def verify(kind: type, key: object, message: Message, body: bytes = BODY) -> None:
    verifier = HTTPMessageVerifier(signature_algorithm=kind, key_resolver=Resolver(key))
    verifier.verify(message, body=body)


@pytest.mark.parametrize(("key", "kind", "public"), KINDS)
def test_another_library_verifies_what_we_sign_and_nothing_else(key: Key, kind: type, public: object) -> None:
    signed = {**HEADERS, **message_signatures([("key-1", key)], URL, HEADERS, BODY, NOW)}
    verify(kind, public, Message("POST", URL, signed))
    changed = [
        Message("PUT", URL, signed),
        Message("POST", URL + "&c=1", signed),
        Message("POST", "https://other.example/hook?a=1&b=%20", signed),
        *(
            Message("POST", URL, {**signed, name: value})
            for name, value in (
                ("webhook-id", "evt_2"),
                ("webhook-timestamp", str(NOW + 1)),
                ("content-type", "text/plain"),
                ("content-digest", content_digest(b"other")),
            )
        ),
    ]
    for message in changed:
        with pytest.raises(InvalidSignature):
            verify(kind, public, message)
    with pytest.raises(http_message_signatures.HTTPMessageSignaturesException):
        verify(kind, public, Message("POST", URL, signed), b"another body")


def test_every_live_key_signs() -> None:
    signed = message_signatures([("key-1", KINDS[0][0]), ("key-2", KINDS[1][0])], URL, HEADERS, BODY, NOW)
    assert signed["signature-input"].count("keyid=") == 2
    assert signed["signature"].startswith("sig1=:")
    assert ", sig2=:" in signed["signature"]


def test_the_digest_is_that_of_the_rfc() -> None:
    """RFC 9530, appendix D: the digest of an example's body."""
    assert content_digest(b'{"hello": "world"}\n') == "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
