"""Standard Webhooks signatures: v1 (HMAC-SHA256) and v1a (Ed25519); pure.

Source: the Standard Webhooks specification 1.0, "Signature scheme" and "Secrets": the signed content is
`{id}.{timestamp}.{body}`, a signature is `v1,` or `v1a,` + base64, several are joined by one space. A symmetric secret
is `whsec_` + base64 of 24 to 64 bytes, a private key `whsk_` + base64 of 64 bytes (seed and public key), a public key
`whpk_` + base64 of 32 bytes.
"""

from __future__ import annotations

import base64
import binascii
import hmac as constant_time
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dispatcher.model import SigningAlgorithm
from dispatcher.security.secrets import Secret

SECRET_PREFIX = "whsec_"  # noqa: S105  # the published prefix, not a secret
PRIVATE_PREFIX = "whsk_"
PUBLIC_PREFIX = "whpk_"
SECRET_BYTES_MIN = 24
SECRET_BYTES_MAX = 64
SECRET_BYTES_GENERATED = 32
SEED_BYTES = 32


class SigningSecretError(ValueError):
    """A text is not a signing secret. The message never repeats the text."""


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """What a key signs with: the secret's bytes, or the seed of an Ed25519 key. `public` is empty for HMAC."""

    algorithm: SigningAlgorithm
    private: bytes = field(repr=False)

    @property
    def public(self) -> bytes:
        """The 32 bytes of the public key."""
        return Ed25519Key(self.private).public if self.algorithm is SigningAlgorithm.ED25519 else b""

    @property
    def shown(self) -> str:
        """What a receiver is given, once: the secret of an HMAC key; nothing of one that has a public half."""
        return format_secret(self.private) if self.algorithm is SigningAlgorithm.HMAC_SHA256 else ""


def new_signing_secret(
    algorithm: SigningAlgorithm, random_bytes: Callable[[int], bytes] = secrets.token_bytes
) -> SigningSecret:
    """A fresh one."""
    return SigningSecret(algorithm, random_bytes(SECRET_BYTES_GENERATED))


def parse_signing_secret(text: str) -> SigningSecret:
    """`whsec_…` or `whsk_…`. Raises SigningSecretError."""
    if not text.startswith(PRIVATE_PREFIX):
        return SigningSecret(SigningAlgorithm.HMAC_SHA256, parse_secret(text))
    both = _base64(text[len(PRIVATE_PREFIX) :], PRIVATE_PREFIX)
    seed, public = both[:SEED_BYTES], both[SEED_BYTES:]
    if len(both) != 2 * SEED_BYTES or not constant_time.compare_digest(Ed25519Key(seed).public, public):
        raise SigningSecretError(f"a private key is {PRIVATE_PREFIX!r} and base64 of its 32-byte seed and public key")
    return SigningSecret(SigningAlgorithm.ED25519, seed)


def generate_secret(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """A fresh secret in its text form: `whsec_` + base64 of 32 random bytes."""
    return format_secret(random_bytes(SECRET_BYTES_GENERATED))


def format_secret(secret: bytes) -> str:
    """The text form of a secret's bytes, as receivers paste it into their verifier."""
    return SECRET_PREFIX + base64.b64encode(secret).decode("ascii")


def format_public(public: bytes) -> str:
    """The text form of a public key; empty for none."""
    return PUBLIC_PREFIX + base64.b64encode(public).decode("ascii") if public else ""


def parse_secret(text: str) -> bytes:
    """The bytes of `whsec_` + base64 (standard alphabet, padding may be missing).

    Raises SigningSecretError unless the prefix is there, the base64 is exact and it holds 24 to 64 bytes.
    """
    if not text.startswith(SECRET_PREFIX):
        raise SigningSecretError(f"a signing secret begins with {SECRET_PREFIX!r}")
    secret = _base64(text[len(SECRET_PREFIX) :], SECRET_PREFIX)
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise SigningSecretError(
            f"a signing secret holds {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, this one {len(secret)}"
        )
    return secret


def _base64(encoded: str, prefix: str) -> bytes:
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise SigningSecretError(f"a signing secret is {prefix!r} followed by base64") from None


class HmacKey:
    """A signing key with its HMAC state prepared, so that a signature costs one copy of it; never printed."""

    __slots__ = ("_keyed",)
    version = "v1"
    http_algorithm = "hmac-sha256"

    def __init__(self, secret: Secret | bytes) -> None:
        self._keyed = hmac.HMAC(_plain(secret), hashes.SHA256())

    def sign(self, prefix: bytes, body: bytes = b"") -> bytes:
        """HMAC-SHA256 over `prefix + body` (32 bytes), without joining them."""
        state = self._keyed.copy()
        state.update(prefix)
        state.update(body)
        return state.finalize()

    def __repr__(self) -> str:
        return "HmacKey(…)"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not serialised")


class Ed25519Key:
    """A signing key whose signatures need no secret to verify (RFC 8032); never printed."""

    __slots__ = ("_key", "public")
    version = "v1a"
    http_algorithm = "ed25519"

    def __init__(self, seed: Secret | bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(_plain(seed))
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, prefix: bytes, body: bytes = b"") -> bytes:
        """The signature of `prefix + body` (64 bytes)."""
        return self._key.sign(prefix + body)

    def __repr__(self) -> str:
        return "Ed25519Key(…)"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not serialised")


Key = HmacKey | Ed25519Key


def key_of(algorithm: SigningAlgorithm, secret: Secret | bytes) -> Key:
    """A key ready to sign."""
    match algorithm:
        case SigningAlgorithm.HMAC_SHA256:
            return HmacKey(secret)
        case SigningAlgorithm.ED25519:
            return Ed25519Key(secret)


def _plain(secret: Secret | bytes) -> bytes:
    return secret.reveal() if isinstance(secret, Secret) else secret


def sign_webhook(keys: Sequence[Key | bytes], webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """The `webhook-signature` value for all live keys, in their order: `v1,<base64> v1a,<base64>`. Bytes are an HMAC
    secret.

    `webhook_id` has no dot (the separator of the signed content) and is ASCII; `timestamp_s` is Unix time in seconds.
    Raises ValueError without a key: an unsigned webhook is never right.
    """
    if not keys:
        raise ValueError("no live signing key")
    prefix = f"{webhook_id}.{timestamp_s}.".encode("ascii")
    return " ".join([_signature(key, prefix, body) for key in keys])


def _signature(key: Key | bytes, prefix: bytes, body: bytes) -> str:
    prepared = HmacKey(key) if isinstance(key, bytes) else key
    signed = binascii.b2a_base64(prepared.sign(prefix, body), newline=False).decode("ascii")
    return f"{prepared.version},{signed}"
