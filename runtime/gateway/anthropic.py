"""Anthropic's Messages API: how answers, streams and errors are written.

The protocol: https://docs.anthropic.com/en/api/messages. What is tolerated, and what is refused, is
said in docs/clients.md; :mod:`runtime.gateway.anthropic_request` reads what is asked.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from pydantic_core import from_json

from runtime.contracts import Usage
from runtime.errors import ContextOverflowError
from runtime.gateway.anthropic_request import count, request
from runtime.gateway.statuses import status_of
from runtime.inference.stream import ThoughtDelta

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.contracts import LLMDelta, LLMResponse
    from runtime.errors import LLMError
    from runtime.gateway.dialect import Call

__all__ = ["Encoder", "answer", "count", "counted", "encoder", "error", "request"]


def answer(response: LLMResponse, call: Call) -> dict[str, object]:
    """The message that a response makes."""
    notes = response.raw or {}
    content: list[dict[str, object]] = []
    if thought := notes.get("reasoning"):
        content.append(_thinking(str(thought)))
    if response.text:
        content.append({"type": "text", "text": response.text, "citations": None})
    content.extend(
        # Cut off by the bound, its arguments are as far as they came.
        _tool_use(made.call_id, made.name, from_json(made.arguments_json, allow_partial=True))
        for made in response.tool_calls
    )
    reason, stop = _end(response)
    return {
        **_envelope(call, response.model),
        "content": content,
        "stop_reason": reason,
        "stop_sequence": stop,
        "usage": _usage(response),
    }


def counted(tokens: int) -> dict[str, object]:
    """The answer to a request to count."""
    return {"input_tokens": tokens}


def _envelope(call: Call, model: str | None) -> dict[str, object]:
    return {
        "id": f"msg_{uuid4().hex[:24]}",
        "type": "message",
        "role": "assistant",
        "model": model or call.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _tool_use(call_id: str | None, name: str | None, given: object) -> dict[str, object]:
    return {"type": "tool_use", "id": call_id, "name": name, "input": given}


def _thinking(thought: str) -> dict[str, object]:
    return {"type": "thinking", "thinking": thought, "signature": ""}


def _end(response: LLMResponse) -> tuple[str, str | None]:
    notes = response.raw or {}
    if response.finish_reason == "tool_calls":
        return "tool_use", None
    if response.finish_reason == "length":
        full = notes.get("length_limit") == "context"
        return "model_context_window_exceeded" if full else "max_tokens", None
    if stop := notes.get("stop_text"):
        return "stop_sequence", str(stop)
    return "end_turn", None


def _usage(response: LLMResponse) -> dict[str, object]:
    """Token counts. Anthropic's ``input_tokens`` are those that no cache had."""
    used = response.usage if isinstance(response.usage, Usage) else Usage()
    cache = (response.raw or {}).get("cache")
    reused = cache.get("reused", 0) if isinstance(cache, dict) else 0
    return {
        "input_tokens": max(0, (used.prompt_tokens or 0) - reused),
        "cache_read_input_tokens": reused,
        "cache_creation_input_tokens": 0,
        "output_tokens": used.completion_tokens or 0,
    }


class Encoder:
    """One answer as a stream of events.

    See :class:`runtime.gateway.dialect.Encoder`.
    """

    alive = b'event: ping\ndata: {"type": "ping"}\n\n'

    def __init__(self, call: Call) -> None:
        self._call = call
        self._blocks = 0
        self._open: str | None = None  # "text", "thinking", or the id of a tool call

    def begin(self, model: str) -> bytes:
        """What comes before the first piece; how long the prompt is, is not known yet."""
        usage = {"input_tokens": 0, "output_tokens": 0}
        message = {**_envelope(self._call, model), "usage": usage}
        return _event("message_start", message=message) + self.alive

    def piece(self, delta: LLMDelta) -> bytes:
        """A piece of the answer."""
        if isinstance(delta, ThoughtDelta):
            return self._block("thinking", _thinking("")) + self._piece(
                {"type": "thinking_delta", "thinking": delta.thought}
            )
        if delta.text_delta:
            return self._block("text", {"type": "text", "text": ""}) + self._piece(
                {"type": "text_delta", "text": delta.text_delta}
            )
        made = b""
        if call := delta.tool_call_delta:
            made = self._block(str(call.call_id), _tool_use(call.call_id, call.name, {}))
            if call.arguments_json_delta:
                made += self._piece(
                    {"type": "input_json_delta", "partial_json": call.arguments_json_delta}
                )
        return made

    def end(self, response: LLMResponse) -> bytes:
        """The end of the answer."""
        reason, stop = _end(response)
        return (
            self._stop()
            + _event(
                "message_delta",
                delta={"stop_reason": reason, "stop_sequence": stop},
                usage=_usage(response),
            )
            + _event("message_stop")
        )

    def failed(self, exc: LLMError) -> bytes:
        """The end of one that is not complete."""
        _, body = error(exc)
        return _event("error", error=body["error"])

    def _block(self, name: str, block: Mapping[str, object]) -> bytes:
        if self._open == name:
            return b""
        before = self._stop()
        self._open = name
        return before + _event("content_block_start", index=self._blocks, content_block=block)

    def _piece(self, delta: Mapping[str, object]) -> bytes:
        return _event("content_block_delta", index=self._blocks, delta=delta)

    def _stop(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        self._blocks += 1
        return _event("content_block_stop", index=self._blocks - 1)


def encoder(call: Call) -> Encoder:
    """Who writes a streamed answer."""
    return Encoder(call)


def _event(kind: str, **fields: object) -> bytes:
    data = json.dumps({"type": kind, **fields}, ensure_ascii=False)
    return f"event: {kind}\ndata: {data}\n\n".encode()


_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


def error(exc: LLMError) -> tuple[int, dict[str, object]]:
    """The HTTP status and the body of an error."""
    status, message = status_of(exc), f"{exc.message} {exc.hint}" if exc.hint else exc.message
    if isinstance(exc, ContextOverflowError) and exc.prompt_tokens and exc.context_tokens:
        # Coding agents look for these words, and shorten the conversation when they find them.
        too_long = f"{exc.prompt_tokens} tokens > {exc.context_tokens} maximum"
        message = f"prompt is too long: {too_long}\n{message}"
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return status, {"type": "error", "error": {"type": kind, "message": message}}
