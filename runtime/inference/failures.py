"""What a server's refusal means, in the terms of the error tree.

Pure: a status and a body go in, an error comes out. The forms are those of llama.cpp's server,
llama-cpp-python and the OpenAI API, as recorded.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from runtime.errors import (
    ConnectionLostError,
    ContextOverflowError,
    CrashingRequestError,
    EngineNotRunningError,
    LLMAuthError,
    LLMBadResponseError,
    LLMCapabilityError,
    LLMError,
    LLMInvalidRequestError,
    ModelNotFoundError,
    ServerStatusError,
    TooManyRequestsError,
    UnreadableAnswerError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.inference.effects import HttpHead

SHUTTING_DOWN = "shutting_down"
"""The code by which a gateway says that it ends before it is done; another may take its place."""

# llama-cpp-python and OpenAI say it in prose only; llama.cpp's embeddings too, with status 500.
_OVERFLOWS = (
    re.compile(
        r"maximum context length is (?P<context>\d+) tokens.*?"
        r"\((?P<prompt>\d+) in (?:the|your) (?:messages|prompt)",
        re.DOTALL,
    ),
    re.compile(
        r"maximum context length is (?P<context>\d+) tokens.*?(?P<prompt>\d+) tokens", re.DOTALL
    ),
    re.compile(r"Requested tokens \((?P<prompt>\d+)\) exceed context window of (?P<context>\d+)"),
    re.compile(
        r"input \((?P<prompt>\d+) tokens\) is too large to process.*batch size: (?P<context>\d+)"
    ),
    re.compile(r"\((?P<prompt>\d+) tokens\) exceeds the available context size \((?P<context>\d+)"),
)

# What llama.cpp says of an answer that its parser for the template cannot read.
_UNREADABLE = "does not match the expected"

# Sentences by which servers say that they, or the model, cannot do what was asked.
_INCAPABLE = (
    "does not support embeddings",
    "not support embedding",
    "must be created with embedding=true",
    "pooling type 'none'",
    "requires --jinja",
    "does not support tools",
    "not supported by this model",
    "image input is not supported",
    "does not support multimodal",
    "not_supported_error",
)

_EXCERPT = 200
"""Characters of a foreign text that a message shows."""


def excerpt(text: bytes | str) -> str:
    """The beginning of a foreign text, on one line, fit for a message."""
    if isinstance(text, bytes):
        text = text[: 4 * _EXCERPT].decode("utf-8", "replace")
    text = " ".join(text.split())
    return repr(text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…")


def from_answer(head: HttpHead, body: bytes, *, model: str | None = None) -> LLMError:
    """The error that an answer with a status other than 200 stands for.

    Args:
        head: Status and headers of the answer.
        body: Its body.
        model: The model that was asked for, to be named when it is not known there.
    """
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    problem = error_object(parsed) or {}
    said = _message(problem) or (excerpt(body) if body.strip() else "")
    retry_after = _seconds(head.headers.get("retry-after"))
    if problem.get("code") == SHUTTING_DOWN:
        return _shut_down(said, None)
    if 300 <= head.status < 400:
        to = head.headers.get("location", "elsewhere")
        return LLMInvalidRequestError(
            f"The server redirects to {to} (HTTP {head.status}).",
            hint="Give the address it redirects to as base_url.",
        )
    return _from_status(head.status, said, problem, model=model, retry_after_s=retry_after)


def error_object(parsed: object) -> Mapping[str, object] | None:
    """The error in a parsed body, whatever its form, or None."""
    if not isinstance(parsed, dict):
        return None
    match parsed:
        case {"error": dict(problem)}:
            return problem
        case {"error": str(message)} | {"detail": str(message)}:
            return {"message": message}
        case {"detail": list(details)}:  # FastAPI's validation errors
            return {"message": json.dumps(details)[:500]}
        case {"message": str(_), "code": int(_)}:
            return parsed
    return None


def from_error_object(
    problem: Mapping[str, object], *, partial_text: str | None = None
) -> LLMError:
    """The error that arrived within an answer that had begun as a success."""
    code = problem.get("code")
    if code == SHUTTING_DOWN:
        return _shut_down(_message(problem), partial_text)
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    error = _from_status(status, _message(problem), problem, model=None, retry_after_s=None)
    if partial_text and isinstance(error, ServerStatusError):
        return ConnectionLostError(
            f"The server failed in the middle of its answer: {_message(problem)}",
            partial_text=partial_text,
            hint="Send the request again.",
        )
    return error


def _shut_down(said: str, partial_text: str | None) -> ConnectionLostError:
    return ConnectionLostError(
        f"The server ended in order before the answer was complete: {said}",
        partial_text=partial_text,
        hint="Send the request again.",
    )


def unfinished() -> ConnectionLostError:
    """The error for a stream that ended in order, but too soon."""
    return ConnectionLostError(
        "The stream ended before its answer was complete.",
        hint="Send the request again; the server's log may say why it ended.",
    )


def with_partial(error: LLMError, partial_text: str | None) -> LLMError:
    """The error with what had arrived."""
    if isinstance(error, ConnectionLostError):
        error.partial_text = partial_text or error.partial_text
    return error


def did_not_come_back(error: LLMError, *, partial_text: str) -> ConnectionLostError:
    """The error for a server that ended in the middle of an answer, for good."""
    return ConnectionLostError(
        f"The engine ended in the middle of the answer and did not come back: {error.message}",
        partial_text=partial_text,
        hint=error.hint,
    )


def diverged(*, partial_text: str | None) -> ConnectionLostError:
    """The error for an answer that broke off and cannot be put together again."""
    return ConnectionLostError(
        "The answer broke off, and what the server says now to the same request does not begin "
        "with what it had said: another build, another device, or no regard for the seed.",
        partial_text=partial_text,
        hint="Send the request again.",
    )


def crashing_request(endings: tuple[str, ...], *, partial_text: str | None) -> CrashingRequestError:
    """The error for a request of which the engine dies."""
    return CrashingRequestError(
        f"The engine died {len(endings)} times while it worked on this request "
        f"({', '.join(endings)}), and no other can have been the cause: it is given up.",
        endings=endings,
        partial_text=partial_text,
        hint="The engine's log has its last words; change the request, or use another build.",
    )


def not_a_completion(head: HttpHead, body: bytes) -> LLMBadResponseError:
    """The error for a 200 whose body is no answer at all."""
    if not body.strip():
        return LLMBadResponseError(
            "The server answered 200 with an empty body.", hint="Send the request again."
        )
    what = "HTML" if head.content_type == "text/html" else head.content_type or "no known type"
    return LLMBadResponseError(
        f"The server answered with {what}, not with a completion: {excerpt(body)}",
        hint="Is base_url the address of an OpenAI-compatible server?",
    )


def _from_status(
    status: int,
    said: str,
    problem: Mapping[str, object],
    *,
    model: str | None,
    retry_after_s: float | None,
) -> LLMError:
    colon = f": {said}" if said else "."
    kind = f"{problem.get('type')} {problem.get('code')}"
    if overflow := _overflow(said, problem):
        return overflow
    if status in {401, 403}:
        return LLMAuthError(
            f"The server refused the key (HTTP {status}){colon}",
            hint="Give the server's key as api_key.",
        )
    if status == 429:
        wait = "" if retry_after_s is None else f" It asks to wait {retry_after_s:g} s."
        return TooManyRequestsError(
            f"The server has too many requests (HTTP 429){colon}{wait}",
            retry_after_s=retry_after_s,
            hint="Send fewer requests at once, or wait.",
        )
    if status == 501 or any(phrase in f"{said} {kind}".lower() for phrase in _INCAPABLE):
        return LLMCapabilityError(
            f"The server cannot do this (HTTP {status}){colon}",
            hint="Use a model, or start the server with settings, that can.",
        )
    if status == 404 and "model" in f"{said} {kind}".lower():
        return ModelNotFoundError(
            f"The server does not know the model {model!r}{colon}",
            reference=model or "",
            hint="Ask for one of the models it lists at /v1/models.",
        )
    if status == 404:
        return LLMInvalidRequestError(
            f"The server does not know this address (HTTP 404){colon}",
            hint="Is base_url the address of an OpenAI-compatible server?",
        )
    if 400 <= status < 500:
        return LLMInvalidRequestError(f"The server refused the request (HTTP {status}){colon}")
    if _UNREADABLE in said:
        return UnreadableAnswerError(
            f"The server could not read the model's answer{colon}",
            hint="The chat template may not be this model's own.",
        )
    return ServerStatusError(
        f"The server failed (HTTP {status}){colon}",
        status=status,
        hint="It may still be loading its model: try again in a moment."
        if status == 503
        else "Look into the server's log for the reason.",
    )


def _overflow(said: str, problem: Mapping[str, object]) -> ContextOverflowError | None:
    prompt, context = problem.get("n_prompt_tokens"), problem.get("n_ctx")
    if not (isinstance(prompt, int) and isinstance(context, int)):
        found = next((match for form in _OVERFLOWS if (match := form.search(said))), None)
        if found:
            prompt, context = int(found["prompt"]), int(found["context"])
        elif any(
            # Compared one by one: what a server sends there may be a list, which has no hash.
            problem.get(field) == mark
            for field in ("type", "code")
            for mark in ("exceed_context_size_error", "context_length_exceeded")
        ):
            prompt = context = None
        else:
            return None
    return context_overflow(prompt, context)


def context_overflow(prompt: int | None, context: int | None) -> ContextOverflowError:
    """The error for a prompt of ``prompt`` tokens where ``context`` fit."""
    if prompt is None or context is None:
        message = "The prompt is longer than the context of one request."
    else:
        message = f"The prompt has {prompt} tokens, but one request may hold {context}."
    return ContextOverflowError(
        message,
        prompt_tokens=prompt,
        context_tokens=context,
        hint="Shorten the prompt, or give the server a larger ctx_size.",
    )


def _message(problem: Mapping[str, object]) -> str:
    message = problem.get("message")
    return message if isinstance(message, str) else json.dumps(dict(problem))[:500]


def _seconds(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:  # an HTTP date: rare, and only advice
        return None


def client_closed() -> EngineNotRunningError:
    """The error for a request that its client's end ended."""
    return EngineNotRunningError(
        "The client is closed.", state="closed", hint="Make a new LlamaClient."
    )


def untrusted(address: str, why: Exception) -> ConnectionLostError:
    """The error for a server whose certificate is not trusted."""
    return ConnectionLostError(
        f"The certificate of {address} is not trusted: {str(why).rstrip('.')}.",
        hint="Name the file of its authority in SSL_CERT_FILE, and use the host that it is for.",
    )
