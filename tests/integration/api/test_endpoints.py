"""EndpointService over a real channel: settings, secrets, revisions, deletion, ping."""

from __future__ import annotations

import base64
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from webhooks.v1 import attempt_pb2, endpoint_pb2

from dispatcher.model import EndpointKey
from dispatcher.security.secrets import SealContext
from dispatcher.store import endpoints as store
from dispatcher.store import signing_keys
from tests.support.api import KEYRING, Api, create_endpoint, event, refused

Endpoint = endpoint_pb2.Endpoint
Settings = endpoint_pb2.DeliverySettings
SECRET = "whsec_" + base64.b64encode(b"s" * 24).decode()
NAME = "tenants/acme/endpoints/billing"


async def get(api: Api) -> Endpoint:
    return await api.endpoints.GetEndpoint(endpoint_pb2.GetEndpointRequest(name=NAME))


def update(endpoint: Endpoint, *paths: str, **options: Any) -> endpoint_pb2.UpdateEndpointRequest:
    return endpoint_pb2.UpdateEndpointRequest(endpoint=endpoint, update_mask=FieldMask(paths=paths), **options)


async def opened_secrets(api: Api) -> list[bytes]:
    """The stored secrets, newest first."""
    key: EndpointKey = (await store.get(api.database, "acme", "billing")).key
    live = await signing_keys.list_live(api.database, key)
    return [KEYRING.open(k.sealed, SealContext(key.tenant_id, key.endpoint_id, k.key_id)).reveal() for k in live]


async def test_an_endpoint_gets_defaults_and_shows_its_secret_once(api: Api) -> None:
    await api.tenant()
    created = await api.endpoint(event_types=["order.*", "*"])
    assert (created.name, created.state, created.revision) == (NAME, Endpoint.STATE_ACTIVE, 1)
    assert created.http.url == "https://receiver.example/hook"
    settings = created.delivery_settings
    assert (settings.timeout.seconds, settings.max_in_flight) == (15, 32)
    assert settings.ordering_mode == endpoint_pb2.ORDERING_MODE_ORDERED
    assert settings.trace_propagation == endpoint_pb2.TRACE_PROPAGATION_NONE
    (key,) = created.signing_keys
    assert key.secret.startswith("whsec_")
    assert [base64.b64decode(key.secret.removeprefix("whsec_"))] == await opened_secrets(api)
    read = await get(api)
    assert [k.secret for k in read.signing_keys] == [""]
    read.signing_keys[0].secret = key.secret
    assert read == created
    (listed,) = (await api.endpoints.ListEndpoints(endpoint_pb2.ListEndpointsRequest(parent="tenants/acme"))).endpoints
    assert listed == await get(api)
    assert [k.endpoint_id.hex for k in api.changed] == [created.uid.replace("-", "")]


async def test_a_secret_may_be_brought_along(api: Api) -> None:
    await api.tenant()
    request = create_endpoint()
    request.signing_secret = SECRET
    created = await api.endpoints.CreateEndpoint(request)
    assert created.signing_keys[0].secret == SECRET
    assert await opened_secrets(api) == [b"s" * 24]


def bad(**fields: Any) -> endpoint_pb2.CreateEndpointRequest:
    return create_endpoint(**fields)


def with_settings(**settings: Any) -> endpoint_pb2.CreateEndpointRequest:
    return create_endpoint(delivery_settings=Settings(**settings))


def with_url(url: str) -> endpoint_pb2.CreateEndpointRequest:
    return create_endpoint(http=endpoint_pb2.HttpTarget(url=url))


def with_fallbacks(*urls: str) -> endpoint_pb2.CreateEndpointRequest:
    return create_endpoint(http=endpoint_pb2.HttpTarget(url="https://a.example/", fallback_urls=urls))


def with_secret(secret: str) -> endpoint_pb2.CreateEndpointRequest:
    request = create_endpoint()
    request.signing_secret = secret
    return request


