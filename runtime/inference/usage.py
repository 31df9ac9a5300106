"""Token counts of answers, as servers tell them and as the contract has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.contracts import Usage


def usage_of(counts: object) -> Usage:
    """The counts of OpenAI's ``usage`` object, or of what is a :class:`Usage` already.

    Each that is missing is None, and all are where ``counts`` is something else.
    """
    if isinstance(counts, Usage):
        return counts
    told = counts if isinstance(counts, Mapping) else {}

    def count(name: str) -> int | None:
        value = told.get(name)
        return value if isinstance(value, int) else None

    return Usage(
        prompt_tokens=count("prompt_tokens"),
        completion_tokens=count("completion_tokens"),
        total_tokens=count("total_tokens"),
    )


def shifted(counts: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Counts of an answer whose first ``tokens`` the server took for a part of the prompt."""
    moved = {"prompt_tokens": -tokens, "completion_tokens": tokens}
    return {
        name: max(0, count + moved.get(name, 0)) if isinstance(count, int) else count
        for name, count in counts.items()
    }
