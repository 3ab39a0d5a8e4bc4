"""Writing many rows where one of them may be at fault: halve until the culprit stands alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from dispatcher.errors import UnavailableError

Row = TypeVar("Row")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Written(Generic[Row, Answer]):
    """What became of a batch: the parts that were written, each with its answer, and the rows refused on their own."""

    parts: list[tuple[Sequence[Row], Answer]] = field(default_factory=list)
    refused: list[tuple[Row, Exception]] = field(default_factory=list)


async def write_bisected(
    write: Callable[[Sequence[Row]], Awaitable[Answer]], rows: Sequence[Row]
) -> Written[Row, Answer]:
    """Write `rows` in as few calls as possible, in order, so that a bad row never fails its neighbours.

    `write` must be idempotent: `UnavailableError` says nothing about the rows and is passed on, and then parts may
    have been written already. Any other exception is taken as the fault of some row among those given.
    """
    written: Written[Row, Answer] = Written()
    left = [rows]
    while left:
        part = left.pop()
        try:
            written.parts.append((part, await write(part)))
        except UnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 - only store knows the driver's errors; all blame the rows
            if len(part) == 1:
                written.refused.append((part[0], error))
            else:
                middle = len(part) // 2
                left += [part[middle:], part[:middle]]
    return written
