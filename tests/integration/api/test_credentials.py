"""An endpoint's credentials through the API: write-only, kept by an update that leaves them empty, and never sent to a
place they were not meant for."""

from __future__ import annotations

from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from webhooks.v1 import endpoint_pb2

from dispatcher.security.credentials import unseal
from dispatcher.store import endpoints
from tests.support.api import KEYRING, Api, create_endpoint, refused
from tests.support.certificates import Authority, Issued

PASSWORD, CLIENT_SECRET, HEADER_SECRET = "pass-W0rd-X", "client-S3cret-X", "header-S3cret-X"
TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
NAME = "tenants/acme/endpoints/billing"
Auth = endpoint_pb2.EndpointAuthentication
ISSUED = Authority().issue(hosts=["dispatcher"])


def basic(password: str = PASSWORD, username: str = "shop", **more: Any) -> Auth:
    return Auth(basic=endpoint_pb2.BasicAuthentication(username=username, password=password), **more)


def oauth2(secret: str = CLIENT_SECRET, token_url: str = "https://issuer.example/token", client_id: str = "c") -> Auth:
    return Auth(
        oauth2=endpoint_pb2.OAuth2ClientCredentials(
            token_url=token_url, client_id=client_id, client_secret=secret, scopes=["a"]
        )
    )


def certificate(issued: Issued = ISSUED, *, key: bool = True) -> Auth:
    return Auth(
        client_certificate=endpoint_pb2.ClientCertificate(
            certificate_chain=issued.certificate.decode(), private_key=issued.key.decode() if key else ""
        )
    )


async def create(api: Api, authentication: Auth, **fields: Any) -> endpoint_pb2.Endpoint:
    await api.tenant()
    return await api.endpoints.CreateEndpoint(create_endpoint(authentication=authentication, **fields))


def update(api: Api, mask: str, **fields: Any) -> Any:
    endpoint = endpoint_pb2.Endpoint(name=NAME, **fields)
    return api.endpoints.UpdateEndpoint(
        endpoint_pb2.UpdateEndpointRequest(endpoint=endpoint, update_mask=FieldMask(paths=mask.split(",")))
    )


async def stored(api: Api) -> Any:
    found = await endpoints.get(api.database, "acme", "billing")
    assert found.sealed_credentials is not None
    return unseal(found.sealed_credentials, found.key, KEYRING)


async def test_what_is_written_is_never_shown_and_nowhere_in_the_database_in_plain(
    api: Api, connection: asyncpg.Connection
) -> None:
    everything = basic(secret_headers={"X-Api-Key": HEADER_SECRET})
    everything.MergeFrom(certificate())
    made = await create(api, everything)
    read = await api.endpoints.GetEndpoint(endpoint_pb2.GetEndpointRequest(name=NAME))
    listed = await api.endpoints.ListEndpoints(endpoint_pb2.ListEndpointsRequest(parent="tenants/acme"))
    updated = await update(api, "description", description="x")
    for shown in (made, read, listed.endpoints[0], updated):
        assert shown.authentication.basic == endpoint_pb2.BasicAuthentication(username="shop")
        assert dict(shown.authentication.secret_headers) == {"X-Api-Key": ""}
        assert shown.authentication.client_certificate.certificate_chain == ISSUED.certificate.decode()
        assert shown.authentication.client_certificate.expire_time.seconds > 0
        assert not any(word in str(shown) for word in (PASSWORD, HEADER_SECRET, "PRIVATE KEY"))
    secrets = await stored(api)
    assert (secrets.secret, dict(secrets.headers)) == (PASSWORD, {"X-Api-Key": HEADER_SECRET})
    assert secrets.client_key == ISSUED.key.decode()
    tables = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    dump = [str(row[0]) for (table,) in tables for row in await connection.fetch(f'SELECT t::text FROM "{table}" t')]
    assert any("X-Api-Key" in line for line in dump), "the endpoint is in the dump"
    key_line = ISSUED.key.decode().splitlines()[1]
    for word in (PASSWORD, HEADER_SECRET, key_line, made.signing_keys[0].secret.removeprefix("whsec_")):
        for form in (word, word.encode().hex()):
            assert not any(form in line for line in dump)


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        (basic(), basic("", secret_headers={}), PASSWORD),
        (basic(), basic("new"), "new"),
        (oauth2(), oauth2(""), CLIENT_SECRET),
        (oauth2(), oauth2("new", client_id="other"), "new"),
    ],
)
async def test_a_secret_that_is_left_empty_stays(api: Api, before: Auth, after: Auth, kept: str) -> None:
    await create(api, before)
    await update(api, "authentication", authentication=after)
    assert (await stored(api)).secret == kept


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        (basic(), basic("", username="other"), "basic.password"),
        (oauth2(), oauth2("", token_url="https://evil.example/token"), "oauth2.client_secret"),
        (oauth2(), oauth2("", client_id="other"), "oauth2.client_secret"),
        (basic(), Auth(bearer=endpoint_pb2.BearerAuthentication()), "bearer.token"),
        (basic(), basic("", secret_headers={"X-Key": ""}), "secret_headers[X-Key]"),
        (
            certificate(),
            certificate(Authority().issue(hosts=["x"]), key=False),
            "client_certificate.private_key",
        ),
    ],
)
async def test_a_secret_is_not_kept_for_somebody_else(api: Api, before: Auth, after: Auth, field: str) -> None:
    await create(api, before)
    error = await refused(update(api, "authentication", authentication=after))
    assert error.fields == [f"endpoint.authentication.{field}"]