HEADERS = "endpoint.delivery_settings.headers"
BAD_ENDPOINTS: dict[str, tuple[endpoint_pb2.CreateEndpointRequest, str]] = {
    "no URL": (with_url(""), "endpoint.http.url"),
    "a URL that is not http": (with_url("ftp://receiver.example/"), "endpoint.http.url"),
    "a URL without a host": (with_url("https:///hook"), "endpoint.http.url"),
    "a loopback address": (with_url("http://127.0.0.1/"), "endpoint.http.url"),
    "a metadata address": (with_url("http://169.254.169.254/"), "endpoint.http.url"),
    "a metadata address to fall back on": (
        with_fallbacks("https://b.example/", "http://169.254.169.254/"),
        "endpoint.http.fallback_urls[1]",
    ),
    "a password in a fallback": (with_fallbacks("https://u:p@b.example/"), "endpoint.http.fallback_urls[0]"),
    "too many fallbacks": (
        with_fallbacks(*[f"https://{n}.example/" for n in "bcde"]),
        "endpoint.http.fallback_urls",
    ),
    "the same fallback twice": (with_fallbacks(*["https://b.example/"] * 2), "endpoint.http.fallback_urls"),
    "a password in the URL": (with_url("https://u:p@receiver.example/"), "endpoint.http.url"),
    "no event types": (bad(event_types=[]), "endpoint.event_types"),
    "too many event types": (bad(event_types=[f"a{i}" for i in range(101)]), "endpoint.event_types"),
    "a bad pattern": (bad(event_types=["a", "*.b"]), "endpoint.event_types[1]"),
    "an unknown state": (bad(state=9), "endpoint.state"),
    "a long reason": (bad(state_reason="a" * 257), "endpoint.state_reason"),
    "a long description": (bad(description="a" * 1025), "endpoint.description"),
    "a bad label": (bad(labels={"1": ""}), "endpoint.labels[1]"),
    "a short timeout": (with_settings(timeout=Duration(nanos=1)), "endpoint.delivery_settings.timeout"),
    "a long timeout": (with_settings(timeout=Duration(seconds=61)), "endpoint.delivery_settings.timeout"),
    "a malformed duration": (
        with_settings(timeout=Duration(seconds=5, nanos=-1)),
        "endpoint.delivery_settings.timeout",
    ),
    "a negative max_in_flight": (with_settings(max_in_flight=-1), "endpoint.delivery_settings.max_in_flight"),
    "a large max_in_flight": (with_settings(max_in_flight=1001), "endpoint.delivery_settings.max_in_flight"),
    "an unknown mode": (with_settings(ordering_mode=9), "endpoint.delivery_settings.ordering_mode"),
    "an unknown propagation": (with_settings(trace_propagation=9), "endpoint.delivery_settings.trace_propagation"),
    "a reserved header": (with_settings(headers={"Webhook-Id": "x"}), f"{HEADERS}[Webhook-Id]"),
    "a malformed header": (with_settings(headers={"a b": "x"}), f"{HEADERS}[a b]"),
    "Authorization": (with_settings(headers={"Authorization": "x"}), f"{HEADERS}[Authorization]"),
    "Cookie": (with_settings(headers={"cookie": "x"}), f"{HEADERS}[cookie]"),
    "a header value with a line break": (with_settings(headers={"x-a": "a\r\nb: c"}), f"{HEADERS}[x-a]"),
    "too many headers": (with_settings(headers={f"x-{i}": "a" for i in range(33)}), HEADERS),
    "a secret without its prefix": (with_secret("swordfish"), "signing_secret"),
    "a short secret": (with_secret("whsec_" + base64.b64encode(b"a").decode()), "signing_secret"),
    "an id with a dot": (create_endpoint("a.b"), "endpoint_id"),
    "a malformed parent": (create_endpoint(tenant="a.b"), "parent"),
}


@pytest.mark.parametrize("name", BAD_ENDPOINTS)
async def test_a_bad_endpoint_is_refused_by_its_field_and_not_stored(api: Api, name: str) -> None:
    await api.tenant()
    request, field = BAD_ENDPOINTS[name]
    refusal = await refused(api.endpoints.CreateEndpoint(request))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert not request.signing_secret or request.signing_secret not in str(refusal.status), "no secret in it"
    assert await api.count("endpoint") == 0
    assert await api.count("signing_key") == 0
    assert not api.changed


