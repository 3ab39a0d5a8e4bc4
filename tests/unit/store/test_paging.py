"""Page tokens: they carry a position through, and nothing malformed or foreign gets past."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.errors import InvalidRequestError
from dispatcher.store.paging import decode_token, encode_token, page_size

QUERY = ("deliveries", "acme", "-", "")
KINDS = (UUID, int, datetime, str)


@given(
    st.uuids(),
    st.integers(0, 2**63 - 1),
    st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1)).map(lambda t: t.replace(tzinfo=UTC)),  # noqa: DTZ001
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60),
)
def test_a_token_gives_back_its_position(endpoint: UUID, seq: int, time: datetime, name: str) -> None:
    position = (endpoint, seq, time, name)
    assert decode_token(QUERY, encode_token(QUERY, position), KINDS) == position


def test_no_token_is_the_first_page() -> None:
    assert decode_token(QUERY, "", KINDS) is None


def test_a_token_of_another_query_is_refused() -> None:
    token = encode_token(QUERY, (7,))
    with pytest.raises(InvalidRequestError) as refused:
        decode_token((*QUERY, "type = a"), token, (int,))
    assert refused.value.violations[0].field == "page_token"


@given(st.text(max_size=80))
def test_no_malformed_token_raises_anything_else(token: str) -> None:
    with contextlib.suppress(InvalidRequestError):
        assert decode_token(QUERY, token, (int,)) is None


@pytest.mark.parametrize("position", [(1, 2), ("x",), (-1,), (2**63,), (True,)])
def test_a_position_of_other_kinds_is_refused(position: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequestError):
        decode_token(QUERY, encode_token(QUERY, position), (int,))


def test_an_oversized_token_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        decode_token(QUERY, encode_token(QUERY, ("x" * 2000,)), (str,))


def test_page_sizes() -> None:
    assert [page_size(0), page_size(7), page_size(10**6)] == [50, 7, 1000]
    with pytest.raises(InvalidRequestError):
        page_size(-1)
