"""Deadlines of one request: which instant comes next, and what its passing means."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from runtime.errors import ConfigError, RequestTimeoutError

Phase = Literal["connect", "first_token", "stall", "total"]

_SETTING: dict[Phase, str] = {
    "first_token": "first_token_timeout_s",
    "stall": "stall_timeout_s",
    "total": "request_timeout_s",
}
_WAITED_FOR: dict[Phase, str] = {
    "connect": "No connection was made",
    "first_token": "No token came",
    "stall": "The answer stood still",
    "total": "The answer was not complete",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long, and how often, a request may try. All times are finite.

    Attributes:
        request_timeout_s: Seconds for the whole request, retries included.
        first_token_timeout_s: Seconds until a streamed answer begins, waiting for a slot included.
        stall_timeout_s: Seconds between two pieces of a streamed answer.
        connect_timeout_s: Seconds to connect.
        max_retries: How often a request is sent again: as it is when it failed before its answer
            began, with a new seed when the answer was not what its schema asks for.
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


class Clock:
    """The deadlines of a running request. All instants are ``time.monotonic``."""

    __slots__ = ("_since", "limits", "started")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.started = self._since = time.monotonic()

    def mark(self) -> None:
        """A phase begins, or a piece of the answer came."""
        self._since = time.monotonic()

    def until(self, phase: Phase) -> float:
        """The instant by which the next thing must have happened in ``phase``."""
        total = self.started + self.limits.request_timeout_s
        if phase == "first_token":
            return min(total, self._since + self.limits.first_token_timeout_s)
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

    def timeout(self, phase: Phase, *, partial_text: str | None = None) -> RequestTimeoutError:
        """The error for the instant of ``phase`` having passed."""
        now = time.monotonic()
        if phase != "connect" and now >= self.until("total"):
            phase = "total"
        after_s = now - (self.started if phase == "total" else self._since)
        setting = _SETTING.get(phase)
        return RequestTimeoutError(
            f"{_WAITED_FOR[phase]} within {after_s:.1f} s ({phase} deadline).",
            phase=phase,
            after_s=after_s,
            partial_text=partial_text or None,
            hint=f"Raise {setting} if the model is merely slow; else look into the server's log."
            if setting
            else "Is the server running, and is its address right?",
        )
