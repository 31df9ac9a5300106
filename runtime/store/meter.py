"""Progress of a pull: counts bytes, knows the speed, tells the caller ten times a second."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

from runtime.store.local import PullPhase, PullProgress

if TYPE_CHECKING:
    from collections.abc import Callable

_INTERVAL_S: Final = 0.1
_WINDOW_S: Final = 5.0


class Meter:
    """Turns bytes into :class:`PullProgress`. Not for several threads.

    An exception of the callback ends the pull; what has arrived is kept for the next one.
    """

    def __init__(
        self,
        callback: Callable[[PullProgress], None] | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._callback = callback
        self._clock = clock
        self._source = ""
        self._phase: PullPhase = "downloading"
        self._file = ""
        self._done = 0
        self._total: int | None = None
        self._samples: deque[tuple[float, int]] = deque()
        self._told_at = 0.0

    def source(self, name: str) -> None:
        """What follows comes from the source called ``name``."""
        self._source = name

    def begin(self, phase: PullPhase, file: str, *, total: int | None, done: int = 0) -> None:
        """A phase begins; ``done`` bytes of it were there before."""
        self._phase, self._file, self._total, self._done = phase, file, total, done
        self._samples.clear()
        self._samples.append((self._clock(), done))
        self._tell()

    def advance(self, count: int) -> None:
        """``count`` more bytes are done."""
        self._done += count
        if self._clock() - self._told_at >= _INTERVAL_S:
            self._tell()

    def at(self, done: int) -> None:
        """``done`` bytes are done in all: counted by somebody else, or started over."""
        self.advance(done - self._done)

    def note(self, text: str) -> None:
        """Something a person should know has happened."""
        self._tell(text)

    def finish(self, file: str, size: int) -> None:
        """The model is on disk."""
        self.begin("done", file, total=size, done=size)

    def _tell(self, note: str | None = None) -> None:
        if self._callback is None:
            return
        now = self._told_at = self._clock()
        self._samples.append((now, self._done))
        while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW_S:
            self._samples.popleft()
        then, before = self._samples[0]
        speed = max(self._done - before, 0) / (now - then) if now > then else 0.0
        left = None if self._total is None else max(self._total - self._done, 0)
        self._callback(
            PullProgress(
                phase=self._phase,
                file=self._file,
                done_bytes=self._done,
                total_bytes=self._total,
                speed_bytes_s=speed,
                eta_s=left / speed if left is not None and speed > 0 else None,
                source=self._source,
                note=note,
            )
        )
