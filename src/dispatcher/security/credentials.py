"""An endpoint's credentials: sealed for the database, opened for the headers they become."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from dispatcher.credentials import (
    Authentication,
    BasicAuthentication,
    BearerAuthentication,
    CredentialSecrets,
    OAuth2ClientCredentials,
)
from dispatcher.model import EndpointKey
from dispatcher.security.endpoint_tls import EndpointTls
from dispatcher.security.secrets import Keyring, SealContext, SecretSealError

SEAL_ID = "authentication"
"""In place of a signing key's id, which a key could not have: it says what is sealed."""


def seal(secrets: CredentialSecrets, key: EndpointKey, keyring: Keyring) -> bytes:
    """The sealed form for the endpoint's row."""
    plain = orjson.dumps({"secret": secrets.secret, "headers": dict(secrets.headers), "client_key": secrets.client_key})
    return keyring.seal(plain, _context(key))


def unseal(sealed: bytes, key: EndpointKey, keyring: Keyring) -> CredentialSecrets:
    """The reverse. Raises SecretSealError."""
    try:
        found = orjson.loads(keyring.open(sealed, _context(key)).reveal())
        return CredentialSecrets(str(found["secret"]), dict(found["headers"]), str(found["client_key"]))
    except (ValueError, KeyError, TypeError):
        raise SecretSealError("the sealed credentials are of another release") from None


def _context(key: EndpointKey) -> SealContext:
    return SealContext(key.tenant_id, key.endpoint_id, SEAL_ID)


@dataclass(frozen=True, slots=True)
class TokenWanted:
    """An OAuth 2.0 token that an attempt needs. Hashable: the same one is fetched once."""

    endpoint: EndpointKey
    token_url: str
    client_id: str
    client_secret: str = field(repr=False)
    scopes: tuple[str, ...]
    audience: str

    @property
    def fingerprint(self) -> str:
        """Names it in a cache without holding the secret."""
        parts = (str(self.endpoint), self.token_url, self.client_id, self.client_secret, *self.scopes, self.audience)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PreparedCredentials:
    """What an attempt takes from them: constant headers, a token to fetch, and TLS of its own."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    token: TokenWanted | None = None
    tls: EndpointTls | None = None


def prepare(
    key: EndpointKey, authentication: Authentication | None, secrets: CredentialSecrets, roots: str = ""
) -> PreparedCredentials:
    """From an endpoint's shape and opened secrets; `roots` are its own (PEM), empty for the system's."""
    shape = authentication or Authentication()
    headers = {name: secrets.headers[name] for name in shape.secret_headers if name in secrets.headers}
    token = None
    match shape.method:
        case BasicAuthentication(username):
            headers["authorization"] = basic(username, secrets.secret)
        case BearerAuthentication():
            headers["authorization"] = f"Bearer {secrets.secret}"
        case OAuth2ClientCredentials() as wanted:
            token = TokenWanted(key, wanted.token_url, wanted.client_id, secrets.secret, wanted.scopes, wanted.audience)
        case None:
            pass
    tls = EndpointTls(roots, shape.client_chain, secrets.client_key) if roots or shape.client_chain else None
    return PreparedCredentials(headers, token, tls)


def basic(username: str, password: str) -> str:
    """The value of `authorization` by RFC 7617."""
    return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"
