"""Which request ends the engine: found by who was at work each time it died.

Requests that were at work when the engine died are asked again together, at once. Whoever is the
only one that was at work at two deaths is their cause and given up. Where several were, twice, they
take turns from then on, so that a third death names its cause, and the innocent get through.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import combinations


@dataclass(slots=True)
class _Process:
    """An engine process: the requests at work in it, and what it died of once it has."""

    requests: set[int]
    died_of: str | None = None


class Incidents:
    """Shared by the requests of one client; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest = 0
        self._processes: dict[int, _Process] = {}
        self._turn: int | None = None

    def enter(self) -> int:
        """A number for a new request."""
        with self._lock:
            self._latest += 1
            return self._latest

    def leave(self, request: int) -> None:
        """A request is over. One that was answered is innocent; one that left can do no harm."""
        with self._lock:
            self._release(request)
            for generation, process in list(self._processes.items()):
                process.requests.discard(request)
                if not process.requests:
                    del self._processes[generation]

    def may_send(self, request: int) -> bool:
        """Whether a request may go to the engine now, or waits for its turn."""
        with self._lock:
            if len(self._deaths(request)) < 2:
                return True
            if self._turn is None:
                self._turn = request
            return self._turn == request

    def sent(self, request: int, generation: int) -> None:
        """A request is about to reach an engine process."""
        with self._lock:
            self._processes.setdefault(generation, _Process(set())).requests.add(request)

    def never_reached(self, request: int, generation: int) -> None:
        """It did not: nothing listened there any more."""
        with self._lock:
            if (process := self._processes.get(generation)) is not None:
                process.requests.discard(request)

    def died(self, request: int, generation: int, died_of: str | None) -> tuple[str, ...]:
        """The process that worked on a request is gone.

        Args:
            request: The request.
            generation: The process.
            died_of: How it died, if by itself; None when it was told to: no request does that.

        Returns:
            What it died of each time, when the request alone can be the cause; else nothing.
        """
        with self._lock:
            process = self._processes.get(generation)
            if process is None:
                return ()
            if died_of is None:
                del self._processes[generation]
                return ()
            process.died_of = died_of
            deaths = self._deaths(request)
            if not any(a.requests & b.requests == {request} for a, b in combinations(deaths, 2)):
                return ()
            self._release(request)
            # They are explained: whoever else was there is under no suspicion any more.
            for number, each in list(self._processes.items()):
                if any(each is death for death in deaths):
                    del self._processes[number]
            return tuple(death.died_of or "" for death in deaths)

    def _deaths(self, request: int) -> list[_Process]:
        return [
            process
            for process in self._processes.values()
            if process.died_of is not None and request in process.requests
        ]

    def _release(self, request: int) -> None:
        if self._turn == request:
            self._turn = None
