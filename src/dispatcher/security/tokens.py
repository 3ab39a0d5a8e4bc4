"""Static bearer tokens of callers: a file holds their hashes, so that reading it gives nobody access.

    tokens:
      - principal: billing
        sha256: 0a7b…        # 64 hex digits: `dispatcher tokens new billing` prints both
        expire_time: 2027-01-31T00:00:00Z

A token has 256 random bits, so a plain hash is enough: there is nothing to guess (NIST SP 800-63B section 5.1.4.2 asks
for a slow one where people choose).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from dispatcher.security.callers import AuthMode, AuthReason, Caller, refused
from dispatcher.security.yaml_files import YamlError, explain, load_yaml

BYTES_MAX = 1024 * 1024
TOKENS_MAX = 10_000
TOKEN_BYTES = 32
TOKEN_CHARACTERS_MAX = 512
PREFIX = "dsp_"
"""So that scanners for leaked secrets find them."""


class TokensError(ValueError):
    """A file of tokens is unusable; the message names each place, never a value."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    principal: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,512}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    expire_time: AwareDatetime | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    tokens: Annotated[list[_Entry], Field(max_length=TOKENS_MAX)]


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    expire_time: datetime | None


class TokenTable:
    """The tokens of a file. Immutable: a changed file makes a new one."""

    def __init__(self, known: Mapping[str, _Known]) -> None:
        self._known = known

    @classmethod
    def parse(cls, text: str) -> TokenTable:
        """From the YAML of a file of tokens. Raises TokensError."""
        try:
            entries = _File.model_validate(load_yaml(text, BYTES_MAX)).tokens
        except ValidationError as error:
            raise TokensError(explain(error)) from None
        except YamlError as error:
            raise TokensError(str(error)) from None
        if len({entry.sha256 for entry in entries}) != len(entries):
            raise TokensError("tokens: a hash stands twice")
        return cls({e.sha256: _Known(Caller(e.principal, AuthMode.TOKENS), e.expire_time) for e in entries})

    def __len__(self) -> int:
        return len(self._known)

    def caller_of(self, token: str, now: datetime) -> Caller:
        """Whose token it is. What a look-up's time tells is of the hash, from which no token can be made.

        Raises UnauthenticatedError.
        """
        known = self._known.get(hash_of(token)) if len(token) <= TOKEN_CHARACTERS_MAX else None
        if known is None or (known.expire_time is not None and known.expire_time <= now):
            raise refused(AuthReason.INVALID, "the token is unknown or has expired")
        return known.caller


def hash_of(token: str) -> str:
    """What the file holds of a token: SHA-256 in hex."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def new_token(random_bytes: Callable[[int], str] = secrets.token_urlsafe) -> str:
    """A fresh token: `dsp_` and 256 random bits."""
    return PREFIX + random_bytes(TOKEN_BYTES)


def utc_now() -> datetime:
    return datetime.now(UTC)
