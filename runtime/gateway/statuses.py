"""Which HTTP status an error has, and which headers go with it, in every dialect."""

from __future__ import annotations

import math
from typing import Final

from runtime.errors import (
    CrashingRequestError,
    EngineNotInstalledError,
    EngineNotRunningError,
    EngineStartError,
    LLMAuthError,
    LLMBadResponseError,
    LLMCapabilityError,
    LLMError,
    LLMInvalidRequestError,
    LLMRateLimitError,
    ModelNotFoundError,
    ModelTooLargeError,
    QueueFullError,
    RequestTimeoutError,
    StorageError,
    TooManyRequestsError,
)


class GatewayEndingError(EngineNotRunningError):
    """The gateway was told to end before a request was done."""

    def __init__(self) -> None:
        super().__init__(
            "The gateway was told to end before this was done.",
            state="stopped",
            hint="Send it again once the gateway runs again.",
        )


_STATUS: Final[tuple[tuple[type[LLMError], int], ...]] = (  # the first that fits
    (ModelNotFoundError, 404),
    (ModelTooLargeError, 503),  # another machine, or this one later, could serve it
    (LLMInvalidRequestError, 400),
    (LLMCapabilityError, 400),
    (LLMRateLimitError, 429),
    (LLMAuthError, 403),  # it was the hub that refused; the gateway's own key is not at fault
    (RequestTimeoutError, 504),
    (EngineNotRunningError, 503),
    (EngineStartError, 503),
    (EngineNotInstalledError, 503),
    (StorageError, 503),
    (CrashingRequestError, 500),
)
_BUSY_AGAIN_S: Final = 1
_FAILING_AGAIN_S: Final = 5
_MOST_HEEDED_S: Final = 60
"""Those clients disregard what is longer."""


def status_of(exc: LLMError) -> int:
    """The HTTP status that says what an error says."""
    return next((status for kind, status in _STATUS if isinstance(exc, kind)), 502)


def headers_of(exc: LLMError) -> dict[str, str]:
    """Headers that tell a client when, or whether, to try again.

    OpenAI's and Anthropic's clients send a request again by themselves after 429 and 5xx. They heed
    ``Retry-After``, and ``x-should-retry: false`` where another try would end the same way.
    """
    told = (TooManyRequestsError, QueueFullError)
    if isinstance(exc, told) and exc.retry_after_s is not None:
        return {"retry-after": str(min(max(1, math.ceil(exc.retry_after_s)), _MOST_HEEDED_S))}
    if isinstance(exc, LLMRateLimitError):
        return {"retry-after": str(_BUSY_AGAIN_S)}
    if isinstance(exc, CrashingRequestError | LLMBadResponseError | ModelTooLargeError):
        return {"x-should-retry": "false"}  # the core has tried again already
    return {"retry-after": str(_FAILING_AGAIN_S)} if status_of(exc) == 503 else {}


def is_fault(exc: LLMError) -> bool:
    """Whether an error is one of the serving side, and so worth being remembered."""
    return status_of(exc) >= 500
