"""The command ``logs``: what servers print, now and as it comes."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from runtime.cli import output
from runtime.cli.selection import pick
from runtime.errors import LLMInvalidRequestError, LLMProviderError
from runtime.server import registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from runtime.server.registry import ServerRecord

LOOK_AGAIN_S = 0.2
REGISTRY_AGAIN_S = 1.0
_CHUNK = 1 << 16


@click.command()
@click.argument("server", required=False)
@click.option("-n", "--lines", type=click.IntRange(min=0), default=100, show_default=True)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
def logs(server: str | None, lines: int, *, follow: bool) -> None:
    """Show the last lines that a server printed.

    A server is named by its name, model, process id or port. Where a gateway has several files
    (its engines', and its own when it was detached), each line says whose it is.

    \b
      llama-runtime logs -n 20
      llama-runtime logs -f 8080
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    group = pick(server, registry.running(everything=True))
    files = _files(group)
    if not files:
        raise LLMInvalidRequestError(f"{group[0].name} writes no log file.", hint=None)
    if follow:
        with contextlib.suppress(KeyboardInterrupt):  # the usual way to end it, and no failure
            _follow(server, group, lines)
        return
    for label, path in files.items():
        for line in _last(path, lines):
            output.result(_labelled(label, line, files))


def _files(group: tuple[ServerRecord, ...]) -> dict[str, Path]:
    """The log files of a server by whose they are."""
    first, *engines = group
    found = {"gateway": first.own_log_path} if first.role == "serve" else {}
    # What the gateway's own record says of an engine is from its start.
    for record in engines or [first]:
        label = record.model if record.model not in found else f"{record.model} {record.name}"
        found[label] = record.log_path
    return {label: Path(path) for label, path in found.items() if path}


def _labelled(label: str, line: str, files: Mapping[str, object]) -> str:
    return f"{label} | {line}" if len(files) > 1 else line


def _last(path: Path, count: int) -> Iterable[str]:
    """The last lines of a log, those before its rotation included."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return deque((*_rotated(path), *(line.rstrip("\n") for line in file)), maxlen=count)
    except OSError as exc:
        raise LLMProviderError(
            f"Cannot read {path}: {exc.strerror or exc}.",
            hint="It was removed; restart the server to have it written again.",
        ) from exc


def _rotated(path: Path) -> list[str]:
    """The lines of the file that was full before this one."""
    with contextlib.suppress(OSError):
        return path.with_name(f"{path.name}.1").read_text("utf-8", "replace").splitlines()
    return []


# --- following ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Followed:
    """A log file that is read as it grows: also after it was rotated, emptied or removed.

    Attributes:
        path: Where it is.
    """

    path: Path
    _file: BinaryIO | None = None
    _rest: bytes = b""

    def lines(self) -> Iterator[str]:
        """The whole lines that came since the last call."""
        while self._file is not None or self._open():
            assert self._file is not None  # noqa: S101 - it is open
            while data := self._file.read(_CHUNK):
                *whole, self._rest = (self._rest + data).split(b"\n")
                yield from (line.decode("utf-8", "replace").rstrip("\r") for line in whole)
            if not self._is_another():
                return
            # What was written to the old file until it was rotated has been read.
            self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> bool:
        with contextlib.suppress(OSError):
            self._file = self.path.open("rb")
        return self._file is not None

    def _is_another(self) -> bool:
        """Whether the path has another file now; one that was emptied is read from its start."""
        assert self._file is not None  # noqa: S101 - it is open
        here = os.fstat(self._file.fileno())
        if here.st_size < self._file.tell():
            self._file.seek(0)
            return False
        try:
            there = self.path.stat()
        except OSError:
            return False
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


@dataclass(slots=True)
class _Following:
    """Everything that is followed, by whose it is."""

    files: dict[str, Followed] = field(default_factory=dict)

    def show(self) -> None:
        for label, each in self.files.items():
            self._show(label, each.lines())

    def turn_to(self, wanted: dict[str, Path], *, last: int | None = None) -> None:
        """Go on with the files of now: an engine that was restarted has another.

        Args:
            wanted: The files.
            last: How much of what is in them already is shown; None for all of it.
        """
        for label, path in wanted.items():
            known = self.files.get(label)
            if known is not None and known.path == path:
                continue
            if known is not None:
                self._show(label, known.lines())
                known.close()
            self.files[label] = Followed(path)
            if last is not None:
                whole = (*_rotated(path), *self.files[label].lines())
                self._show(label, deque(whole, maxlen=last))

    def _show(self, label: str, lines: Iterable[str]) -> None:
        for line in lines:
            output.result(_labelled(label, line, self.files))


def _follow(server: str | None, group: tuple[ServerRecord, ...], lines: int) -> None:
    """Show what comes until Ctrl-C; a server that ended is waited for by what it is called by."""
    following = _Following()
    following.turn_to(_files(group), last=lines)
    there, look_s = True, time.monotonic() + REGISTRY_AGAIN_S
    while True:
        following.show()
        if time.monotonic() >= look_s:
            look_s = time.monotonic() + REGISTRY_AGAIN_S
            now = _now(server)
            if now is not None:
                following.turn_to(_files(now))
            elif there:
                output.note(f"{group[0].name} has ended; waiting for the next. Ctrl-C ends this.")
            there = now is not None
        time.sleep(LOOK_AGAIN_S)  # the pace of looking; Ctrl-C ends it


def _now(server: str | None) -> tuple[ServerRecord, ...] | None:
    with contextlib.suppress(LLMInvalidRequestError):  # none, or several now
        return pick(server, registry.running(everything=True))
    return None
