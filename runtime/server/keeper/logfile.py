"""The log file of an engine's output."""

from __future__ import annotations

import contextlib
import os
import time


class Log:
    """A log file that is rotated by size and never stops the engine, whatever the disk does."""

    def __init__(self, path: str | None, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.size = 0
        self.fd = -1
        self.in_line = False
        self._open()

    def _open(self) -> None:
        if self.path is None:
            return
        try:
            self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self.size = os.fstat(self.fd).st_size
        except OSError:
            self.fd = -1

    def write(self, data: bytes) -> None:
        """Append, rotating a full file; a failing disk loses lines, not the engine."""
        if self.path is None:
            return
        if self.size >= self.max_bytes:
            if self.fd >= 0:
                os.close(self.fd)
            with contextlib.suppress(OSError):
                os.replace(self.path, self.path + ".1")  # noqa: PTH105 - pathlib is slow to import
            self._open()
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self.fd, data)
        self.size += len(data)
        self.in_line = not data.endswith(b"\n")

    def note(self, text: str) -> None:
        """A line of the keeper's own."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        start = "\n" if self.in_line else ""
        self.write(f"{start}[llama-runtime] {stamp} {text}\n".encode())
