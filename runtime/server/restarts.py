"""Restarts of an engine: when the next one comes, and whether any may."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from runtime.server.lifecycle import restart_delay_s

if TYPE_CHECKING:
    from runtime.settings import RestartPolicy


class Restarts:
    """Those that count against the policy's budget. For one thread."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._at_s: list[float] = []

    def forget(self) -> None:
        """None of them counts any more."""
        self._at_s.clear()

    def next_delay_s(self, ready_since_s: float | None) -> float | None:
        """Seconds to wait before another one, which then counts; None when there may be none.

        Args:
            ready_since_s: Since when the engine that ended had been ready, on the clock of
                :func:`time.monotonic`; None when it never was.
        """
        now_s, policy = time.monotonic(), self._policy
        ready_for_s = None if ready_since_s is None else now_s - ready_since_s
        delay_s = restart_delay_s(
            policy,
            now_s=now_s,
            earlier_s=self._at_s,
            ready_for_s=ready_for_s,
            chance=random.random(),  # noqa: S311 - spreads restarts, guards nothing
        )
        if delay_s is None:
            return None
        if ready_for_s is not None and ready_for_s >= policy.stable_after_s:
            self._at_s.clear()
        self._at_s.append(now_s)
        return delay_s
