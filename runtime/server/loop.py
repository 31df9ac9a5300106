"""One thread that owns mutable state: it runs what is handed in, watches descriptors, keeps time.

It sleeps until something happens: a request, a readable descriptor, or a due timer.
"""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


class Loop:
    """A thread with a mailbox. It may end and be started again."""

    def __init__(self, name: str, *, on_defect: Callable[[Exception], None]) -> None:
        """Prepare; :meth:`start` makes the thread.

        Args:
            name: The thread's name.
            on_defect: Told, in the thread, of an exception that nothing else caught; the thread
                then ends.
        """
        self._name = name
        self._on_defect = on_defect
        self._gate = threading.Lock()
        self._thread: threading.Thread | None = None
        self._latest_thread: threading.Thread | None = None
        self._inbox: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake: socket.socket | None = None
        self._timers: dict[str, tuple[float, Callable[[], None]]] = {}
        self._selector: selectors.BaseSelector | None = None
        self.ending = False
        """Set in the thread: it ends after what it does now, and may be unset again."""

    # --- any thread ---------------------------------------------------------------------------

    def start(self) -> None:
        """Make the thread where there is none.

        Raises:
            OSError: The system allows no further thread or pipe.
        """
        with self._gate:
            if self._thread is not None:
                return
            woken, self._wake = socket.socketpair()  # not a pipe: Windows waits for sockets only
            woken.setblocking(False)
            thread = threading.Thread(target=self._run, args=(woken,), name=self._name, daemon=True)
            self._thread = thread
            try:
                thread.start()
            except RuntimeError as exc:
                self._thread = None
                woken.close()
                self._wake.close()
                raise OSError(errno.EAGAIN, str(exc)) from exc
            self._latest_thread = thread

    def call(self, request: Callable[[], _T]) -> _T | None:
        """Have the thread run ``request`` and wait; None when there is no thread any more."""
        reply: Future[_T | None] = Future()
        with self._gate:
            if self._thread is None or self._wake is None:
                return None
            self._inbox.append((request, reply))
            self._wake.send(b"x")
        return reply.result()

    def join(self, timeout_s: float) -> None:
        """Wait for a thread that is ending."""
        thread = self._latest_thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    # --- the thread ---------------------------------------------------------------------------

    def watch(self, fd: int, action: Callable[[], None]) -> None:
        """Call ``action`` whenever ``fd`` is readable."""
        assert self._selector is not None  # noqa: S101 - only the thread itself calls this
        self._selector.register(fd, selectors.EVENT_READ, action)

    def unwatch(self, fd: int) -> None:
        """Watch ``fd`` no longer, if it was watched."""
        if self._selector is not None and fd in self._selector.get_map():
            self._selector.unregister(fd)

    def after(self, delay_s: float, name: str, action: Callable[[], None]) -> None:
        """Call ``action`` once in ``delay_s`` seconds; replaces the timer of that name."""
        self._timers[name] = (time.monotonic() + delay_s, action)

    def cancel(self, name: str) -> None:
        """Forget the timer of that name, if there is one."""
        self._timers.pop(name, None)

    def cancel_timers(self, of: str) -> None:
        """Forget every timer whose name begins so."""
        for name in [name for name in self._timers if name.startswith(of)]:
            del self._timers[name]

    def _run(self, woken: socket.socket) -> None:
        self.ending = False
        try:
            with selectors.DefaultSelector() as self._selector:
                self.watch(woken.fileno(), lambda: self._read_requests(woken))
                while not self.ending:
                    for key, _ in self._selector.select(self._patience_s()):
                        key.data()
                    self._run_due_timers()
        except Exception as exc:  # noqa: BLE001 - the top of a thread: a defect must not be a hang
            self._on_defect(exc)
        finally:
            self._timers.clear()
            with self._gate:  # from here on nobody can post to this thread
                self._thread = None
                woken.close()
                if self._wake is not None:
                    self._wake.close()
                late = list(self._inbox)
                self._inbox.clear()
            for _, reply in late:
                reply.set_result(None)

    def _patience_s(self) -> float | None:
        if not self._timers:
            return None
        return max(0.0, min(at for at, _ in self._timers.values()) - time.monotonic())

    def _run_due_timers(self) -> None:
        now = time.monotonic()
        for name, (at, action) in list(self._timers.items()):
            if at <= now and self._timers.get(name) == (at, action):
                del self._timers[name]
                action()

    def _read_requests(self, woken: socket.socket) -> None:
        woken.recv(4096)
        while self._inbox:
            request, reply = self._inbox.popleft()
            try:
                reply.set_result(request())
            except Exception as exc:  # noqa: BLE001 - belongs to whoever asked
                reply.set_exception(exc)


class Timers:
    """The timers of one owner on a loop: they meet no other's of the same name."""

    def __init__(self, loop: Loop, owner: str) -> None:
        """Prepare.

        Args:
            loop: Where they run.
            owner: Tells them from those of others.
        """
        self._loop = loop
        self._prefix = f"{owner}/"

    def after(self, delay_s: float, name: str, action: Callable[[], None]) -> None:
        """Call ``action`` once in ``delay_s`` seconds; replaces the timer of that name."""
        self._loop.after(delay_s, self._prefix + name, action)

    def cancel(self, name: str) -> None:
        """Forget the timer of that name, if there is one."""
        self._loop.cancel(self._prefix + name)

    def cancel_all(self) -> None:
        """Forget every timer of this owner."""
        self._loop.cancel_timers(self._prefix)
