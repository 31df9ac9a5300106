"""What goes through the gateway: counts, times and the last faults."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runtime.contracts import Provenance
from runtime.gateway.history import TokenHistory

if TYPE_CHECKING:
    from collections.abc import Mapping

_REMEMBERED: Final = 20

BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, math.inf)
"""Upper bounds of the times that are told apart, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A request that failed on the serving side.

    Attributes:
        at: When, ISO 8601.
        model: The model it was for, as far as that is known.
        path: Its path.
        status: The HTTP status it was answered with.
        error: The class of the error.
        message: What happened; holds nothing of prompts or answers.
    """

    at: str
    model: str | None
    path: str
    status: int
    error: str
    message: str


class Traffic:
    """Requests so far; of one event loop.

    Attributes:
        began: The instant at which counting began.
        started_at: The same as ISO 8601.
        in_flight: Requests that are being answered.
        answered: Answers by path and status; 499 where the client went away before.
        times: Answers by path and how long they took, for each of ``BUCKETS_S``.
        took_s: Seconds that all answers of a path took.
        faults: The last faults, oldest first.
        history: Tokens of each of the last seconds.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.started_at = Provenance.now_iso()
        self.in_flight = 0
        self.history = TokenHistory()
        self.answered: Counter[tuple[str, int]] = Counter()
        self.times: dict[str, list[int]] = {}
        self.took_s: defaultdict[str, float] = defaultdict(float)
        self.faults: deque[Fault] = deque(maxlen=_REMEMBERED)

    def over(self, path: str, status: int, took_s: float) -> None:
        """A request was answered, or given up by its client."""
        self.answered[path, status] += 1
        times = self.times.setdefault(path, [0] * len(BUCKETS_S))
        times[bisect_left(BUCKETS_S, took_s)] += 1
        self.took_s[path] += took_s

    def failed(self, *, path: str, status: int, model: str | None, exc: Exception) -> None:
        """Remember a fault."""
        fault = Fault(
            at=Provenance.now_iso(),
            model=model,
            path=path,
            status=status,
            error=type(exc).__name__,
            message=str(getattr(exc, "message", "") or type(exc).__name__),
        )
        self.faults.append(fault)

    def counts(self) -> Mapping[str, object]:
        """Totals as JSON values."""
        by_status: Counter[str] = Counter()
        for (_, status), count in self.answered.items():
            by_status[str(status)] += count
        return {
            "requests": self.answered.total(),
            "in_flight": self.in_flight,
            "by_status": dict(by_status),
        }
