"""A place in line: no more requests at work than the server has slots, the others wait in order.

llama.cpp's server would queue them itself, but without a bound, without telling, and while their
deadline for the first token runs. A request enters before it is first sent and keeps its place
through resends and recovery; its driver lets it leave when its flow is over, however that ends.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from runtime.errors import ConfigError, QueueFullError, QueueTimeoutError
from runtime.inference.effects import Enter, StillQueuedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.contracts import LLMResponse
    from runtime.inference.effects import Flow

DEFAULT_MAX_QUEUE: Final = 1024
"""Requests that may wait. More is a caller that runs away, not load."""

_LATEST_WEIGHT: Final = 0.2
"""What the latest request counts in the average time that requests are at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """A queue at one moment.

    Attributes:
        slots: Requests the server works on at once; None when it is not known and nobody waits.
        running: Requests at work.
        waiting: Requests in line.
        max_queue: How many may be in line.
    """

    slots: int | None
    running: int
    waiting: int
    max_queue: int


class Place:
    """What one request has in the queue.

    Attributes:
        granted: Whether it may be at work.
        ahead: How many were in line before it when it came; None when it had not to wait.
        granted_at: Since when, on the monotonic clock.
        waited_s: Seconds it was in line.
    """

    __slots__ = ("_since", "_wake", "ahead", "granted", "granted_at", "waited_s")

    def __init__(self, wake: Callable[[], object]) -> None:
        self.granted = False
        self.ahead: int | None = None
        self.waited_s = 0.0
        self.granted_at = self._since = time.monotonic()
        self._wake = wake

    def grant(self) -> None:
        """Let it be at work, and tell who waits for that."""
        self.granted_at = time.monotonic()
        self.waited_s = self.granted_at - self._since
        self.granted = True
        self._wake()


def checked_max_queue(max_queue: int) -> int:
    """The bound of a line, if it can be one.

    Raises:
        ConfigError: It cannot.
    """
    if not isinstance(max_queue, int) or max_queue < 0:
        raise ConfigError(f"max_queue is {max_queue!r}.", hint="It is 0 or more.")
    return max_queue


class SlotQueue:
    """Requests at work and in line for one server, first come, first served.

    It waits for nothing itself: who enters is told by a callback. Every method may be called from
    any thread.
    """

    def __init__(self, max_queue: int = DEFAULT_MAX_QUEUE) -> None:
        self._max_queue = checked_max_queue(max_queue)
        self._slots: int | None = None
        self._running = 0
        self._work_s: float | None = None  # of an average request
        self._line: deque[Place] = deque()
        self._lock = threading.Lock()

    def resize(self, slots: int | None) -> None:
        """The server works on so many requests at once; None lets everyone pass."""
        if slots != self._slots:
            with self._lock:
                self._slots = slots
                self._move_up()

    def enter(self, wake: Callable[[], object], *, bounded: bool = True) -> Place:
        """Take a place, at work where a slot is free and nobody waits, else at the end of the line.

        Args:
            wake: Called once when a place in line becomes one at work, from whichever thread makes
                room; must not wait.
            bounded: Whether a full line refuses it.

        Raises:
            QueueFullError: It is full.
        """
        place = Place(wake)
        with self._lock:
            if self._slots is None or (self._running < self._slots and not self._line):
                self._running += 1
                place.granted = True
                return place
            place.ahead = waiting = len(self._line)
            if bounded and waiting >= self._max_queue:
                raise QueueFullError(
                    f"All {self._slots} slots are busy, and {waiting} requests wait already.",
                    waiting=waiting,
                    running=self._running,
                    max_queue=self._max_queue,
                    retry_after_s=None
                    if self._work_s is None
                    else self._work_s / (self._slots or 1),
                    hint="Send fewer at once, try again later, or raise max_queue or parallel.",
                )
            self._line.append(place)
        return place

    def leave(self, place: Place) -> None:
        """Give the place up, at work or in line; whoever is next moves up."""
        with self._lock:
            if place.granted:
                self._running -= 1
                took_s = time.monotonic() - place.granted_at
                before_s = took_s if self._work_s is None else self._work_s
                self._work_s = before_s + _LATEST_WEIGHT * (took_s - before_s)
                self._move_up()
            else:
                self._line.remove(place)

    def still_queued(self, place: Place) -> StillQueuedError:
        """What to tell when the time of a place in line is up."""
        with self._lock:
            return StillQueuedError(self._line.index(place) if place in self._line else 0)

    @property
    def counts(self) -> QueueCounts:
        """How it stands."""
        with self._lock:
            return QueueCounts(
                slots=self._slots,
                running=self._running,
                waiting=len(self._line),
                max_queue=self._max_queue,
            )

    def _move_up(self) -> None:
        while self._line and (self._slots is None or self._running < self._slots):
            self._running += 1
            self._line.popleft().grant()


def take_place(until: float, *, bounded: bool = True) -> Flow[Place | None]:
    """A place at work, waited for in line; None from a driver that keeps none.

    Raises:
        QueueFullError: The line is full.
        QueueTimeoutError: The time is up.
        AbortedError: The client was closed meanwhile.
    """
    since = time.monotonic()
    try:
        place: Place | None = yield Enter(until=until, bounded=bounded)
    except StillQueuedError as exc:
        after_s = time.monotonic() - since
        raise QueueTimeoutError(
            f"No slot was free within {after_s:.1f} s (total deadline); the request waited in the "
            f"queue, {exc.ahead} ahead of it.",
            after_s=after_s,
            ahead=exc.ahead,
            doing="every slot of the engine was at work on another request",
            hint="Send fewer at once, raise parallel for more slots, or raise request_timeout_s.",
        ) from exc
    return place


def noted(response: LLMResponse, place: Place | None) -> LLMResponse:
    """The response with ``raw["queue"]``, when its request had to wait."""
    if place is None or place.ahead is None:
        return response
    note = {"ahead": place.ahead, "waited_ms": round(place.waited_s * 1000)}
    return replace(response, raw={**(response.raw or {}), "queue": note})
