"""Standard Webhooks v1 signatures (HMAC-SHA256); pure.

Source: the Standard Webhooks specification 1.0, "Signature scheme" and "Secrets": the signed content is
`{id}.{timestamp}.{body}`, a signature is `v1,` + base64, several are joined by one space, a secret is `whsec_` +
base64 of 24 to 64 bytes.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives import hashes, hmac

from dispatcher.security.secrets import Secret

SECRET_PREFIX = "whsec_"  # noqa: S105  # the published prefix, not a secret
SECRET_BYTES_MIN = 24
SECRET_BYTES_MAX = 64
SECRET_BYTES_GENERATED = 32


class SigningSecretError(ValueError):
    """A text is not a signing secret. The message never repeats the text."""


def generate_secret(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """A fresh secret in its text form: `whsec_` + base64 of 32 random bytes."""
    return format_secret(random_bytes(SECRET_BYTES_GENERATED))


def format_secret(secret: bytes) -> str:
    """The text form of a secret's bytes, as receivers paste it into their verifier."""
    return SECRET_PREFIX + base64.b64encode(secret).decode("ascii")


def parse_secret(text: str) -> bytes:
    """The bytes of `whsec_` + base64 (standard alphabet, padding may be missing).

    Raises SigningSecretError unless the prefix is there, the base64 is exact and it holds 24 to 64 bytes.
    """
    if not text.startswith(SECRET_PREFIX):
        raise SigningSecretError(f"a signing secret begins with {SECRET_PREFIX!r}")
    encoded = text[len(SECRET_PREFIX) :]
    try:
        secret = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise SigningSecretError(f"a signing secret is {SECRET_PREFIX!r} followed by base64") from None
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise SigningSecretError(
            f"a signing secret holds {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, this one {len(secret)}"
        )
    return secret


class HmacKey:
    """A signing key with its HMAC state prepared, so that a signature costs one copy of it; never printed."""

    __slots__ = ("_keyed",)

    def __init__(self, secret: Secret | bytes) -> None:
        plain = secret.reveal() if isinstance(secret, Secret) else secret
        self._keyed = hmac.HMAC(plain, hashes.SHA256())

    def digest(self, prefix: bytes, body: bytes) -> bytes:
        """HMAC-SHA256 over `prefix + body` (32 bytes), without joining them."""
        state = self._keyed.copy()
        state.update(prefix)
        state.update(body)
        return state.finalize()

    def __repr__(self) -> str:
        return "HmacKey(…)"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not serialised")


def sign_v1(keys: Sequence[HmacKey | bytes], webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """The `webhook-signature` value for all live keys, in their order: `v1,<base64> v1,<base64>`.

    `webhook_id` has no dot (the separator of the signed content) and is ASCII; `timestamp_s` is Unix time in seconds.
    Raises ValueError without a key: an unsigned webhook is never right.
    """
    if not keys:
        raise ValueError("no live signing key")
    prefix = f"{webhook_id}.{timestamp_s}.".encode("ascii")
    return " ".join([_signature(key, prefix, body) for key in keys])


def _signature(key: HmacKey | bytes, prefix: bytes, body: bytes) -> str:
    prepared = HmacKey(key) if isinstance(key, bytes) else key
    return "v1," + binascii.b2a_base64(prepared.digest(prefix, body), newline=False).decode("ascii")
