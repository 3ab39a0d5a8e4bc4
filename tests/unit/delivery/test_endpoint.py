"""Preparing an endpoint: once, from stored rows that may be older than the present rules."""

from dataclasses import replace
from datetime import timedelta

import pytest

from dispatcher.credentials import Authentication, CredentialSecrets
from dispatcher.security.secrets import Keyring, SecretSealError
from tests.support.deliveries import NOW
from tests.support.endpoints import SETTINGS, USER_AGENT, runtime_of, sealed_key

HOUR = timedelta(hours=1)


def test_the_newest_revision_governs_how_everything_is_sent():
    runtime = runtime_of(revisions={3: replace(SETTINGS, timeout_s=9.0), 2: SETTINGS})
    assert runtime.revision == 3
    assert runtime.settings.timeout_s == 9.0
    assert set(runtime.revisions) == {2, 3}


def test_keys_for_good_sign_first_then_the_newest():
    runtime = runtime_of(
        keys=[
            sealed_key("older", created=NOW - 2 * HOUR, expires=NOW + HOUR),
            sealed_key("newer", created=NOW - HOUR, expires=NOW + HOUR),
            sealed_key("present", created=NOW),
        ]
    )
    assert [prepared.key_id for prepared in runtime.keys] == ["present", "newer", "older"]


def test_a_key_is_live_until_the_very_moment_of_its_expiry():
    runtime = runtime_of(keys=[sealed_key(expires=NOW)])
    expiry_s = NOW.timestamp()
    assert len(runtime.live_keys(expiry_s - 0.001)) == 1
    assert runtime.can_sign(expiry_s - 0.001)
    assert runtime.live_keys(expiry_s) == []
    assert not runtime.can_sign(expiry_s)


def test_a_key_that_does_not_open_fails_the_preparation_instead_of_a_signature_going_missing():
    broken = replace(sealed_key("broken"), key_id="other")
    with pytest.raises(SecretSealError):
        runtime_of(keys=[sealed_key(), broken])


@pytest.mark.parametrize(
    "name", ["Webhook-Id", "content-type", "USER-AGENT", "traceparent", "Authorization", "Host", "x-forwarded-for"]
)
def test_an_own_header_can_never_replace_ours_whatever_was_stored(name):
    runtime = runtime_of(headers={name: "forged", "X-Team": "billing"})
    assert runtime.constant_headers == {"X-Team": "billing", "user-agent": "dispatcher/0.1.0"}


def test_a_stored_url_that_is_refused_now_leaves_an_endpoint_that_says_why():
    runtime = runtime_of(url="https://user:secret@receiver.example/")
    assert runtime.url is None
    assert "user name or password" in runtime.url_problem
    assert "secret" not in runtime.url_problem


def test_nothing_secret_is_shown_by_printing_an_endpoint():
    shown = repr(runtime_of(headers={"X-Token": "t0ken"}))
    assert "signing secret" not in shown
    assert "HmacKey" not in shown


def test_a_secret_header_stands_alone_whatever_the_case_of_a_plain_one():
    shape, secrets = Authentication(secret_headers=("X-Api-Key",)), CredentialSecrets(headers={"X-Api-Key": "secret"})
    runtime = runtime_of(headers={"x-api-key": "plain", "x-b": "c"}, authentication=shape, secrets=secrets)
    assert dict(runtime.constant_headers) == {"x-b": "c", "user-agent": USER_AGENT}
    assert dict(runtime.credentials.headers) == {"X-Api-Key": "secret"}
    assert "secret" not in repr(runtime).replace("secret_headers", "").replace("is_secret", "")


def test_an_endpoint_whose_credentials_do_not_open_is_not_sent_to():
    other = Keyring([("other", b"o" * 32)])
    with pytest.raises(SecretSealError):
        runtime_of(authentication=Authentication(), secrets=CredentialSecrets("x"), keyring=other)
