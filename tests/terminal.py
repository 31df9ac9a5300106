"""A program in a terminal of its own, typed to and read by a test."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

CTRL_C, CTRL_D, TAB, ENTER, ALT_ENTER, UP = "\x03", "\x04", "\t", "\r", "\x1b\r", "\x1b[A"
PROMPT = "\N{BLACK RIGHT-POINTING POINTER}"
"""Stands on the screen where an editor began to take keys."""

_TAKES_KEYS = "\x1b[?2004h"  # it asks for pasted text to be marked

# Ctrl-C becomes a signal only in the terminal that a process controls.
_CONTROLLING = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_=>])")


class Terminal:
    """A process whose terminal is 120 columns wide. A context manager that ends it.

    Attributes:
        process: The process.
        screen: All that it wrote so far, without escape sequences.
    """

    def __init__(self, *words: str, **env: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CONTROLLING, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **env},
        )
        os.close(slave)
        self._raw = b""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._master)  # a terminal that is closed ends what runs in it
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def raw(self) -> str:
        """All that it wrote so far."""
        return self._raw.decode("utf-8", "replace")

    @property
    def screen(self) -> str:
        """The same without escape sequences, and with plain ends of lines."""
        marked = self.raw.replace(_TAKES_KEYS, PROMPT)
        return _ESCAPES.sub("", marked).replace("\r", "")

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._master, text.encode())

    def expect(self, text: str, *, timeout_s: float = 8.0) -> str:
        """Wait until it has written this; returns what it wrote since the last time, until then."""
        deadline = time.monotonic() + timeout_s
        while (found := self.screen.find(text, self._seen)) < 0:
            if not self._read(deadline):
                raise AssertionError(f"waited in vain for {text!r}; it wrote: {self.screen!r}")
        before, self._seen = self.screen[self._seen : found], found + len(text)
        return before

    def read_now(self) -> int:
        """Take what it has written; returns how much that is in all."""
        self._read(time.monotonic())
        return len(self._raw)

    def ends(self, *, timeout_s: float = 20.0) -> int:
        """Wait until it has ended; returns its exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        """Take what it writes next; false when nothing comes before the deadline, or ever."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says so when the other side is closed
            return False
        self._raw += data
        return bool(data)
