"""How the keeper waits for its descriptors and for the end of its owner: one class a platform.

A process id can be mistaken for that of a later process. A pidfd cannot; where there is none, the
keeper looks whether it is still the child of the process that started it.
"""

from __future__ import annotations

import errno
import os
import select
import sys

TYPE_CHECKING = False  # importing typing would cost the keeper 1.6 MB
if TYPE_CHECKING:
    from typing import Any

PARENT_CHECK_S = 0.2


class PollWatch:
    """poll(2), with the owner's pidfd among the descriptors where there is one (Linux)."""

    def __init__(self, owner_pid: int, owner_fd: int) -> None:
        self._owner_pid = owner_pid
        self._owner_fd = owner_fd
        self._poll = select.poll()
        if owner_fd >= 0:
            self._poll.register(owner_fd, select.POLLIN)

    def add(self, fd: int, *, write: bool = False) -> None:
        """Wait for ``fd`` as well."""
        self._poll.register(fd, select.POLLOUT if write else select.POLLIN)

    def remove(self, fd: int) -> None:
        """Wait for ``fd`` no longer."""
        self._poll.unregister(fd)

    def wait(self, timeout_s: float | None = None) -> tuple[list[int], bool]:
        """Descriptors that are ready, and whether the owner is gone."""
        if self._owner_fd < 0 and timeout_s is None:
            timeout_s = PARENT_CHECK_S
        ready = [fd for fd, _ in self._poll.poll(None if timeout_s is None else timeout_s * 1e3)]
        gone = self._owner_fd in ready or os.getppid() != self._owner_pid
        return [fd for fd in ready if fd != self._owner_fd], gone


class KqueueWatch:
    """kqueue(2), which tells of the end of a process itself (macOS, the BSDs).

    The process that is watched is the owner and no later one with its id: the keeper is still its
    child once the watch is set.
    """

    def __init__(self, owner_pid: int, api: Any) -> None:
        """Begin.

        Args:
            owner_pid: The parent of this process.
            api: The module :mod:`select` of a system that has kqueue.
        """
        self._owner_pid = owner_pid
        self._api = api
        self._queue = api.kqueue()
        self._filters: dict[int, int] = {}
        self._gone = False
        try:
            self._change(owner_pid, api.KQ_FILTER_PROC, api.KQ_EV_ADD, api.KQ_NOTE_EXIT)
        except OSError as exc:
            if exc.errno != errno.ESRCH:
                raise
            self._gone = True

    def _change(self, ident: int, kind: int, flags: int, fflags: int = 0) -> None:
        event = self._api.kevent(ident, filter=kind, flags=flags, fflags=fflags)
        self._queue.control([event], 0, 0)

    def add(self, fd: int, *, write: bool = False) -> None:
        """Wait for ``fd`` as well."""
        self._filters[fd] = self._api.KQ_FILTER_WRITE if write else self._api.KQ_FILTER_READ
        self._change(fd, self._filters[fd], self._api.KQ_EV_ADD)

    def remove(self, fd: int) -> None:
        """Wait for ``fd`` no longer."""
        self._change(fd, self._filters.pop(fd), self._api.KQ_EV_DELETE)

    def wait(self, timeout_s: float | None = None) -> tuple[list[int], bool]:
        """Descriptors that are ready, and whether the owner is gone."""
        # At each wait, for an owner may have ended before the watch on it was set.
        gone = self._gone or os.getppid() != self._owner_pid
        events = self._queue.control(None, len(self._filters) + 1, 0 if gone else timeout_s)
        ready = [event.ident for event in events if event.filter != self._api.KQ_FILTER_PROC]
        self._gone = gone or len(ready) < len(events)
        return ready, self._gone


def watch_owner(owner_pid: int, owner_fd: int) -> PollWatch | KqueueWatch:
    """The watch of this platform."""
    if sys.platform == "darwin":
        return KqueueWatch(owner_pid, select)
    return PollWatch(owner_pid, owner_fd)
