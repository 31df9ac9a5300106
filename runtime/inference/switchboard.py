"""The requests a client has under way, so that its end can be theirs."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Generator


class Abortable(Protocol):
    """The connection of one request.

    Attributes:
        aborted: Whether it begins nothing any more.
    """

    aborted: bool

    def abort(self) -> None:
        """End the request: whoever waits on it is told at once."""
        ...


class Switchboard:
    """The requests a client has under way. Closing it ends them all.

    Any thread may close one whose wires any thread may abort.
    """

    def __init__(self) -> None:
        self._wires: set[Abortable] = set()
        self._lock = threading.Lock()
        self._closed = False

    @contextlib.contextmanager
    def connected(self, wire: Abortable) -> Generator[None]:
        """Count ``wire`` among them for the time being."""
        with self._lock:
            self._wires.add(wire)
            if self._closed:
                wire.abort()
        try:
            yield
        finally:
            with self._lock:
                self._wires.discard(wire)

    def close(self) -> None:
        """End every request under way, and each one to come; safe to call twice."""
        with self._lock:
            self._closed = True
            wires = list(self._wires)
        for wire in wires:  # before the end of the first gives another its slot
            wire.aborted = True
        for wire in wires:
            wire.abort()
