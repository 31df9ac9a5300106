"""What the command line shows: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from runtime.cli import exit_codes
from runtime.errors import EngineStartError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from runtime.errors import LLMError
    from runtime.store import PullProgress

PLAIN_PROGRESS_EVERY_S = 5.0

_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

err = Console(stderr=True, highlight=False)


def result(text: str) -> None:
    """A line of the result."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def result_json(value: object) -> None:
    """The result as JSON."""
    result(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def piece(text: str) -> None:
    """A piece of an answer, at once.

    A terminal gets no control characters of it: a model could say what moves the cursor, sets the
    title or pastes.
    """
    sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def thought(text: str) -> None:
    """A piece of what a model thinks: dim, and for a person alone."""
    if err.is_terminal:
        err.print(text.translate(_CONTROLS), style="dim", end="", markup=False, soft_wrap=True)


def note(text: str) -> None:
    """Something worth knowing that is not the result."""
    err.print(f"[dim]{escape(text)}[/dim]")


def say(label: str, text: str) -> None:
    """A fact with its name."""
    err.print(f"  [bold]{escape(label):<8}[/bold] {escape(text)}", soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of results, one row a line and nothing cut off, so that it can be piped."""
    lines = [columns, *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        result("  ".join(cells).rstrip())


def size(count: int | None) -> str:
    """Bytes for a person (``98.4 MB``)."""
    if count is None:
        return "?"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def failure(error: LLMError) -> int:
    """Show an error with its remedy; returns the exit code."""
    err.print(f"[bold red]Error:[/bold red] {escape(error.message)}", soft_wrap=True)
    if isinstance(error, EngineStartError) and error.log_tail:
        err.print("[dim]The engine's last lines:[/dim]")
        for line in error.log_tail[-8:]:
            err.print(f"[dim]  {escape(line)}[/dim]", soft_wrap=True)
    if isinstance(error, EngineStartError) and error.log_path:
        err.print(f"[dim]Its whole output: {escape(str(error.log_path))}[/dim]", soft_wrap=True)
    if error.hint:
        err.print(f"[bold]→[/bold] {escape(error.hint)}", soft_wrap=True)
    return exit_codes.of(error)


@contextmanager
def pull_progress() -> Iterator[Callable[[PullProgress], None]]:
    """A callback that shows a download: a bar on a terminal, a line now and then elsewhere."""
    if not err.is_terminal:
        yield _PlainProgress()
        return
    from rich.progress import (  # noqa: PLC0415 - only when something is downloaded
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )
    task = bar.add_task("", total=None, visible=False)

    def show(progress: PullProgress) -> None:
        if progress.note:
            bar.console.print(f"[dim]{escape(progress.note)}[/dim]")
        bar.update(
            task,
            description=f"{progress.phase} {progress.file} ({progress.source})",
            completed=progress.done_bytes,
            total=progress.total_bytes,
            visible=progress.phase != "done",
        )

    with bar:
        yield show


class _PlainProgress:
    """Progress for a log: a line at each phase and every few seconds."""

    def __init__(self) -> None:
        self._phase = ""
        self._shown_s = 0.0

    def __call__(self, progress: PullProgress) -> None:
        if progress.note:
            note(progress.note)
            return
        now = time.monotonic()
        if progress.phase == self._phase and now - self._shown_s < PLAIN_PROGRESS_EVERY_S:
            return
        if progress.phase == "done" and not self._phase:
            return  # it was here already
        self._phase, self._shown_s = progress.phase, now
        total = f" of {size(progress.total_bytes)}" if progress.total_bytes else ""
        note(f"{progress.phase} {progress.file} ({progress.source}): "
             f"{size(progress.done_bytes)}{total}")  # fmt: skip