async def test_a_request_without_anything_names_all_that_is_missing(api: Api) -> None:
    refusal = await refused(api.endpoints.CreateEndpoint(endpoint_pb2.CreateEndpointRequest()))
    assert refusal.fields == ["parent", "endpoint", "endpoint.event_types", "endpoint.http.url"]


async def test_an_endpoint_of_an_unknown_tenant_is_not_found(api: Api) -> None:
    refusal = await refused(api.endpoint())
    assert refusal.code is grpc.StatusCode.NOT_FOUND


async def test_validate_only_creates_nothing_and_shows_no_key(api: Api) -> None:
    await api.tenant()
    request = create_endpoint()
    request.validate_only = True
    planned = await api.endpoints.CreateEndpoint(request)
    assert (planned.name, len(planned.signing_keys)) == (NAME, 0)
    assert await api.count("endpoint") == 0
    assert not api.changed


async def test_a_change_of_settings_makes_a_revision_and_tells_delivery(api: Api) -> None:
    await api.tenant()
    created = await api.endpoint()
    patch = Endpoint(name=NAME, delivery_settings=Settings(timeout=Duration(seconds=3)), description="d")
    changed = await api.endpoints.UpdateEndpoint(update(patch, "delivery_settings.timeout"))
    assert (changed.revision, changed.delivery_settings.timeout.seconds) == (2, 3)
    assert (changed.description, changed.delivery_settings.max_in_flight) == ("", 32)
    assert changed.etag != created.etag
    assert len(api.changed) == 2
    described = await api.endpoints.UpdateEndpoint(update(Endpoint(name=NAME, description="d")))
    assert (described.revision, described.description, described.http.url) == (2, "d", created.http.url)


async def test_a_whole_group_in_a_mask_resets_what_is_not_set(api: Api) -> None:
    await api.tenant()
    await api.endpoints.CreateEndpoint(with_settings(timeout=Duration(seconds=3), headers={"x-a": "b"}))
    patch = Endpoint(name=NAME, delivery_settings=Settings(max_in_flight=7))
    changed = await api.endpoints.UpdateEndpoint(update(patch, "delivery_settings"))
    settings = changed.delivery_settings
    assert (settings.timeout.seconds, dict(settings.headers), settings.max_in_flight) == (15, {}, 7)


async def test_a_new_state_takes_its_reason_or_loses_the_old_one(api: Api) -> None:
    await api.tenant()
    await api.endpoint()
    patch = Endpoint(name=NAME, state=Endpoint.STATE_PAUSED, state_reason="moving house")
    assert (await api.endpoints.UpdateEndpoint(update(patch))).state_reason == "moving house"
    listed = endpoint_pb2.ListEndpointsRequest(parent="tenants/acme", filter="state = PAUSED")
    assert len((await api.endpoints.ListEndpoints(listed)).endpoints) == 1
    resumed = await api.endpoints.UpdateEndpoint(update(Endpoint(name=NAME, state=Endpoint.STATE_ACTIVE), "state"))
    assert (resumed.state, resumed.state_reason) == (Endpoint.STATE_ACTIVE, "")


@pytest.mark.parametrize(
    ("patch", "paths", "fields"),
    [
        (Endpoint(name=NAME), ["target"], ["update_mask"]),
        (Endpoint(name=NAME), ["delivery_settings.headers.x-a"], ["update_mask"]),
        (Endpoint(name=NAME), ["http.url"], ["endpoint.http.url"]),
        (Endpoint(name="acme"), ["state"], ["endpoint.name"]),
        (Endpoint(name=NAME, state=9), [], ["endpoint.state"]),
    ],
)
async def test_a_bad_update_changes_nothing(api: Api, patch: Endpoint, paths: list[str], fields: list[str]) -> None:
    await api.tenant()
    await api.endpoint()
    before = await get(api)
    refusal = await refused(api.endpoints.UpdateEndpoint(update(patch, *paths)))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, fields)
    assert await get(api) == before


async def test_an_update_with_an_old_etag_aborts(api: Api) -> None:
    await api.tenant()
    created = await api.endpoint()
    patch = Endpoint(name=NAME, description="a", etag=created.etag)
    await api.endpoints.UpdateEndpoint(update(patch))
    patch.description = "b"
    assert (await refused(api.endpoints.UpdateEndpoint(update(patch)))).code is grpc.StatusCode.ABORTED


