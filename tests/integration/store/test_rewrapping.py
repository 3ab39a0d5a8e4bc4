"""Rotation of the keys that seal: every secret ends under the first key, and opens all the time."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable

import pytest

from dispatcher.credentials import Authentication, BearerAuthentication, CredentialSecrets
from dispatcher.model import Endpoint, EndpointKey
from dispatcher.security.credentials import SEAL_ID, seal, unseal
from dispatcher.security.secrets import Keyring, SealContext, SecretSealError
from dispatcher.store import endpoints, rewrapping, signing_keys
from dispatcher.store.database import Database
from dispatcher.store.rewrapping import rewrap_all
from dispatcher.store.signing_keys import NewSigningKey
from tests.support.cli import run_cli
from tests.support.configured import make_tenant, new_endpoint
from tests.support.postgres import TestDatabase

OLD, NEW = ("old", b"o" * 32), ("new", b"n" * 32)
FORMER, BOTH, LATER = Keyring([OLD]), Keyring([NEW, OLD]), Keyring([NEW])


def rewrapper(keyring: Keyring) -> Callable[[bytes, EndpointKey, str], bytes | None]:
    def anew(sealed: bytes, key: EndpointKey, key_id: str) -> bytes | None:
        context = SealContext(key.tenant_id, key.endpoint_id, key_id or SEAL_ID)
        return keyring.rewrap(sealed, context) if keyring.needs_rewrap(sealed) else None

    return anew


async def sealed_endpoint(db: Database, name: str, keyring: Keyring = FORMER) -> Endpoint:
    """An endpoint with a key and a token, both sealed."""
    owner = await endpoints.tenants.get(db, "acme")
    new = new_endpoint(name, authentication=Authentication(BearerAuthentication()))
    key = EndpointKey(owner.tenant_id, new.endpoint_id)
    signing = keyring.seal(f"secret of {name}".encode(), SealContext(*_ids(key), "k1"))
    token = seal(CredentialSecrets(f"token-{name}"), key, keyring)
    new = new_endpoint(name, authentication=new.authentication, endpoint_id=new.endpoint_id, sealed_credentials=token)
    return await endpoints.create(db, "acme", new, [NewSigningKey("k1", signing)])


def _ids(key: EndpointKey) -> tuple:  # type: ignore[type-arg] # two uids
    return key.tenant_id, key.endpoint_id


async def opened(db: Database, endpoint: Endpoint, keyring: Keyring) -> tuple[bytes, str]:
    """Both secrets. Raises SecretSealError."""
    found = await endpoints.get(db, "acme", endpoint.name)
    (key,) = await signing_keys.list_live(db, found.key)
    assert found.sealed_credentials is not None
    signing = keyring.open(key.sealed, SealContext(*_ids(found.key), "k1")).reveal()
    return signing, unseal(found.sealed_credentials, found.key, keyring).secret


async def test_every_secret_ends_under_the_first_key_and_nothing_else_changes(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrapping, "BATCH_ROWS", 2)
    await make_tenant(db)
    made = [await sealed_endpoint(db, f"e{n}") for n in range(5)]
    report = await rewrap_all(db, rewrapper(BOTH), (SecretSealError,))
    assert (report.seen, report.changed, report.unopened) == (10, 10, ())
    for each in made:
        assert await opened(db, each, LATER) == (f"secret of {each.name}".encode(), f"token-{each.name}")
        after = await endpoints.get(db, "acme", each.name)
        assert (after.etag, after.update_time, after.revision) == (each.etag, each.update_time, each.revision)
        with pytest.raises(SecretSealError):
            await opened(db, each, FORMER)
    again = await rewrap_all(db, rewrapper(BOTH), (SecretSealError,))
    assert (again.seen, again.changed) == (10, 0)


async def test_a_secret_that_no_key_opens_is_told_and_the_others_are_done(db: Database) -> None:
    await make_tenant(db)
    lost = await sealed_endpoint(db, "lost", Keyring([("gone", b"g" * 32)]))
    kept = await sealed_endpoint(db, "kept")
    report = await rewrap_all(db, rewrapper(BOTH), (SecretSealError,))
    assert (report.seen, report.changed) == (4, 2)
    assert all(str(lost.key.endpoint_id) in each for each in report.unopened)
    assert len(report.unopened) == 2
    await opened(db, kept, LATER)


async def test_a_secret_written_anew_meanwhile_is_left_as_it_is(db: Database) -> None:
    await make_tenant(db)
    made = await sealed_endpoint(db, "e")
    newer = seal(CredentialSecrets("newer"), made.key, LATER)
    await db.execute("UPDATE endpoint SET sealed_credentials = $1", newer)
    stale = seal(CredentialSecrets("old"), made.key, FORMER)
    changed = await db.execute(
        rewrapping.SET_CREDENTIALS,
        made.key.tenant_id,
        made.key.endpoint_id,
        "",
        stale,
        rewrapper(BOTH)(stale, made.key, ""),
    )
    assert changed == "UPDATE 0"
    assert (await opened(db, made, BOTH))[1] == "newer"


async def test_the_command_tells_what_it_did_and_fails_where_a_secret_stays_behind(
    db: Database, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_tenant(db)
    made = await sealed_endpoint(db, "e")
    old, new = (f"{name}:{base64.b64encode(key).decode()}" for name, key in (OLD, NEW))
    monkeypatch.setenv("DISPATCHER_DATABASE_URL", database.dsn)
    monkeypatch.setenv("DISPATCHER_SECRET_KEYS", new)
    failed = await asyncio.to_thread(run_cli, "secrets", "rewrap")
    assert failed.code == 1
    assert str(made.key.endpoint_id) in failed.err
    monkeypatch.setenv("DISPATCHER_SECRET_KEYS", f"{new},{old}")
    done = await asyncio.to_thread(run_cli, "secrets", "rewrap", "--json")
    assert (done.code, done.json) == (0, {"seen": 2, "changed": 2, "unopened": []})
    assert (await opened(db, made, LATER))[1] == "token-e"


def test_a_fresh_key_is_one_that_the_settings_take() -> None:
    made = run_cli("secrets", "new-key", "k2")
    assert Keyring.parse(made.out.strip()).primary_key_id == "k2"
    assert run_cli("secrets", "new-key", "k 2").code == 2


def test_a_token_and_its_entry_fit_together() -> None:
    from dispatcher.security.tokens import hash_of

    made = run_cli("tokens", "new", "billing", "--json")
    assert made.json["entry"] == {"principal": "billing", "sha256": hash_of(made.json["token"])}
    assert run_cli("tokens", "new", "two words").code == 2
