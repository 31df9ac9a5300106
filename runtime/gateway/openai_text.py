"""OpenAI's older dialect: completions of a text as it is, without a chat template.

Source: https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

from runtime.contracts import LLMMessage, LLMRequest
from runtime.gateway.dialect import COMMENT, Body, Call, InvalidFieldError, keep_alive, parsed
from runtime.gateway.openai_errors import error
from runtime.gateway.openai_parts import GAP, around_gap, event, new_id, notes_of, usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.contracts import LLMDelta, LLMResponse
    from runtime.errors import LLMError

__all__ = ["TextEncoder", "answer", "encoder", "error", "request"]

MAX_TOKENS: Final = 16
"""What OpenAI's API gives where nothing is said."""


class _StreamOptions(Body):
    include_usage: bool | None = None


class _Completion(Body):
    prompt: Any
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    echo: bool | None = None
    n: int | None = None
    best_of: int | None = None
    keep_alive: Any = None


_NOT_HERE: Final = {
    "logprobs": "Ask for a chat completion, which tells them.",
    "suffix": "Nothing is filled in; write the text before it as the prompt.",
    "response_format": "Ask for a chat completion, which keeps to it.",
    "tools": "Ask for a chat completion, which offers them.",
}


def request(body: Mapping[str, object]) -> Call:
    """What the body of ``POST /v1/completions`` asks for.

    Raises:
        LLMInvalidRequestError: It cannot be right, or wants what is not done here.
    """
    asked = parsed(_Completion, body)
    options = asked.others()
    for name, hint in _NOT_HERE.items():
        if name in options:
            raise InvalidFieldError(f"{name} is not supported.", param=name, hint=hint)
    for name, count in (("n", asked.n), ("best_of", asked.best_of)):
        if count not in {None, 1}:
            raise InvalidFieldError(
                f"{name} is {count}; one answer at a time is given.",
                param=name,
                hint="Send the request several times, each with another seed.",
            )
    prompt = asked.prompt
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str):
        raise InvalidFieldError(
            f"prompt is {type(prompt).__name__}.",
            param="prompt",
            hint="It is one text; send a request for each, and texts instead of tokens.",
        )
    streamed = asked.stream_options
    return Call(
        model=asked.model,
        request=LLMRequest(
            messages=[LLMMessage(role="user", content=prompt)],
            temperature=asked.temperature,
            max_tokens=MAX_TOKENS if asked.max_tokens is None else asked.max_tokens,
            provider_options=options,
        ),
        stream=bool(asked.stream),
        keep_alive_s=keep_alive(asked.keep_alive),
        echo={
            "include_usage": bool(streamed and streamed.include_usage),
            "before": prompt if asked.echo else "",
        },
        raw=True,
    )


def answer(response: LLMResponse, call: Call) -> dict[str, object]:
    """The body of a whole answer."""
    choice = {
        "index": 0,
        "text": f"{call.echo['before']}{response.text}",
        "logprobs": None,
        "finish_reason": response.finish_reason,
    }
    return {
        **_head(response.model),
        "choices": [choice],
        "usage": usage(response),
        "runtime": notes_of(response),
    }


class TextEncoder:
    """Writes a streamed completion."""

    alive = COMMENT

    def __init__(self, call: Call) -> None:
        self._call = call
        self._before = self._after = b""
        self._head: dict[str, object] = {}

    def begin(self, model: str) -> bytes:
        """The prompt, where it is to be repeated."""
        self._head = _head(model)
        self._before, self._after = around_gap(self._chunk(GAP, None))
        before = self._call.echo["before"]
        return self._piece(str(before)) if before else b""

    def piece(self, delta: LLMDelta) -> bytes:
        """A piece of the text."""
        return self._piece(delta.text_delta) if delta.text_delta else b""

    def end(self, response: LLMResponse) -> bytes:
        """The chunk with the reason of the end, that with the usage, and the closing mark."""
        last = {**self._chunk("", response.finish_reason), "runtime": notes_of(response)}
        made = event(last)
        if self._call.echo["include_usage"]:
            made += event({**self._head, "choices": [], "usage": usage(response)})
        return made + b"data: [DONE]\n\n"

    def failed(self, exc: LLMError) -> bytes:
        """The error, as OpenAI's clients look for it in a stream."""
        return event(error(exc)[1])

    def _chunk(self, text: str, reason: str | None) -> dict[str, object]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        nothing_yet = {"usage": None} if self._call.echo["include_usage"] else {}
        return {**self._head, "choices": [choice], **nothing_yet}

    def _piece(self, text: str) -> bytes:
        return self._before + json.dumps(text).encode() + self._after


def encoder(call: Call) -> TextEncoder:
    """Who writes a streamed answer."""
    return TextEncoder(call)


def _head(model: str | None) -> dict[str, object]:
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
    }
