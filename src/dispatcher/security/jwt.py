"""Bearer tokens that are JWTs (RFC 7519, best practice RFC 8725): pure but for the clock.

Only asymmetric algorithms, each only with a key of its type; issuer, audience and expiry are required and checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt

from dispatcher.security.callers import AuthMode, AuthReason, Caller, checked_uri, refused

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
TOKEN_CHARACTERS_MAX = 16_384
LEEWAY_S = 30
KEYS_MAX = 100
RSA_BITS_MIN = 2048
CLAIMS_MAX = 64
CLAIM_VALUES_MAX = 256


class KeySetError(ValueError):
    """A JWKS is unusable."""


class UnknownKeyError(Exception):
    """A token names a key that the key set does not have: it may have been rotated in since."""


class KeySet:
    """The public keys of a JWKS (RFC 7517) by id, each with the one algorithm it is used with: its `alg`, or without
    one RS256, EdDSA, or the ECDSA of its curve."""

    def __init__(self, keys: Mapping[str, jwt.PyJWK]) -> None:
        self._keys = keys

    @classmethod
    def parse(cls, text: str) -> KeySet:
        """From JSON. Keys that are not for signatures, and symmetric ones, are left out. Raises KeySetError."""
        try:
            entries = json.loads(text)["keys"]
            usable = [entry for entry in entries if _is_usable(entry)]
            if not usable or len(usable) > KEYS_MAX:
                raise KeySetError(f"holds {len(usable)} usable keys; 1 to {KEYS_MAX} are needed")
            if any("d" in entry for entry in usable):
                raise KeySetError("holds a private key")
            keys = {str(entry.get("kid", "")): jwt.PyJWK(entry) for entry in usable}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, jwt.PyJWTError) as error:
            if isinstance(error, KeySetError):
                raise
            raise KeySetError("is not a JWKS (RFC 7517)") from None
        if len(keys) != len(usable):
            raise KeySetError("has two keys of the same kid")
        if any(
            getattr(key.key, "key_size", RSA_BITS_MIN) < RSA_BITS_MIN for key in keys.values() if key.key_type == "RSA"
        ):
            raise KeySetError(f"has an RSA key of less than {RSA_BITS_MIN} bits")
        return cls(keys)

    def find(self, key_id: str | None) -> jwt.PyJWK:
        """The key of an id; without one the only key there is. Raises UnknownKeyError."""
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        found = self._keys.get(key_id or "")
        if found is None:
            raise UnknownKeyError
        return found

    def __len__(self) -> int:
        return len(self._keys)


def _is_usable(entry: Mapping[str, Any]) -> bool:
    return entry.get("kty") in ("RSA", "EC", "OKP") and entry.get("use", "sig") == "sig"


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must say. `principal_claim` is who calls: `sub`, unless the issuer puts it elsewhere."""

    issuer: str
    audiences: Sequence[str]
    algorithms: Sequence[str] = ALGORITHMS
    principal_claim: str = "sub"


@dataclass(frozen=True, slots=True)
class Verified:
    """Whose token it is and until when it holds, in Unix seconds."""

    caller: Caller
    expires_at_s: float


def verify(token: str, keys: KeySet, rules: TokenRules) -> Verified:
    """Whose token it is. Raises UnauthenticatedError, and UnknownKeyError for a key that may be new."""
    if len(token) > TOKEN_CHARACTERS_MAX:
        raise refused(AuthReason.INVALID, "the token is too long")
    try:
        header = jwt.get_unverified_header(token)
        key = keys.find(header.get("kid"))
        claims = jwt.decode(
            token,
            key,
            algorithms=[each for each in rules.algorithms if each == key.algorithm_name],
            issuer=rules.issuer,
            audience=list(rules.audiences),
            leeway=LEEWAY_S,
            options={"require": ["exp", "iss", "aud", rules.principal_claim]},
        )
        principal = claims[rules.principal_claim]
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise refused(AuthReason.INVALID, f"the token is not valid: {_explain(error)}") from None
    if not isinstance(principal, str):
        raise refused(AuthReason.INVALID, f"the token's {rules.principal_claim} is not a text")
    return Verified(Caller(checked_uri(principal), AuthMode.JWT, _texts(claims)), float(claims["exp"]) + LEEWAY_S)


def _explain(error: Exception) -> str:
    """A sentence without anything of the token."""
    for kind, text in (
        (jwt.ExpiredSignatureError, "it has expired"),
        (jwt.InvalidAudienceError, "it is for another audience"),
        (jwt.InvalidIssuerError, "another has issued it"),
        (jwt.ImmatureSignatureError, "it does not hold yet"),
        (jwt.MissingRequiredClaimError, "a claim is missing"),
        (jwt.InvalidAlgorithmError, "its algorithm is not allowed"),
        (jwt.InvalidSignatureError, "its signature is wrong"),
    ):
        if isinstance(error, kind):
            return text
    return "it is malformed"


def _texts(claims: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The claims that a policy can ask for: texts and lists of texts, bounded."""
    found = []
    for name, value in list(claims.items())[:CLAIMS_MAX]:
        values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        texts = tuple(each for each in values[:CLAIM_VALUES_MAX] if isinstance(each, str))
        if texts:
            found.append((name, texts))
    return tuple(sorted(found))
