"""Secrets at rest: envelope encryption with AES-256-GCM, and a wrapper that nothing prints.

Each secret has a data key of its own; a key-encryption key wraps only that data key, so rewrapping never touches the
secret and a cloud KMS can take the place of the local keys. The sealed form describes itself:

    version (1) | key id length (1) | key id
    | wrapped data key: nonce (12), key (32), tag (16)
    | nonce (12) | secret | tag (16)

Associated data binds both layers to tenant, endpoint and signing key: a sealed secret copied to another row does not
open. Nonces are random (NIST SP 800-38D section 8.2.2), which bounds one key-encryption key to 2^32 seals.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
FORMAT_VERSION = 1
FORMAT_OF_OTHERS = 2
"""With the length of the wrapped data key (2 bytes, big-endian) before it: a KMS's is longer than ours."""
SECRET_BYTES_MAX = 65_536
_WRAPPED_BYTES = NONCE_BYTES + KEY_BYTES + TAG_BYTES
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class KeyringError(ValueError):
    """The key-encryption keys of the settings are unusable. The message never repeats a key."""


class SecretSealError(Exception):
    """A sealed secret does not open: unknown key, other owner, damage. Deliberately says no more than that."""


class Secret:
    """Bytes that must not be shown: repr, str, format and pickle never give them; only `reveal()` does."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The plain bytes. Callers keep them no longer than they use them."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # a hash would let a secret be a dictionary key, and leak by timing

    def __reduce__(self) -> str:
        raise TypeError("a secret is not serialised")


@dataclass(frozen=True, slots=True)
class SealContext:
    """Whom a secret belongs to; a sealed secret opens only with the same. `key_id` is the signing key's id."""

    tenant_id: UUID
    endpoint_id: UUID
    key_id: str

    def associated_data(self, wrapping_key_id: str) -> bytes:
        """Unambiguous bytes: the wrapping key id with its length, two uids of 16 bytes, the signing key id last."""
        wrapping, signing = wrapping_key_id.encode(), self.key_id.encode()
        lengths = bytes([FORMAT_VERSION, len(wrapping)])
        return lengths + wrapping + self.tenant_id.bytes + self.endpoint_id.bytes + signing


@dataclass(frozen=True, slots=True)
class _Sealed:
    """The parsed sealed form."""

    wrapping_key_id: str
    wrapped: bytes
    box: bytes

    def pack(self) -> bytes:
        key_id, size = self.wrapping_key_id.encode(), len(self.wrapped)
        if size == _WRAPPED_BYTES:
            return bytes([FORMAT_VERSION, len(key_id)]) + key_id + self.wrapped + self.box
        return bytes([FORMAT_OF_OTHERS, len(key_id)]) + key_id + size.to_bytes(2, "big") + self.wrapped + self.box


def _unpack(sealed: bytes) -> _Sealed:
    if len(sealed) < 2 or sealed[0] not in (FORMAT_VERSION, FORMAT_OF_OTHERS):
        raise SecretSealError("the sealed secret has an unknown format")
    key_end = 2 + sealed[1]
    start, size = key_end, _WRAPPED_BYTES
    if sealed[0] == FORMAT_OF_OTHERS:
        start, size = key_end + 2, int.from_bytes(sealed[key_end : key_end + 2], "big")
    if len(sealed) < start + size + NONCE_BYTES + TAG_BYTES:
        raise SecretSealError("the sealed secret is cut short")
    key_id = sealed[2:key_end].decode("ascii", "replace")
    return _Sealed(key_id, sealed[start : start + size], sealed[start + size :])


def _encrypt(key: AESGCM, plain: bytes, associated_data: bytes, random_bytes: Callable[[int], bytes]) -> bytes:
    nonce = random_bytes(NONCE_BYTES)
    return nonce + key.encrypt(nonce, plain, associated_data)


def _decrypt(key: AESGCM, box: bytes, associated_data: bytes) -> bytes:
    try:
        return key.decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], associated_data)
    except InvalidTag:
        raise SecretSealError("the sealed secret does not open for this owner") from None


class KeyProvider(Protocol):
    """Who holds the key-encryption keys: this process, or a KMS. It sees data keys, never a secret. `associated_data`
    must be bound to what is wrapped."""

    primary_key_id: str
    """The key that wraps; 1 to 64 of A-Z a-z 0-9 _ -."""

    def wrap(self, data_key: bytes, associated_data: bytes) -> bytes:
        """`data_key` (32 bytes) under the primary key, in at most 64 KiB."""

    def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        """The reverse, by any key it has. Raises SecretSealError."""


