"""The seam between the publish path and delivery: what has just been committed, told without a read-back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from dispatcher.model import EndpointKey, OutboxRow


class HandOff(Protocol):
    """Told after each commit, on the event loop; neither call may block or raise.

    Both are only a shortcut: a row that is lost here is found by the owner's sweep.
    """

    def owns(self, key: EndpointKey) -> bool:
        """Whether this process delivers for the endpoint now, so that building rows is worth while."""

    def offer(self, rows: Sequence[OutboxRow]) -> None:
        """Committed rows of owned endpoints, with payloads, ascending per endpoint."""

    def hint(self, highest: Mapping[EndpointKey, int]) -> None:
        """Highest committed sequence per endpoint that is not owned here, or whose rows are not at hand."""


class NoHandOff:
    """For a process that only publishes: every row is left to the owners' sweep."""

    def owns(self, key: EndpointKey) -> bool:  # noqa: ARG002 -- the protocol's signature
        return False

    def offer(self, rows: Sequence[OutboxRow]) -> None:
        """Nobody delivers here."""

    def hint(self, highest: Mapping[EndpointKey, int]) -> None:
        """Nobody is told."""