async def test_a_certificate_is_rotated_by_writing_the_new_one(api: Api) -> None:
    await create(api, certificate())
    new = Authority().issue(hosts=["x"])
    await update(api, "authentication", authentication=certificate(new))
    assert (await stored(api)).client_key == new.key.decode()
    await update(api, "authentication", authentication=certificate(new, key=False))
    assert (await stored(api)).client_key == new.key.decode()


async def test_credentials_are_taken_away_by_an_empty_field(api: Api) -> None:
    await create(api, basic())
    shown = await update(api, "authentication")
    assert not shown.HasField("authentication")
    assert (await endpoints.get(api.database, "acme", "billing")).sealed_credentials is None


def http(url: str = "https://receiver.example/hook", *fallbacks: str) -> endpoint_pb2.HttpTarget:
    return endpoint_pb2.HttpTarget(url=url, fallback_urls=fallbacks)


@pytest.mark.parametrize(
    "target",
    [
        http("https://evil.example/hook"),
        http("https://receiver.example:8443/hook"),
        http("http://receiver.example/hook"),
        http("https://receiver.example/hook", "https://evil.example/hook"),
    ],
)
async def test_secrets_do_not_go_to_another_origin_unless_they_are_given_again(
    api: Api, target: endpoint_pb2.HttpTarget
) -> None:
    await create(api, basic(secret_headers={"X-Api-Key": HEADER_SECRET}))
    mask = "http.url,http.fallback_urls"
    error = await refused(update(api, mask, http=target))
    assert error.fields == ["endpoint.authentication"]
    kept = basic("", secret_headers={"X-Api-Key": ""})
    assert (await refused(update(api, f"{mask},authentication", http=target, authentication=kept))).fields
    whole = basic(secret_headers={"X-Api-Key": HEADER_SECRET})
    moved = await update(api, f"{mask},authentication", http=target, authentication=whole)
    assert moved.http.url == target.url


async def test_another_path_or_no_secrets_need_nothing(api: Api) -> None:
    await create(api, basic())
    for mask, url in [
        ("http.url", "https://receiver.example/other"),
        ("http.url,authentication", "https://other.example/"),
        ("http.url", "https://third.example/"),
    ]:
        assert (await update(api, mask, http=http(url))).http.url == url


@pytest.mark.parametrize(
    ("authentication", "field"),
    [
        (basic(""), "basic.password"),
        (basic(username=""), "basic.username"),
        (basic(username="a:b"), "basic.username"),
        (basic("a\nb"), "basic.password"),
        (basic("é"), "basic.password"),
        (basic("x" * 2000), "basic.password"),
        (Auth(bearer=endpoint_pb2.BearerAuthentication(token="a b")), "bearer.token"),
        (Auth(bearer=endpoint_pb2.BearerAuthentication(token="a\r\nX: y")), "bearer.token"),
        (oauth2(token_url="http://issuer.example/token"), "oauth2.token_url"),
        (oauth2(token_url="https://169.254.169.254/token"), "oauth2.token_url"),
        (oauth2(token_url="https://user@issuer.example/"), "oauth2.token_url"),
        (oauth2(token_url="file:///etc/passwd"), "oauth2.token_url"),
        (oauth2(client_id=""), "oauth2.client_id"),
        (Auth(secret_headers={"Host": "x"}), "secret_headers[Host]"),
        (Auth(secret_headers={"Webhook-Id": "x"}), "secret_headers[Webhook-Id]"),
        (Auth(secret_headers={"Authorization": "x"}), "secret_headers[Authorization]"),
        (Auth(secret_headers={"X-A": "a\r\nB: c"}), "secret_headers[X-A]"),
        (Auth(secret_headers={f"X-{n}": "x" for n in range(9)}), "secret_headers"),
        (certificate(Issued(b"no certificate", ISSUED.key)), "client_certificate.certificate_chain"),
        (certificate(Issued(ISSUED.certificate, b"no key")), "client_certificate.private_key"),
        (
            certificate(Issued(ISSUED.certificate, Authority().issue(hosts=["x"]).key)),
            "client_certificate.private_key",
        ),
        (certificate(key=False), "client_certificate.private_key"),
    ],
)
async def test_what_can_not_be_right_is_refused_by_its_field_and_not_repeated(
    api: Api, authentication: Auth, field: str
) -> None:
    await api.tenant()
    error = await refused(api.endpoints.CreateEndpoint(create_endpoint(authentication=authentication)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.fields == [f"endpoint.authentication.{field}"]
    assert PASSWORD not in str(error.status)
    assert CLIENT_SECRET not in str(error.status)


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ({"allowed_cidrs": ["10.0.0.0/8", "10.1.1.1/8"]}, "allowed_cidrs[1]"),
        ({"allowed_cidrs": ["x"]}, "allowed_cidrs[0]"),
        ({"allowed_cidrs": ["10.0.0.0/8"] * 33}, "allowed_cidrs"),
        ({"ca_certificates": "x"}, "ca_certificates"),
        ({"ca_certificates": "x" * 100_000}, "ca_certificates"),
    ],
)
async def test_networks_and_roots_are_checked_early(api: Api, target: dict[str, Any], field: str) -> None:
    await api.tenant()
    request = create_endpoint(http=endpoint_pb2.HttpTarget(url="https://receiver.example/", **target))
    assert (await refused(api.endpoints.CreateEndpoint(request))).fields == [f"endpoint.http.{field}"]


async def test_networks_and_roots_are_shown_as_they_were_written(api: Api) -> None:
    await api.tenant()
    roots = Authority().root.decode()
    target = endpoint_pb2.HttpTarget(
        url="https://receiver.example/", allowed_cidrs=["203.0.113.0/24"], ca_certificates=roots
    )
    made = await api.endpoints.CreateEndpoint(create_endpoint(http=target))
    assert made.http == target
