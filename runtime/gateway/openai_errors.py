"""How OpenAI's API tells an error; endpoints of every kind use it.

Source: https://platform.openai.com/docs/guides/error-codes/api-errors
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from runtime.errors import (
    ContextOverflowError,
    CrashingRequestError,
    LLMBadResponseError,
    LLMCapabilityError,
    LLMInvalidRequestError,
    ModelNotFoundError,
    QueueFullError,
    RequestTimeoutError,
    TextTooLongError,
)
from runtime.gateway.dialect import InvalidFieldError
from runtime.gateway.statuses import GatewayEndingError, status_of
from runtime.inference.failures import SHUTTING_DOWN

if TYPE_CHECKING:
    from runtime.errors import LLMError

_CODES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (ContextOverflowError, "context_length_exceeded"),
    (ModelNotFoundError, "model_not_found"),
    (QueueFullError, "queue_full"),
    (RequestTimeoutError, "timeout"),
    (CrashingRequestError, "engine_crashed"),
    (LLMBadResponseError, "bad_response"),
    (LLMCapabilityError, "unsupported"),
    (GatewayEndingError, SHUTTING_DOWN),
)
_TYPES: Final = {400: "invalid_request_error", 403: "permission_error", 429: "rate_limit_error"}

_NAMED: Final = re.compile(r"[a-z_]{3,}(?:\[\d+\])?(?= (?:is|has|holds|asks|and|are|given)\b)")
"""A field at the beginning of a message of the core's."""


def error(exc: LLMError) -> tuple[int, dict[str, object]]:
    """The HTTP status and the body of an error, in OpenAI's shape."""
    status = status_of(exc)
    message = f"{exc.message} {exc.hint}" if exc.hint else exc.message
    problem: dict[str, object] = {
        "message": message,
        "type": _TYPES.get(400 if status == 404 else status, "server_error"),
        "param": _param(exc),
        "code": next((code for kind, code in _CODES if isinstance(exc, kind)), None),
    }
    if isinstance(exc, ContextOverflowError):
        problem |= {"prompt_tokens": exc.prompt_tokens, "context_tokens": exc.context_tokens}
    return status, {"error": problem}


def _param(exc: LLMError) -> str | None:
    match exc:
        case InvalidFieldError(param=param):
            return param
        case ModelNotFoundError():
            return "model"
        case TextTooLongError():
            return "input"
        case ContextOverflowError():
            return "messages"
        case LLMInvalidRequestError() if named := _NAMED.match(exc.message):
            return named[0]
    return None