async def test_a_rotation_keeps_the_old_key_for_the_overlap_and_shows_the_new_secret_once(api: Api) -> None:
    await api.tenant()
    created = await api.endpoint()
    request = endpoint_pb2.RotateSigningKeyRequest(
        name=NAME, signing_secret=SECRET, overlap=Duration(seconds=60), etag=created.etag
    )
    rotated = await api.endpoints.RotateSigningKey(request)
    assert rotated.signing_key.secret == SECRET
    new, old = rotated.endpoint.signing_keys
    assert (new.id, new.state, new.secret) == (rotated.signing_key.id, endpoint_pb2.SigningKey.STATE_ACTIVE, "")
    assert (old.id, old.state) == (created.signing_keys[0].id, endpoint_pb2.SigningKey.STATE_RETIRING)
    assert old.expire_time.seconds > 0
    assert await opened_secrets(api) == [b"s" * 24, base64.b64decode(created.signing_keys[0].secret[6:])]
    again = await refused(api.endpoints.RotateSigningKey(request))
    assert again.code is grpc.StatusCode.ABORTED, "a retry with the etag does not rotate twice"


async def test_a_rotation_without_overlap_leaves_one_key(api: Api) -> None:
    await api.tenant()
    await api.endpoint()
    request = endpoint_pb2.RotateSigningKeyRequest(name=NAME, overlap=Duration())
    assert len((await api.endpoints.RotateSigningKey(request)).endpoint.signing_keys) == 1


async def test_a_sixth_live_key_is_refused(api: Api) -> None:
    await api.tenant()
    await api.endpoint()
    request = endpoint_pb2.RotateSigningKeyRequest(name=NAME)
    for _ in range(4):
        await api.endpoints.RotateSigningKey(request)
    refusal = await refused(api.endpoints.RotateSigningKey(request))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TOO_MANY_SIGNING_KEYS")
    assert await api.count("signing_key") == 5


async def test_a_bad_rotation_is_refused_by_its_fields(api: Api) -> None:
    request = endpoint_pb2.RotateSigningKeyRequest(
        name="x", signing_secret="y", overlap=Duration(seconds=31 * 86_400), etag="z" * 200
    )
    refusal = await refused(api.endpoints.RotateSigningKey(request))
    assert refusal.fields == ["name", "etag", "overlap", "signing_secret"]


async def test_deletion_waits_for_the_backlog_unless_forced_and_the_id_stays_taken(api: Api) -> None:
    await api.tenant()
    await api.endpoint()
    await api.publish(event())
    refusal = await refused(api.endpoints.DeleteEndpoint(endpoint_pb2.DeleteEndpointRequest(name=NAME)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ENDPOINT_HAS_BACKLOG")
    only = endpoint_pb2.DeleteEndpointRequest(name=NAME, force=True, validate_only=True)
    await api.endpoints.DeleteEndpoint(only)
    assert await get(api)
    await api.endpoints.DeleteEndpoint(endpoint_pb2.DeleteEndpointRequest(name=NAME, force=True))
    assert len(api.changed) == 2
    refusal = await refused(api.endpoint())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "ENDPOINT_ID_TOMBSTONED")


async def test_a_ping_goes_to_the_prober_and_a_failure_is_an_answer(api: Api) -> None:
    await api.tenant()
    created = await api.endpoint()
    answer = await api.endpoints.TestEndpoint(endpoint_pb2.TestEndpointRequest(name=NAME))
    assert (answer.outcome, answer.status_code) == (attempt_pb2.ATTEMPT_OUTCOME_HTTP_ERROR, 503)
    assert (answer.latency.nanos, answer.error, answer.response_excerpt) == (125_000_000, "answered 503", b"busy\x00")
    assert [str(key.endpoint_id) for key in api.prober.asked] == [created.uid]
    unknown = endpoint_pb2.TestEndpointRequest(name="tenants/acme/endpoints/other")
    assert (await refused(api.endpoints.TestEndpoint(unknown))).code is grpc.StatusCode.NOT_FOUND
