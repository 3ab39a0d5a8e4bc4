"""The wording of hints."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model import EndpointKey
from dispatcher.store.listen import PAYLOAD_BYTES_MAX, decode_hints, encode_hints

hints = st.lists(st.tuples(st.builds(EndpointKey, st.uuids(), st.uuids()), st.integers(1, 2**63 - 1)), max_size=400)


@given(hints)
def test_hints_survive_and_fit_into_notifications(sent: list[tuple[EndpointKey, int]]) -> None:
    payloads = list(encode_hints(sent))
    assert [hint for payload in payloads for hint in decode_hints(payload)] == sent
    assert all(len(payload) <= PAYLOAD_BYTES_MAX for payload in payloads)


def test_a_full_payload_of_the_longest_hints_fits() -> None:
    key = EndpointKey(UUID(int=2**128 - 1), UUID(int=2**128 - 1))
    assert max(map(len, encode_hints([(key, 2**63 - 1)] * 200))) <= PAYLOAD_BYTES_MAX


@pytest.mark.parametrize("payload", ["", "x", "z" * 70, "0" * 64])
def test_what_is_no_hint_is_refused(payload: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of the parsers may say so
        decode_hints(payload)
