"""Sealed secrets open for their owner only, under any configured key, and are never shown."""

import base64
import pickle
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.security.secrets import Keyring, KeyringError, SealContext, Secret, SecretSealError

PLAIN = b"a very secret signing key"
CONTEXT = SealContext(UUID(int=1), UUID(int=2), "key_1")
OTHER_OWNERS = [
    SealContext(UUID(int=9), UUID(int=2), "key_1"),
    SealContext(UUID(int=1), UUID(int=9), "key_1"),
    SealContext(UUID(int=1), UUID(int=2), "key_2"),
    SealContext(UUID(int=2), UUID(int=1), "key_1"),
]


def keyring(*ids):
    return Keyring([(key_id, key_id.encode().ljust(32, b"k")) for key_id in ids])


@given(st.binary(max_size=500))
def test_what_is_sealed_opens_to_the_same(plain):
    ring = keyring("a")
    assert ring.open(ring.seal(plain, CONTEXT), CONTEXT).reveal() == plain


def test_the_sealed_form_holds_no_plain_bytes_and_differs_each_time():
    ring = keyring("a")
    first, second = ring.seal(PLAIN, CONTEXT), ring.seal(PLAIN, CONTEXT)
    assert PLAIN not in first
    assert first != second


@pytest.mark.parametrize("other", OTHER_OWNERS)
def test_a_sealed_secret_opens_for_no_other_owner(other):
    ring = keyring("a")
    with pytest.raises(SecretSealError):
        ring.open(ring.seal(PLAIN, CONTEXT), other)


def test_every_changed_byte_is_noticed():
    ring = keyring("a")
    sealed = ring.seal(PLAIN, CONTEXT)
    for place in range(len(sealed)):
        damaged = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        with pytest.raises(SecretSealError):
            ring.open(damaged, CONTEXT)


@given(st.binary(max_size=300))
def test_any_bytes_at_all_either_open_or_fail_closed(sealed):
    with pytest.raises(SecretSealError):
        keyring("a").open(sealed, CONTEXT)


def test_every_cut_is_noticed():
    ring = keyring("a")
    sealed = ring.seal(PLAIN, CONTEXT)
    for length in range(len(sealed)):
        with pytest.raises(SecretSealError):
            ring.open(sealed[:length], CONTEXT)


def test_the_first_key_seals_and_every_key_opens():
    old, both = keyring("old"), keyring("new", "old")
    sealed = old.seal(PLAIN, CONTEXT)
    assert both.open(sealed, CONTEXT).reveal() == PLAIN
    with pytest.raises(SecretSealError, match="not configured"):
        old.open(both.seal(PLAIN, CONTEXT), CONTEXT)


def test_rewrapping_moves_a_secret_to_the_first_key_so_that_the_old_one_can_go():
    old, both, new = keyring("old"), keyring("new", "old"), keyring("new")
    sealed = old.seal(PLAIN, CONTEXT)
    assert both.needs_rewrap(sealed)
    rewrapped = both.rewrap(sealed, CONTEXT)
    assert not both.needs_rewrap(rewrapped)
    assert new.open(rewrapped, CONTEXT).reveal() == PLAIN


def test_keys_are_read_from_settings_text_the_first_one_seals():
    entries = [f"{key_id}:{base64.b64encode(bytes([number]) * 32).decode()}" for number, key_id in enumerate("ab")]
    assert Keyring.parse(" , ".join(entries)).primary_key_id == "a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "a",
        "a:",
        "a:notbase64!",
        "a:" + base64.b64encode(b"short-secret").decode(),
        "a b:" + base64.b64encode(b"k" * 32).decode(),
        ":" + base64.b64encode(b"k" * 32).decode(),
        ",".join(["a:" + base64.b64encode(b"k" * 32).decode()] * 2),
    ],
)
def test_unusable_keys_are_refused_without_being_repeated(text):
    with pytest.raises(KeyringError) as refused:
        Keyring.parse(text)
    assert base64.b64encode(b"short-secret").decode() not in str(refused.value)
    assert "notbase64" not in str(refused.value)


def test_nothing_prints_a_secret_or_a_key():
    secret, ring = Secret(PLAIN), Keyring([("a", b"topsecret-topsecret-topsecret-12")])
    shown = f"{secret} {secret!r} {secret!s} {[secret]} {ring} {ring!r}"
    assert PLAIN.decode() not in shown
    assert "topsecret" not in shown
    for hidden in (secret, ring):
        with pytest.raises(TypeError):
            pickle.dumps(hidden)


def test_secrets_compare_by_value():
    assert Secret(b"a") == Secret(b"a") != Secret(b"b")


class Kms:
    """A provider whose wrapped keys are longer than ours, and which never hands out its key."""

    primary_key_id = "arn-1"

    def wrap(self, data_key: bytes, associated_data: bytes) -> bytes:
        return b"kms" * 40 + data_key[::-1] + associated_data

    def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        if key_id != self.primary_key_id or not wrapped.endswith(associated_data):
            raise SecretSealError("no")
        return wrapped[120 : 120 + 32][::-1]


def test_another_holder_of_the_keys_can_take_their_place_and_secrets_move_to_it():
    local, owner = Keyring([("k1", b"k" * 32)]), SealContext(uuid4(), uuid4(), "key-1")
    remote = Keyring(Kms())
    sealed = remote.seal(b"secret", owner)
    assert remote.open(sealed, owner).reveal() == b"secret"
    assert not remote.needs_rewrap(sealed)
    assert remote.needs_rewrap(local.seal(b"secret", owner))
    for broken in (sealed[:-1], sealed[:20], sealed[:7], bytes([3]) + sealed[1:]):
        with pytest.raises(SecretSealError):
            remote.open(broken, owner)
    with pytest.raises(SecretSealError):
        local.open(sealed, owner)
    with pytest.raises(SecretSealError):
        remote.open(sealed, SealContext(owner.tenant_id, uuid4(), "key-1"))
