"""The engine's output: a bounded tail in memory, and files that do not pile up."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

TAIL_LINES = 400
LINE_MAX_CHARS = 2000
LOGS_KEPT = 20


class LogTail:
    """The last lines of an output, fed in pieces of bytes. Written by one thread, read by any."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Take a piece and return the lines it completes."""
        *whole, rest = (self._rest + data).split(b"\n")
        # A line without end must not grow without end.
        self._rest = rest[-LINE_MAX_CHARS:]
        lines = [_text(line) for line in whole]
        self._lines.extend(lines)
        return lines

    def end(self) -> None:
        """Take what is left as a last line."""
        if self._rest:
            self._lines.append(_text(self._rest))
            self._rest = b""

    def last(self, count: int) -> tuple[str, ...]:
        """The last ``count`` lines, oldest first."""
        # A copy of a deque that is being appended to can fail: the writer never waits for readers.
        for _ in range(100):
            with contextlib.suppress(RuntimeError):
                return tuple(self._lines)[-count:] if count > 0 else ()
        return ()


def _text(line: bytes) -> str:
    return line[:LINE_MAX_CHARS].decode("utf-8", "replace").rstrip("\r")


def forget_old_logs(folder: Path, *, keep: int = LOGS_KEPT, spare: Collection[Path] = ()) -> None:
    """Remove all but the newest ``keep`` logs of a folder, and those that are still written."""

    def age(path: Path) -> float:
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
        return 0.0

    for old in sorted(folder.glob("*.log"), key=age, reverse=True)[keep:]:
        if old in spare:
            continue
        for path in (old, old.with_name(f"{old.name}.1")):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
