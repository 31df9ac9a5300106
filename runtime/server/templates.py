"""A chat template that the engine cannot stand: a program from a stranger, run while loading.

llama.cpp runs the template once before it serves. One that counts to 10⁹ takes all memory within
seconds, and 20,000 nested parentheses end the process; neither says a word. What gives it away is
the place: it comes between the last line about the slots and the line that says the model is
loaded, where a sound template takes some milliseconds.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

CPU_LIMIT_S: Final = 15.0
GROWTH_LIMIT_BYTES: Final = 2 << 30
LOOK_S: Final = 0.2

# xllamacpp 2026.10 and llama-server b11434 print it when the slots are made, templates come next.
_SLOTS_MADE: Final = re.compile(r"load_model: initializing,? (?:slots, )?n_slots = ")
_PAST: Final = re.compile(r"init: model loaded|listening on ")


def fingerprint(template: str | None) -> str | None:
    """The SHA-256 of a template's UTF-8 text, in hexadecimal; None for none."""
    return hashlib.sha256(template.encode()).hexdigest() if template is not None else None


def begins(line: str) -> bool:
    """Whether the engine takes up the template after this line of its log."""
    return _SLOTS_MADE.search(line) is not None


def was_last(log_tail: Sequence[str]) -> bool:
    """Whether an engine that ended was at its template."""
    for line in reversed(log_tail):
        if _PAST.search(line):
            return False
        if begins(line):
            return True
    return False


class TemplateGuard:
    """Judges an engine from the moment it takes up its template until it is ready."""

    def __init__(self, *, cpu_s: float, rss_bytes: int, expected_bytes: int = 0) -> None:
        """Begin.

        Args:
            cpu_s: Processor time it has used so far.
            rss_bytes: Memory it has so far.
            expected_bytes: What it may yet take for something else, such as a draft model.
        """
        self._cpu_s = cpu_s
        self._rss_bytes = rss_bytes
        self._limit_bytes = GROWTH_LIMIT_BYTES + expected_bytes

    def look(self, *, cpu_s: float, rss_bytes: int) -> str | None:
        """What is wrong, in words, or None. Counts processor time: a busy machine is no fault."""
        if cpu_s - self._cpu_s > CPU_LIMIT_S:
            return f"has run for {cpu_s - self._cpu_s:.0f} s of processor time without an end"
        if rss_bytes - self._rss_bytes > self._limit_bytes:
            return f"has taken {(rss_bytes - self._rss_bytes) / 1e9:.1f} GB of memory"
        return None
