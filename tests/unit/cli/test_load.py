"""What a load says of a webhook server: nothing lost goes unseen, a copy is no receipt, order is that of first ones."""

from __future__ import annotations

import pytest

from dispatcher.cli.load import Published, losses
from dispatcher.embedded.load_receiver import Receipt


@pytest.mark.parametrize(
    ("received", "verdict"),
    [
        pytest.param([(0, 0), (1, 0), (0, 1), (0, 2)], (0, 0, 0), id="all in order, endpoints between one another"),
        pytest.param([(0, 0), (0, 2), (1, 0)], (1, 0, 0), id="a gap is a loss, not disorder"),
        pytest.param([(0, 0), (0, 1), (0, 0), (0, 2), (1, 0)], (0, 1, 0), id="a copy later is no disorder"),
        pytest.param([(0, 0), (0, 2), (0, 1), (1, 0)], (0, 0, 1), id="a first receipt after a later one's"),
        pytest.param([(1, 0), (0, 0), (0, 1), (0, 2), (0, 3)], (0, 0, 0), id="one whose call failed may come"),
        pytest.param([], (4, 0, 0), id="nothing came"),
    ],
)
def test_what_was_lost_came_twice_or_out_of_order(
    received: list[tuple[int, int]], verdict: tuple[int, int, int]
) -> None:
    published = Published(taken={0: [0, 1, 2], 1: [0]}, refused=1)
    receipts = [Receipt(endpoint, number, 1.0) for endpoint, number in received]
    assert losses(published, receipts) == verdict
