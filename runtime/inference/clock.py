"""Deadlines of one request: which instant comes next, and what its passing means."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from runtime.errors import ConfigError, RequestTimeoutError

if TYPE_CHECKING:
    from collections.abc import Mapping

Phase = Literal["connect", "first_token", "stall", "total"]

_SETTING: dict[Phase, str] = {
    "first_token": "first_token_timeout_s",
    "stall": "stall_timeout_s",
    "total": "request_timeout_s",
}
_WAITED_FOR: dict[Phase, str] = {
    "connect": "No connection was made within",
    "first_token": "No token came within",
    "stall": "The answer stood still for",
    "total": "The answer was not complete within",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long, and how often, a request may try. All times are finite.

    Attributes:
        request_timeout_s: Seconds for the whole request, retries included.
        first_token_timeout_s: Seconds until a streamed answer begins, waiting for a slot included;
            more for a prompt that is long for the speed that was measured.
        stall_timeout_s: Seconds between two pieces of a streamed answer.
        connect_timeout_s: Seconds to connect.
        max_retries: How often a request is sent again: as it is when its answer did not begin or
            broke off, counted anew whenever it got further in between, and not counted when a
            managed engine was replaced, which has a bound of its own; with a new seed when the
            answer was not what its schema asks for.
    """

    request_timeout_s: float = 1800.0
    first_token_timeout_s: float = 300.0
    stall_timeout_s: float = 120.0
    connect_timeout_s: float = 5.0
    max_retries: int = 2

    def __post_init__(self) -> None:
        for name in ("request_timeout_s", "first_token_timeout_s", "stall_timeout_s"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < 1e9:
                raise ConfigError(
                    f"{name} is {value!r}.", hint="It is a number of seconds above 0."
                )
        if not isinstance(self.max_retries, int) or self.max_retries < 0:
            raise ConfigError(f"max_retries is {self.max_retries!r}.", hint="It is 0 or more.")


SLOWEST_SHARE: Final = 4.0
"""A prompt may take so many times as long as the speed that was measured lets expect: others may
be at work, and attention costs more the longer the prompt is."""

_TELLING_TOKENS: Final = 64
_WEIGHT: Final = 0.3


class Pace:
    """How fast an engine processes prompts, learned from the timings of its answers.

    Shared by requests; each update replaces one number, so that threads need no lock.
    """

    __slots__ = ("_seconds_per_token",)

    def __init__(self) -> None:
        self._seconds_per_token = 0.0

    def learn(self, *, tokens: int, seconds: float) -> None:
        """Take in that so many tokens took so long; too few of them tell nothing."""
        if tokens < _TELLING_TOKENS or seconds <= 0:
            return
        known, new = self._seconds_per_token, seconds / tokens
        self._seconds_per_token = (1 - _WEIGHT) * known + _WEIGHT * new if known else new

    def learn_from(self, timings: Mapping[str, object] | None) -> None:
        """Take in the timings that a llama.cpp server tells with an answer."""
        tokens, milliseconds = (timings or {}).get("prompt_n"), (timings or {}).get("prompt_ms")
        if isinstance(tokens, int) and isinstance(milliseconds, int | float):
            self.learn(tokens=tokens, seconds=milliseconds / 1000)

    def seconds(self, tokens: int) -> float:
        """How long so many tokens can be expected to take; 0 before anything was measured."""
        return tokens * self._seconds_per_token


class Clock:
    """The deadlines of a running request. All instants are ``time.monotonic``."""

    __slots__ = ("_prompt_s", "_since", "limits", "started")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.started = self._since = time.monotonic()
        self._prompt_s = 0.0

    @property
    def now(self) -> float:
        """The present instant."""
        return time.monotonic()

    def expect(self, prompt_s: float) -> None:
        """The prompt can be expected to take so long: the first token may come that much later."""
        self._prompt_s = prompt_s

    def mark(self) -> None:
        """A phase begins, or a piece of the answer came."""
        self._since = time.monotonic()

    def until(self, phase: Phase) -> float:
        """The instant by which the next thing must have happened in ``phase``."""
        total = self.started + self.limits.request_timeout_s
        if phase == "first_token":
            patience_s = max(self.limits.first_token_timeout_s, SLOWEST_SHARE * self._prompt_s)
            return min(total, self._since + patience_s)
        if phase == "stall":
            return min(total, self._since + self.limits.stall_timeout_s)
        return total

    @property
    def left_s(self) -> float:
        """Seconds left of the whole request; never negative."""
        return max(0.0, self.until("total") - time.monotonic())

    @property
    def elapsed_ms(self) -> int:
        """Milliseconds since the request began."""
        return round((time.monotonic() - self.started) * 1000)

    def timeout(
        self, phase: Phase, *, partial_text: str | None = None, doing: str = ""
    ) -> RequestTimeoutError:
        """The error for the instant of ``phase`` having passed.

        Args:
            phase: Which one.
            partial_text: What had arrived.
            doing: What the engine was doing, as far as is known.
        """
        now = time.monotonic()
        if phase != "connect" and now >= self.until("total"):
            phase = "total"
        after_s = now - (self.started if phase == "total" else self._since)
        setting = _SETTING.get(phase)
        return RequestTimeoutError(
            f"{_WAITED_FOR[phase]} {after_s:.1f} s ({phase} deadline)"
            + (f": {doing}." if doing else "."),
            phase=phase,
            after_s=after_s,
            doing=doing or None,
            partial_text=partial_text or None,
            hint=f"Raise {setting} if the model is merely slow; else look into the server's log."
            if setting
            else "Is the server running, and is its address right?",
        )
