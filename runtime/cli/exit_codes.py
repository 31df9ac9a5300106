"""What the exit code of a command says."""

from __future__ import annotations

from typing import Final

from runtime.errors import (
    LLMAuthError,
    LLMBadResponseError,
    LLMCapabilityError,
    LLMError,
    LLMInvalidRequestError,
    LLMProviderError,
    LLMRateLimitError,
)

OF_ERRORS: Final[tuple[tuple[type[LLMError], int], ...]] = (
    (LLMInvalidRequestError, 2),
    (LLMAuthError, 3),
    (LLMRateLimitError, 4),
    (LLMProviderError, 5),
    (LLMBadResponseError, 6),
    (LLMCapabilityError, 7),
)
FOUND_SOMETHING: Final = 1
DEFECT: Final = 70
INTERRUPTED: Final = 130

MEANINGS: Final = {
    0: "Done.",
    FOUND_SOMETHING: "A check found a problem (doctor, models verify), or a pipe's reader left.",
    2: "The request cannot be right: an unknown option, model or file, a prompt that does not fit.",
    3: "The credentials were refused.",
    4: "Too many requests: a rate limit, or a full queue.",
    5: "The engine, the network or the disk failed.",
    6: "The answer is empty, cut off, or not what its schema demands.",
    7: "The engine or the model cannot do that.",
    DEFECT: "A defect of llama-runtime itself; LLAMA_RUNTIME_DEBUG=1 shows where.",
    INTERRUPTED: "Ctrl-C.",
}  # fmt: skip
"""The meaning of every exit code."""


def of(error: LLMError) -> int:
    """The exit code of a failure."""
    return next((code for kind, code in OF_ERRORS if isinstance(error, kind)), 1)
