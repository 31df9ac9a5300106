"""A place in line: no more requests at work than the server has slots, the others wait in order.

llama.cpp's server would queue them itself, but without a bound, without telling, and while their
deadline for the first token runs. A request enters before it is first sent and keeps its place
through resends and recovery; its driver lets it leave when its flow is over, however that ends.

Long prompts that come together are begun a few at a time where their first tokens come sooner so,
see :attr:`runtime.engines.base.Endpoint.prompts_at_once`. For one that has a slot this is no line:
it is not told of, and nobody is refused for it.
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
        running: Requests that have a slot.
        waiting: Requests in line for one.
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
        begins: Whether it brings a long prompt that no slot has taken up yet.
        ahead: How many were in line before it when it came; None when a slot was free.
        granted_at: Since when, on the monotonic clock.
        waited_s: Seconds it was in line.
    """

    __slots__ = (
        "_queue",
        "_since",
        "_wake",
        "ahead",
        "begins",
        "granted",
        "granted_at",
        "waited_s",
    )

    def __init__(self, queue: SlotQueue, wake: Callable[[], object], *, long: bool) -> None:
        self.granted = False
        self.begins = long
        self._queue = queue
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

    def begun(self) -> None:
        """A slot has taken the prompt up."""
        if self.begins:
            self._queue.begun(self)


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
        self._prompts_at_once: int | None = None
        self._running = 0
        self._beginning = 0  # of those at work
        self._work_s: float | None = None  # of an average request
        self._line: deque[Place] = deque()
        self._lock = threading.Lock()

    def resize(self, slots: int | None, prompts_at_once: int | None = None) -> None:
        """The server works on so many requests at once; None lets everyone pass.

        Args:
            slots: How many.
            prompts_at_once: How many long prompts are begun at a time; None for all.
        """
        if (slots, prompts_at_once) != (self._slots, self._prompts_at_once):
            with self._lock:
                self._slots, self._prompts_at_once = slots, prompts_at_once
                self._move_up()

    def enter(
        self, wake: Callable[[], object], *, bounded: bool = True, long: bool = False
    ) -> Place:
        """Take a place, at work where a slot is free and nobody waits, else at the end of the line.

        Args:
            wake: Called once when a place in line becomes one at work, from whichever thread makes
                room; must not wait.
            bounded: Whether a full line refuses it.
            long: Whether it brings a long prompt; :meth:`Place.begun` tells when that is begun.

        Raises:
            QueueFullError: It is full.
        """
        place = Place(self, wake, long=long)
        with self._lock:
            if not self._line and self._has_room(place):
                self._count(place)
                place.granted = True
                return place
            present = self._running + len(self._line)
            waiting = present - (self._slots or 0)
            if waiting < 0:  # a slot is free, and it is only not its turn to begin
                self._line.append(place)
                return place
            place.ahead = waiting
            if bounded and waiting >= self._max_queue:
                raise QueueFullError(
                    f"All {self._slots} slots are busy, and {waiting} requests wait already.",
                    waiting=waiting,
                    running=present - waiting,
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
                self._beginning -= place.begins
                place.begins = False
                took_s = time.monotonic() - place.granted_at
                before_s = took_s if self._work_s is None else self._work_s
                self._work_s = before_s + _LATEST_WEIGHT * (took_s - before_s)
            else:
                self._line.remove(place)
            self._move_up()

    def begun(self, place: Place) -> None:
        """The prompt of a place at work is begun; whoever waits for that moves up."""
        with self._lock:
            if place.begins and place.granted:
                place.begins = False
                self._beginning -= 1
                self._move_up()

    def still_queued(self, place: Place) -> StillQueuedError:
        """What to tell when the time of a place in line is up."""
        with self._lock:
            ahead = self._line.index(place) if place in self._line else 0
        return StillQueuedError(ahead, had_slot=place.ahead is None)

    @property
    def counts(self) -> QueueCounts:
        """How it stands."""
        with self._lock:
            present = self._running + len(self._line)
            waiting = 0 if self._slots is None else max(0, present - self._slots)
            return QueueCounts(
                slots=self._slots,
                running=present - waiting,
                waiting=waiting,
                max_queue=self._max_queue,
            )

    def _move_up(self) -> None:
        while self._line and self._has_room(self._line[0]):
            place = self._line.popleft()
            self._count(place)
            place.grant()

    def _has_room(self, place: Place) -> bool:
        if self._slots is None:
            return True
        most = self._prompts_at_once
        its_turn = not place.begins or most is None or self._beginning < most
        return its_turn and self._running < self._slots

    def _count(self, place: Place) -> None:
        self._running += 1
        self._beginning += place.begins


def take_place(until: float, *, bounded: bool = True, long: bool = False) -> Flow[Place | None]:
    """A place at work, waited for in line; None from a driver that keeps none.

    Args:
        until: The instant by which it must be had.
        bounded: Whether a full line refuses it.
        long: As of :meth:`SlotQueue.enter`.

    Raises:
        QueueFullError: The line is full.
        QueueTimeoutError: The time is up.
        AbortedError: The client was closed meanwhile.
    """
    since = time.monotonic()
    try:
        place: Place | None = yield Enter(until=until, bounded=bounded, long=long)
    except StillQueuedError as exc:
        after_s = time.monotonic() - since
        lacked = (
            "No slot had taken up the prompts before it" if exc.had_slot else "No slot was free"
        )
        raise QueueTimeoutError(
            f"{lacked} within {after_s:.1f} s (total deadline); the request waited in the "
            f"queue, {exc.ahead} ahead of it.",
            after_s=after_s,
            ahead=exc.ahead,
            doing="the engine had yet to begin with the long prompts of other requests"
            if exc.had_slot
            else "every slot of the engine was at work on another request",
            hint="Send fewer at once, raise parallel for more slots, or raise request_timeout_s.",
        ) from exc
    return place


def noted(response: LLMResponse, place: Place | None) -> LLMResponse:
    """The response with ``raw["queue"]``, when its request had to wait."""
    if place is None or place.ahead is None:
        return response
    note = {"ahead": place.ahead, "waited_ms": round(place.waited_s * 1000)}
    return replace(response, raw={**(response.raw or {}), "queue": note})
