"""What `dispatcher dev` shows: a live table in a terminal, a line every few seconds elsewhere, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dispatcher.cli.dev_shop import TENANT
from dispatcher.cli.output import console, plain
from dispatcher.embedded.ledger import LedgerTotals

LINE_INTERVAL_S = 3.0
REFRESHES_PER_S = 4


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a run: `phase` in a word or two, seconds since the command began, and until the first verified
    webhook, None before it."""

    phase: str
    elapsed_s: float
    first_webhook_s: float | None
    totals: LedgerTotals


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything is, for the reader to go on from."""

    grpc: str
    admin: str
    ops: str
    folder: Path
    log_file: Path


class Display(Protocol):
    """Use it as a context manager; `update` may be called as often as one likes."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def announce(self, lines: Sequence[str]) -> None: ...
    def update(self, snapshot: Snapshot) -> None: ...


def make_display(stream: TextIO) -> Display:
    """The display that fits the stream."""
    out = console(stream)
    return LiveTable(out) if out.is_terminal else Lines(out)


def how_to_go_on(places: Places) -> list[str]:
    """The lines that say what runs where and what to try."""
    publish = f'{{"parent":"{TENANT}","events":[{{"id":"my-1","type":"order.paid","data_text":"{{}}"}}]}}'
    grpcurl = "grpcurl -plaintext"  # its options come first: after the address it takes none
    return [
        f"gRPC API      {places.grpc} (reflection and health are on), tenant {TENANT}",
        f"admin API     {places.admin}",
        f"console       http://{places.ops}/metrics  http://{places.ops}/readyz",
        f"database, log {places.folder}  {places.log_file.name}",
        "",
        f"try  {grpcurl} {places.grpc} list",
        f'     {grpcurl} -d \'{{"parent":"{TENANT}"}}\' {places.grpc} webhooks.v1.EndpointService/ListEndpoints',
        f"     {grpcurl} -d '{publish}' {places.grpc} webhooks.v1.PublisherService/Publish",
        f"     {grpcurl} {places.admin} webhooks.admin.v1.AdminService/GetStatus",
        "     dispatcher deliveries --help",
        "Ctrl-C stops everything.",
    ]


class LiveTable:
    """The table, redrawn in place."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._live = Live(console=out, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def announce(self, lines: Sequence[str]) -> None:
        """Lines that stay, above the table."""
        for line in lines:
            self._live.console.print(plain(line), soft_wrap=True)

    def update(self, snapshot: Snapshot) -> None:
        self._live.update(Group(_headline(snapshot), _table(snapshot)), refresh=True)


def _headline(snapshot: Snapshot) -> Text:
    first = snapshot.first_webhook_s
    text = "no webhook yet" if first is None else f"first verified webhook after {first:.1f} s"
    return Text(f"{snapshot.phase}, {snapshot.elapsed_s:.0f} s; {text}", style="bold")


def _table(snapshot: Snapshot) -> Table:
    table = Table(box=box.ROUNDED)
    shown = list(figures(snapshot.totals))
    for head, _, is_bad in shown:
        table.add_column(head, justify="right", style="bold red" if is_bad else "")
    table.add_row(*(value for _, value, _ in shown))
    return table


class Lines:
    """A line at most every `LINE_INTERVAL_S` seconds, and at each change of the phase."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._phase = ""
        self._last_s = 0.0
        self._first_shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def announce(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._out.print(plain(line), soft_wrap=True)

    def update(self, snapshot: Snapshot) -> None:
        """Print what is new enough."""
        if snapshot.first_webhook_s is not None and not self._first_shown:
            self._first_shown = True
            self.announce([f"first verified webhook after {snapshot.first_webhook_s:.2f} s"])
        if snapshot.phase == self._phase and snapshot.elapsed_s - self._last_s < LINE_INTERVAL_S:
            return
        self._phase, self._last_s = snapshot.phase, snapshot.elapsed_s
        figures_text = "  ".join(f"{head} {value}" for head, value, _ in figures(snapshot.totals))
        self.announce([f"{snapshot.elapsed_s:6.1f} s  {snapshot.phase}: {figures_text}"])


def figures(totals: LedgerTotals) -> Iterator[tuple[str, str, bool]]:
    """Head, value, and whether the value is bad news."""
    yield "published", f"{totals.published:,}", False
    yield "delivered", f"{totals.delivered:,}", False
    yield "verified", f"{totals.verified:,}", totals.unverified > 0
    yield "retried", f"{totals.retried:,}", False
    yield "out of order", f"{totals.out_of_order:,}", totals.out_of_order > 0
    yield "duplicates", f"{totals.duplicates:,}", False
    yield "p50", _milliseconds(totals.p50_ms), False
    yield "p99", _milliseconds(totals.p99_ms), False


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
