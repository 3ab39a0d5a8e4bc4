"""Static tokens: only their hashes are on file, and only a whole token opens anything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.errors import UnauthenticatedError
from dispatcher.security.tokens import TokensError, TokenTable, hash_of, new_token

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def table(token: str, expire: datetime | None = None) -> TokenTable:
    expiry = f", expire_time: {expire.isoformat()}" if expire else ""
    return TokenTable.parse(f"tokens: [{{principal: billing, sha256: {hash_of(token)}{expiry}}}]")


def test_a_token_is_its_principals() -> None:
    token = new_token()
    assert table(token).caller_of(token, NOW).principal == "billing"


def test_no_two_tokens_are_the_same() -> None:
    assert len({new_token() for _ in range(100)}) == 100
    assert all(len(new_token()) >= 40 for _ in range(10))


@pytest.mark.parametrize("change", ["", "x", " ", "\x00", "é"])
def test_nothing_but_the_token_opens(change: str) -> None:
    token = new_token()
    known = table(token)
    for wrong in ({token + change, change + token, token[:-1], token.upper(), hash_of(token)} - {token}) | {""}:
        with pytest.raises(UnauthenticatedError) as caught:
            known.caller_of(wrong, NOW)
        assert wrong not in str(caught.value) or len(wrong) < 2


def test_a_token_ends_with_its_time() -> None:
    token = new_token()
    known = table(token, NOW)
    assert known.caller_of(token, NOW - timedelta(seconds=1)).principal == "billing"
    with pytest.raises(UnauthenticatedError):
        known.caller_of(token, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tokens: 7",
        "tokens: [{principal: a}]",
        "tokens: [{principal: 'a b', sha256: " + "0" * 64 + "}]",
        "tokens: [{principal: a, sha256: secret}]",
        "tokens: [{principal: a, sha256: " + "A" * 64 + "}]",
        "tokens: [{principal: a, token: x, sha256: " + "a" * 64 + "}]",
        "tokens: [{principal: a, sha256: " + "a" * 64 + ", expire_time: 2027-01-01T00:00:00}]",
        "tokens: [{principal: a, sha256: " + "a" * 64 + "}, {principal: b, sha256: " + "a" * 64 + "}]",
    ],
)
def test_a_file_that_can_be_misread_is_refused_without_its_values(text: str) -> None:
    with pytest.raises(TokensError) as caught:
        TokenTable.parse(text)
    assert "secret" not in str(caught.value)