class LocalKeys:
    """Keys in this process's memory; the first wraps, all unwrap."""

    __slots__ = ("_keys", "_random_bytes", "primary_key_id")

    def __init__(
        self, keys: Sequence[tuple[str, bytes]], random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        """Raises KeyringError."""
        if not keys:
            raise KeyringError("at least one key-encryption key is needed")
        if len({key_id for key_id, _ in keys}) != len(keys):
            raise KeyringError("two key-encryption keys have the same id")
        for key_id, key in keys:
            _check_key(key_id, key)
        self.primary_key_id = keys[0][0]
        self._keys = {key_id: AESGCM(key) for key_id, key in keys}
        self._random_bytes = random_bytes

    def wrap(self, data_key: bytes, associated_data: bytes) -> bytes:
        return _encrypt(self._keys[self.primary_key_id], data_key, associated_data, self._random_bytes)

    def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        key = self._keys.get(key_id)
        if key is None:
            raise SecretSealError("the sealed secret needs a key-encryption key that is not configured")
        return _decrypt(key, wrapped, associated_data)

    def __repr__(self) -> str:
        return f"LocalKeys({', '.join(self._keys)})"

    def __reduce__(self) -> str:
        raise TypeError("keys are not serialised")


class Keyring:
    """Seals and opens by a provider's keys. Rotate by putting a new key first, then rewrap."""

    __slots__ = ("_provider", "_random_bytes")

    def __init__(
        self,
        keys: Sequence[tuple[str, bytes]] | KeyProvider,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`keys` by id are kept in memory. Raises KeyringError."""
        self._provider: KeyProvider = LocalKeys(keys, random_bytes) if isinstance(keys, Sequence) else keys
        self._random_bytes = random_bytes

    @property
    def primary_key_id(self) -> str:
        """The key that seals."""
        return self._provider.primary_key_id

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """From settings text: `id:base64(32 bytes)`, comma separated, the sealing key first.

        Raises KeyringError naming the place of the bad entry, never its content.
        """
        entries = [entry.strip() for entry in text.split(",") if entry.strip()]
        return cls([_parse_entry(number, entry) for number, entry in enumerate(entries, start=1)])

    def seal(self, plain: bytes, context: SealContext) -> bytes:
        """The sealed form of `plain` (at most 64 KiB) for its owner, under the first key."""
        if len(plain) > SECRET_BYTES_MAX:
            raise ValueError(f"a secret has at most {SECRET_BYTES_MAX} bytes")
        data_key = self._random_bytes(KEY_BYTES)
        box = _encrypt(AESGCM(data_key), plain, context.associated_data(""), self._random_bytes)
        return self._wrap(data_key, box, context).pack()

    def open(self, sealed: bytes, context: SealContext) -> Secret:
        """The secret back. Raises SecretSealError if the key is unknown, the owner another or the bytes damaged."""
        parsed = _unpack(sealed)
        data_key = self._unwrap(parsed, context)
        return Secret(_decrypt(AESGCM(data_key), parsed.box, context.associated_data("")))

    def needs_rewrap(self, sealed: bytes) -> bool:
        """Whether another key than the first one wraps this secret."""
        return _unpack(sealed).wrapping_key_id != self.primary_key_id

    def rewrap(self, sealed: bytes, context: SealContext) -> bytes:
        """The same secret with its data key wrapped by the first key. Raises SecretSealError as `open` does."""
        parsed = _unpack(sealed)
        return self._wrap(self._unwrap(parsed, context), parsed.box, context).pack()

    def __repr__(self) -> str:
        return f"Keyring({self._provider!r})"

    def __reduce__(self) -> str:
        raise TypeError("a keyring is not serialised")

    def _wrap(self, data_key: bytes, box: bytes, context: SealContext) -> _Sealed:
        key_id = self.primary_key_id
        return _Sealed(key_id, self._provider.wrap(data_key, context.associated_data(key_id)), box)

    def _unwrap(self, parsed: _Sealed, context: SealContext) -> bytes:
        key_id = parsed.wrapping_key_id
        return self._provider.unwrap(key_id, parsed.wrapped, context.associated_data(key_id))


def _check_key(key_id: str, key: bytes) -> None:
    if not _KEY_ID.fullmatch(key_id):
        raise KeyringError("the id of a key-encryption key is 1 to 64 of A-Z a-z 0-9 _ -")
    if len(key) != KEY_BYTES:
        raise KeyringError(f"key-encryption key {key_id!r} must hold {KEY_BYTES} bytes, it holds {len(key)}")


def _parse_entry(number: int, entry: str) -> tuple[str, bytes]:
    key_id, colon, encoded = entry.partition(":")
    if not colon or not _KEY_ID.fullmatch(key_id):
        raise KeyringError(f"key-encryption key {number} is not of the form id:base64")
    try:
        return key_id, base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise KeyringError(f"key-encryption key {number} is not of the form id:base64") from None
