"""What `dispatcher publish` shows: a progress bar on a terminal, the first failures, and a summary."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from dispatcher.cli.failure import first_line
from dispatcher.cli.output import console, plain, print_json
from dispatcher.cli.publishing import Failure, Listeners, Tally
from dispatcher.cli.status import ServiceStatus

FAILURES_SHOWN_MAX = 20


class Report:
    """Use it as a context manager around the run; `print_summary` afterwards."""

    def __init__(self, size: int | None) -> None:
        self._console = console(sys.stderr)
        self._failures = 0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[events]:,} events"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="yellow"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("publish", total=size, events=0, note="")
        self.listeners = Listeners(self._on_progress, self._on_failure, self._on_retry)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def _on_progress(self, tally: Tally) -> None:
        self._progress.update(self._task, completed=tally.line_bytes, events=tally.answered, note="")

    def _on_failure(self, failure: Failure) -> None:
        self._failures += 1
        if self._failures > FAILURES_SHOWN_MAX:
            return
        shown = Text(f"line {failure.line}: ", style="bold red") + plain(failure.problem)
        for detail in failure.details:
            shown += Text("\n  ") + plain(detail)
        self._console.print(shown)
        if self._failures == FAILURES_SHOWN_MAX:
            self._console.print(f"further failures are only counted ({FAILURES_SHOWN_MAX} shown)", style="dim")

    def _on_retry(self, delay_s: float, status: ServiceStatus) -> None:
        why = first_line(status.message) or "the service ended the stream"
        note = plain(f"retry in {delay_s:.1f} s: {why[:120]}")
        self._progress.update(self._task, note=note.plain)
        if not self._console.is_terminal:
            self._console.print(note, style="dim")

    def print_summary(self, tally: Tally, duration_s: float, *, as_json: bool) -> None:
        """How it ended; on standard output."""
        if as_json:
            summary = {
                "accepted": tally.accepted,
                "duplicates": tally.duplicates,
                "failed": tally.failed,
                "retries": tally.retries,
                "duration_s": round(duration_s, 3),
            }
            print_json(summary if tally.resume_line is None else {**summary, "resume_line": tally.resume_line})
            return
        rate = tally.answered / duration_s if duration_s > 0 else 0.0
        counts = f"{tally.accepted:,} accepted, {tally.duplicates:,} duplicates, {tally.failed:,} failed"
        console().print(plain(f"{counts} in {duration_s:.1f} s ({rate:,.0f} events/s, {tally.retries} retries)"))
        if tally.resume_line is not None:
            self._console.print(
                f"All before line {tally.resume_line} is published: go on with --start-line {tally.resume_line}."
            )
