"""Models that are loaded when first needed and unloaded when room or time asks for it."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from runtime.client import _refusals
from runtime.client._residency import Resident, admit, next_due, overdue
from runtime.client._seats import Lease, LoadError, Seat, State
from runtime.errors import LLMError
from runtime.inference.failures import client_closed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runtime.client._seats import Loader
    from runtime.errors import RequestTimeoutError

R = TypeVar("R")

log = logging.getLogger(__name__)


class ModelPool(Generic[R]):
    """Keeps models loaded within a memory budget. Any thread may use it.

    A model that is in use is never unloaded. Each is loaded once, by a thread of its own, while the
    others keep serving; whoever needs it meanwhile waits. A lock guards the table and is never held
    while something is loaded or unloaded.

    Args:
        loader: Loads and unloads.
        budget_bytes: Most memory that all models together take.
        idle_timeout_s: After so long without use a model is unloaded, unless :meth:`keep` says
            otherwise of it; None for never.
    """

    def __init__(
        self, loader: Loader[R], *, budget_bytes: int, idle_timeout_s: float | None
    ) -> None:
        self._loader = loader
        self._budget = budget_bytes
        self._idle_timeout_s = idle_timeout_s
        self._changed = threading.Condition()
        self._seats: dict[str, Seat[R]] = {}
        self._threads: set[threading.Thread] = set()
        self._warden: threading.Thread | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def loaded(self) -> dict[str, R]:
        """What can answer now, the most recently used last."""
        with self._changed:
            ready = [s for s in self._seats.values() if s.state is State.READY]
            ready.sort(key=lambda seat: (seat.users > 0, seat.idle_since))
            return {seat.name: seat.loaded for seat in ready if seat.loaded is not None}

    def table(self) -> dict[str, dict[str, object]]:
        """Every model that is not simply absent, as JSON values."""
        with self._changed:
            return {
                name: {
                    "state": seat.state.value,
                    "users": seat.users,
                    "planned_bytes": seat.planned_bytes,
                    "held_bytes": self._held(seat),
                }
                for name, seat in self._seats.items()
            }

    def acquire(
        self,
        name: str,
        *,
        until: float,
        given_up: Callable[[], bool],
        most_waiting: int | None = None,
    ) -> Lease[R]:
        """Use a model, which is loaded first where it is not.

        Args:
            name: The model.
            until: Instant until which to wait.
            given_up: Whether nobody wants it any more; looked at when :meth:`nudge` is called.
            most_waiting: How many may wait for it while it is on its way; None for any number.

        Raises:
            LoadError: It could not be loaded.
            QueueFullError: As many wait for it as may.
            RequestTimeoutError: Not in time; says what it waited for.
            EngineNotRunningError: The pool is closed, or it was given up.
        """
        began_at = time.monotonic()
        with self._changed:
            while True:
                if self._closed or given_up():
                    raise client_closed()
                seat = self._seats.get(name)
                if seat is None:
                    seat = self._begin(name)
                elif self._is_ruined(seat):
                    log.warning("%s has failed and is loaded anew", name)
                    seat.state = State.UNLOADING
                    self._thread(self._unload, seat)
                if seat.state is not State.UNLOADING:
                    if (
                        seat.loaded is None
                        and most_waiting is not None
                        and seat.users >= most_waiting
                    ):
                        raise _refusals.crowded(seat.name, seat.users, most_waiting)
                    return self._claim(seat, until, began_at, given_up)
                self._wait(seat, until, began_at)

    def take(self, name: str) -> Lease[R] | None:
        """Use a model that is loaded and works; None of any other. Never waits."""
        with self._changed:
            seat = self._seats.get(name)
            if self._closed or seat is None or seat.state is not State.READY:
                return None
            if seat.loaded is None or self._is_ruined(seat):
                return None
            seat.users += 1
            return Lease(seat.loaded, partial(self._give_back, seat))

    def keep(self, name: str, idle_timeout_s: float | None) -> None:
        """Let a model that is there be idle for so long from now on; None for ever."""
        with self._changed:
            seat = self._seats.get(name)
            if seat is not None and seat.idle_timeout_s != idle_timeout_s:
                seat.idle_timeout_s = idle_timeout_s
                self._watch()
                self._changed.notify_all()

    def _give_back(self, seat: Seat[R]) -> None:
        """One user less."""
        with self._changed:
            seat.users -= 1
            seat.idle_since = time.monotonic()
            self._changed.notify_all()

    def nudge(self) -> None:
        """Let who waits look whether it was given up."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Unload everything, also what is in use; waits for what is being loaded to end."""
        with self._changed:
            self._closed = True
            going = [seat for seat in self._seats.values() if seat.state is State.READY]
            for seat in going:
                seat.state = State.UNLOADING
            threads = [self._thread(self._unload, seat) for seat in going]
            threads += [thread for thread in self._threads if thread not in threads]
            self._changed.notify_all()
        for thread in threads:
            thread.join()

    # --- with the lock held ---------------------------------------------------------------------

    def _begin(self, name: str) -> Seat[R]:
        seat = self._seats[name] = Seat(name, idle_timeout_s=self._idle_timeout_s)
        self._thread(self._bring, seat)
        self._watch()
        return seat

    def _watch(self) -> None:
        timed = any(seat.idle_timeout_s is not None for seat in self._seats.values())
        if timed and self._warden is None and not self._closed:
            self._warden = self._thread(self._watch_idleness)

    def _is_ruined(self, seat: Seat[R]) -> bool:
        if seat.state is not State.READY or seat.users or seat.loaded is None:
            return False
        return not self._loader.usable(seat.name, seat.loaded)

    def _thread(self, target: Callable[..., None], *args: object) -> threading.Thread:
        def work() -> None:
            try:
                target(*args)
            finally:
                with self._changed:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=work, name=f"pool-{target.__name__}", daemon=True)
        self._threads.add(thread)
        thread.start()
        return thread

    def _claim(
        self, seat: Seat[R], until: float, began_at: float, given_up: Callable[[], bool]
    ) -> Lease[R]:
        """Wait for a model that is on its way; being counted, it does not go again meanwhile."""
        seat.users += 1
        seat.wanted_until = max(seat.wanted_until, until)
        try:
            while seat.loaded is None:
                self._refuse_ended(seat, given_up)
                self._wait(seat, until, began_at)
            return Lease(seat.loaded, partial(self._give_back, seat))
        except BaseException:  # Ctrl-C, too: who does not wait does not count
            seat.users -= 1
            seat.idle_since = time.monotonic()
            self._changed.notify_all()
            raise

    def _refuse_ended(self, seat: Seat[R], given_up: Callable[[], bool]) -> None:
        if seat.error is not None:
            raise LoadError(seat.error)
        if self._closed or given_up():
            raise client_closed()

    def _wait(self, seat: Seat[R], until: float, began_at: float) -> None:
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise self._late(seat, time.monotonic() - began_at)
        self._changed.wait(left_s)

    def _late(self, seat: Seat[R], after_s: float) -> RequestTimeoutError:
        if not seat.waits_for_room:
            return _refusals.not_loaded(seat.name, seat.state, after_s)
        used = [each.name for each in self._seats.values() if each.users and each.loaded]
        return _refusals.no_room(seat.name, seat.planned_bytes, self._budget, used, after_s)

    def _residents(self, but: Seat[R] | None = None) -> list[Resident]:
        return [
            Resident(
                name=seat.name,
                held_bytes=self._held(seat),
                idle_since=seat.idle_since
                if seat.state is State.READY and not seat.users
                else None,
                idle_timeout_s=seat.idle_timeout_s,
            )
            for seat in self._seats.values()
            if seat is not but and seat.state is not State.PREPARING
        ]

    def _held(self, seat: Seat[R]) -> int:
        seen = None if seat.loaded is None else self._loader.measured_bytes(seat.name, seat.loaded)
        return max(seat.planned_bytes, seen or 0)

    # --- threads of the pool --------------------------------------------------------------------

    def _bring(self, seat: Seat[R]) -> None:
        """Load a model (a thread of its own)."""
        loaded: R | None = None
        try:
            seat.planned_bytes = self._loader.prepare(seat.name)
            self._make_room(seat)
            loaded = self._loader.load(seat.name)
        except BaseException as exc:  # noqa: BLE001 - top of a thread; handed to who waits
            log.info("%s was not loaded: %s", seat.name, type(exc).__name__)
            seat.error = exc
        with self._changed:
            if loaded is None or self._closed:
                del self._seats[seat.name]
                seat.error = seat.error or client_closed()
            else:
                log.info("%s is loaded", seat.name)
                seat.state, seat.loaded = State.READY, loaded
                seat.idle_since = time.monotonic()
            self._changed.notify_all()
            unwanted = loaded if seat.error is not None else None
        if unwanted is not None:
            self._loader.unload(seat.name, unwanted)

    def _make_room(self, seat: Seat[R]) -> None:
        """Wait until there is room, unload for it what may go, and take it."""
        began_at = time.monotonic()
        while True:
            with self._changed:
                if self._closed:
                    raise client_closed()
                admission = admit(self._residents(but=seat), seat.planned_bytes, self._budget)
                if admission.verdict == "never":
                    raise _refusals.too_large(seat.name, seat.planned_bytes, self._budget)
                if admission.verdict == "load":
                    seat.state, seat.waits_for_room = State.LOADING, False
                    return
                seat.waits_for_room = True
                going = [self._seats[name] for name in admission.unload]
                for each in going:
                    each.state = State.UNLOADING
                if not going:
                    left_s = seat.wanted_until - time.monotonic()
                    if left_s <= 0 or not seat.users:
                        raise self._late(seat, time.monotonic() - began_at)
                    self._changed.wait(left_s)
            for each in going:
                log.info("unloading %s to make room for %s", each.name, seat.name)
                self._unload(each)

    def _unload(self, seat: Seat[R]) -> None:
        """End a model that is marked so, and let its room be taken."""
        loaded = seat.loaded
        try:
            if loaded is not None:
                self._loader.unload(seat.name, loaded)
        except LLMError as exc:
            log.warning("%s did not end in order: %s", seat.name, exc.message)
        finally:
            with self._changed:
                self._seats.pop(seat.name, None)
                self._changed.notify_all()

    def _watch_idleness(self) -> None:
        """Unload what nobody has used for long (a thread of its own, until close())."""
        while True:
            with self._changed:
                if self._closed:
                    return
                residents = self._residents()
                due = overdue(residents, time.monotonic())
                going = [self._seats[name] for name in due]
                for seat in going:
                    seat.state = State.UNLOADING
                if not going:
                    at = next_due(residents)
                    self._changed.wait(None if at is None else max(0.0, at - time.monotonic()))
            self._end(going)

    def _end(self, going: Iterable[Seat[R]]) -> None:
        for seat in going:
            log.info("unloading %s, unused for %.0f s", seat.name, seat.idle_timeout_s or 0.0)
            self._unload(seat)
