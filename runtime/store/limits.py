"""How patient the store is with the network."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How patient a pull is.

    Attributes:
        reach_timeout_s: To resolve a source's name and open a connection, all its addresses
            together; past it the next source has its turn.
        answer_timeout_s: For an answer about a model (not for the model itself).
        stall_timeout_s: Longest silence inside a download before the connection is dropped.
        attempts: Tries in a row that bring no byte before a download is given up.
        backoff_base_s: The n-th wait between tries is random in [0.5, 1] · base · 2^n.
        backoff_max_s: The longest such wait, and the longest ``Retry-After`` that is waited for.
    """

    reach_timeout_s: float = 2.5
    answer_timeout_s: float = 10.0
    stall_timeout_s: float = 30.0
    attempts: int = 7
    backoff_base_s: float = 0.5
    backoff_max_s: float = 10.0

    def hurried(self) -> Limits:
        """Less patience, for a source that has another one behind it."""
        return replace(
            self,
            answer_timeout_s=min(self.answer_timeout_s, 3.0),
            stall_timeout_s=min(self.stall_timeout_s, 10.0),
            attempts=min(self.attempts, 2),
        )
