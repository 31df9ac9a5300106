"""Tokens a second over the last minutes: what the status page plots.

Nothing runs for it. Tokens are put into a ring of whole seconds when they come, and seconds in
which none came are noticed when the next one does or when somebody looks: idleness costs nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from runtime.inference.usage import usage_of

if TYPE_CHECKING:
    from runtime.contracts import LLMResponse

SECONDS_KEPT: Final = 600


class TokenHistory:
    """Tokens generated in each of the last seconds, all models together. For one event loop."""

    def __init__(self, *, seconds: int = SECONDS_KEPT, now_s: float | None = None) -> None:
        """Begin with nothing.

        Args:
            seconds: How many are kept.
            now_s: The present instant on the steady clock.
        """
        self._ring = [0.0] * (seconds + 1)  # one more for the second that is not over
        self._began = self._latest = int(time.monotonic() if now_s is None else now_s)

    def add(self, tokens: float, *, now_s: float | None = None) -> None:
        """Tokens that have just come."""
        second = int(time.monotonic() if now_s is None else now_s)
        self._advance(second)
        if second > self._latest - len(self._ring):
            self._ring[second % len(self._ring)] += tokens

    def spread(self, tokens: float, *, since_s: float, now_s: float | None = None) -> None:
        """Tokens that came evenly from an instant until now; each second gets its share."""
        until_s = time.monotonic() if now_s is None else now_s
        self._advance(int(until_s))
        if until_s - since_s < 1.0:
            self.add(tokens, now_s=until_s)
            return
        per_s = tokens / (until_s - since_s)
        first = max(int(since_s), self._latest - len(self._ring) + 1)
        for second in range(first, int(until_s) + 1):
            share_s = min(until_s, second + 1) - max(since_s, second)
            self.add(per_s * share_s, now_s=second)

    def to_dict(self, *, now_s: float | None = None) -> dict[str, object]:
        """``interval_s``, and the ``tokens`` of each whole second, oldest first, as JSON values.

        The last one is the second that has just ended; there are no more than the gateway is old.
        """
        second = int(time.monotonic() if now_s is None else now_s)
        self._advance(second)
        size = len(self._ring)
        first = max(self._began, second - size + 1)
        return {
            "interval_s": 1,
            "tokens": [round(self._ring[each % size], 1) for each in range(first, second)],
        }

    def meter(self) -> AnswerMeter:
        """Counts one answer in."""
        return AnswerMeter(self)

    def _advance(self, second: int) -> None:
        """Clear the seconds in which nothing came."""
        if second <= self._latest:
            return
        size = len(self._ring)
        for each in range(max(self._latest + 1, second - size + 1), second + 1):
            self._ring[each % size] = 0.0
        self._latest = second


class AnswerMeter:
    """Puts one answer into the history: piece by piece, or whole when it is there."""

    def __init__(self, history: TokenHistory) -> None:
        """Begin an answer now."""
        self._history = history
        self._since_s = time.monotonic()
        self._pieces = 0

    def piece(self, count: int = 1) -> None:
        """Pieces have come: llama.cpp sends one a token."""
        if not self._pieces:
            self._since_s = time.monotonic()
        self._pieces += count
        self._history.add(count)

    def end(self, response: LLMResponse) -> None:
        """The answer is complete; tokens that no piece told of are spread over its time."""
        tokens = usage_of(response.usage).completion_tokens or 0
        if tokens > self._pieces:
            self._history.spread(tokens - self._pieces, since_s=self._since_s)
