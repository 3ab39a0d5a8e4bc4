"""An endpoint's authentication as it stands in `endpoint.authentication`; pure. No secret is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dispatcher.credentials import Authentication, BasicAuthentication, BearerAuthentication, OAuth2ClientCredentials


def authentication_to_json(authentication: Authentication | None) -> dict[str, Any] | None:
    """The object to store, None for none."""
    if authentication is None:
        return None
    said: dict[str, Any] = {}
    match authentication.method:
        case BasicAuthentication(username):
            said["basic"] = {"username": username}
        case BearerAuthentication():
            said["bearer"] = {}
        case OAuth2ClientCredentials() as oauth2:
            said["oauth2"] = {
                "token_url": oauth2.token_url,
                "client_id": oauth2.client_id,
                "scopes": list(oauth2.scopes),
                "audience": oauth2.audience,
            }
        case None:
            pass
    if authentication.secret_headers:
        said["secret_headers"] = list(authentication.secret_headers)
    if authentication.client_chain:
        said["client_chain"] = authentication.client_chain
    return said


def authentication_from_json(stored: Mapping[str, Any] | None) -> Authentication | None:
    """The reverse. ValueError for a method of a newer release: what it asks for must not be left out."""
    if stored is None:
        return None
    unknown = set(stored) - {"basic", "bearer", "oauth2", "secret_headers", "client_chain"}
    if unknown:
        raise ValueError(f"authentication of another release: {', '.join(sorted(unknown))}")
    return Authentication(_method(stored), tuple(stored.get("secret_headers", ())), stored.get("client_chain", ""))


def _method(stored: Mapping[str, Any]) -> BasicAuthentication | BearerAuthentication | OAuth2ClientCredentials | None:
    if "basic" in stored:
        return BasicAuthentication(stored["basic"]["username"])
    if "bearer" in stored:
        return BearerAuthentication()
    if "oauth2" in stored:
        said = stored["oauth2"]
        return OAuth2ClientCredentials(said["token_url"], said["client_id"], tuple(said["scopes"]), said["audience"])
    return None
