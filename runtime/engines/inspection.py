"""Asking a program about itself: a short-lived child, bounded in time; its failure is a fact."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime import programs
from runtime.engines.base import INSPECTION_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Variables that turn an engine into something else (a router child, a downloader) behind our back.
_FOREIGN_PREFIXES = ("LLAMA_", "AIP_", "GGML_RPC_")


def is_foreign(name: str) -> bool:
    """Whether an environment variable is kept from engines."""
    return name.startswith(_FOREIGN_PREFIXES)


def clean_environment(added: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for an engine: ours, without what would steer it unseen, plus ``added``."""
    kept = {name: value for name, value in os.environ.items() if not is_foreign(name)}
    return {**kept, **(added or {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a program said when asked.

    Attributes:
        output: Standard output and standard error together.
        problem: Why the answer is of no use, or None.
    """

    output: str
    problem: str | None


def ask(argv: Sequence[str], *, timeout_s: float = INSPECTION_TIMEOUT_S) -> Answer:
    """Run ``argv`` to its end and read what it prints; nothing of it outlives ``timeout_s``."""
    try:
        ran = programs.run(argv, env=clean_environment(), timeout_s=timeout_s, together=True)
    except OSError as exc:
        return Answer(output="", problem=f"it cannot be run: {exc.strerror or exc}")
    if ran.returncode is None:
        return Answer(output="", problem=f"it did not answer within {timeout_s:.0f} s")
    if ran.returncode == 0:
        return Answer(output=ran.output, problem=None)
    last = next((line.strip() for line in reversed(ran.output.splitlines()) if line.strip()), "")
    return Answer(output=ran.output, problem=_ended(ran.returncode) + (f": {last}" if last else ""))


def _ended(returncode: int) -> str:
    if returncode == -signal.SIGILL:
        return "it uses processor instructions that this machine does not have (SIGILL)"
    if returncode < 0:
        return f"it ended by {signal.Signals(-returncode).name}"
    if returncode == 127:
        return "a shared library is missing"
    return f"it ended with code {returncode}"
