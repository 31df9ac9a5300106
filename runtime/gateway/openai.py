"""OpenAI's dialect: chat completions.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field

from runtime.contracts import LLMMessage, LLMRequest, LLMResponse, ToolCall, ToolSpec
from runtime.gateway.dialect import (
    COMMENT,
    Body,
    Call,
    InvalidFieldError,
    Turn,
    keep_alive,
    parsed,
    tools_or_format,
)
from runtime.gateway.openai_errors import error
from runtime.gateway.openai_parts import GAP, around_gap, event, new_id, notes_of, usage
from runtime.inference.scores import ScoredDelta
from runtime.inference.stream import ThoughtDelta

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.contracts import LLMDelta
    from runtime.errors import LLMError

__all__ = ["ChatEncoder", "answer", "encoder", "error", "request"]

_NO_ARGUMENTS: Final[dict[str, object]] = {"type": "object", "properties": {}}

_WRITER: Final = json.JSONEncoder()  # json.dumps() looks at its options first, for every token

_CONTENT_OF: Final = {"text": "text", "refusal": "refusal"}
"""Kinds of content parts that are text, and the field that holds it."""


class _Function(Body):
    name: str
    arguments: str = "{}"


class _ToolCall(Body):
    id: str
    type: Literal["function"] = "function"
    function: _Function


class _Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Any = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Declared(Body):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Tool(Body):
    type: Literal["function"]
    function: _Declared


class _StreamOptions(Body):
    include_usage: bool | None = None


class _Chat(Body):
    messages: list[Any] = Field(min_length=1)
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    response_format: dict[str, Any] | None = None
    tools: list[_Tool] | None = None
    n: int | None = None
    logprobs: bool | None = None
    modalities: list[str] | None = None
    keep_alive: Any = None


_NOT_HERE: Final = {
    "functions": "Use tools, which replaced it.",
    "function_call": "Use tool_choice, which replaced it.",
    "audio": "Only text is answered.",
    "web_search_options": "This gateway opens no connection for a request. Offer a tool.",
}


def request(body: Mapping[str, object]) -> Call:
    """What the body of ``POST /v1/chat/completions`` asks for.

    Raises:
        LLMInvalidRequestError: It cannot be right, or wants what is not done here.
    """
    chat = parsed(_Chat, body)
    options = chat.others()
    _refuse_what_is_not_here(chat, options)
    bounds = {chat.max_tokens, chat.max_completion_tokens} - {None}
    if len(bounds) > 1:
        raise InvalidFieldError(
            "max_tokens and max_completion_tokens differ.",
            param="max_tokens",
            hint="Give max_completion_tokens alone.",
        )
    rivals = options.get("top_logprobs") or 0
    if chat.logprobs:
        options["logprobs"] = True
        options["top_logprobs"] = rivals or 1  # llama.cpp tells 20 when told nothing
    # As OpenAI has it: an answer that was cut off says so by its finish_reason.
    options.setdefault("on_truncation", "keep")
    tools, response_format = tools_or_format(
        [_tool(tool) for tool in chat.tools or ()],
        chat.response_format,
        options.get("tool_choice"),
    )
    wanted = LLMRequest(
        messages=[message(position, each) for position, each in enumerate(chat.messages)],
        temperature=chat.temperature,
        max_tokens=next(iter(bounds), None),
        tools=tools,
        response_format=response_format,
        provider_options=options,
    )
    streamed = chat.stream_options
    return Call(
        model=chat.model,
        request=wanted,
        stream=bool(chat.stream),
        keep_alive_s=keep_alive(chat.keep_alive),
        echo={
            "include_usage": bool(streamed and streamed.include_usage),
            "rivals": bool(rivals),
        },
    )


def count(body: Mapping[str, object]) -> Call:
    """What ``POST /v1/chat/completions/input_tokens``, llama.cpp's path, wants counted.

    Raises:
        LLMInvalidRequestError: As of :func:`request`.
    """
    return replace(request(body), stream=False)


def counted(tokens: int) -> dict[str, object]:
    """The answer to a request to count."""
    return {"object": "response.input_tokens", "input_tokens": tokens}


def _refuse_what_is_not_here(chat: _Chat, options: Mapping[str, object]) -> None:
    for name, hint in _NOT_HERE.items():
        if name in options:
            raise InvalidFieldError(f"{name} is not supported.", param=name, hint=hint)
    if chat.n not in {None, 1}:
        raise InvalidFieldError(
            f"n is {chat.n}; one answer at a time is given.",
            param="n",
            hint="Send the request several times, each with another seed.",
        )
    if chat.modalities and set(chat.modalities) != {"text"}:
        raise InvalidFieldError(
            f"modalities is {chat.modalities}.", param="modalities", hint="Only text is answered."
        )
    if "top_logprobs" in options and not chat.logprobs:
        raise InvalidFieldError(
            "top_logprobs needs logprobs.", param="top_logprobs", hint="Set logprobs to true."
        )


def message(position: int, said: Mapping[str, object]) -> LLMMessage:
    """A message in the contract's form."""
    where = f"messages[{position}]"
    given = parsed(_Message, said, at=where)
    calls = tuple(
        ToolCall(name=call.function.name, arguments_json=call.function.arguments, call_id=call.id)
        for call in given.tool_calls or ()
    )
    if given.role == "tool" and not given.tool_call_id:
        raise InvalidFieldError(
            f"{where} is a tool's result and does not say of which call.",
            param=f"{where}.tool_call_id",
            hint="Give the id of the call.",
        )
    nothing = given.content is None and given.role == "assistant"
    return Turn(
        role="system" if given.role == "developer" else given.role,
        content="" if nothing else text_of(given.content, f"{where}.content"),
        name=given.name,
        tool_call_id=given.tool_call_id,
        tool_calls=calls,
    )


def text_of(content: object, where: str) -> str:
    """The text of a message's content: a string, or a list of parts that are text.

    Raises:
        InvalidFieldError: It is neither, or has parts of another kind, such as images.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidFieldError(
            f"{where} is {type(content).__name__}.",
            param=where,
            hint="It is a string or a list of parts.",
        )
    texts: list[str] = []
    for position, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(_CONTENT_OF.get(str(kind), "")) if isinstance(part, dict) else None
        if not isinstance(text, str):
            raise InvalidFieldError(
                f"{where}[{position}] has the type {kind!r}; only text is understood.",
                param=f"{where}[{position}]",
                hint='A part is {"type": "text", "text": …}.',
            )
        texts.append(text)
    return "".join(texts)


def _tool(tool: _Tool) -> ToolSpec:
    function = tool.function
    return ToolSpec(
        name=function.name,
        description=function.description or "",
        input_schema=function.parameters or _NO_ARGUMENTS,
        output_schema={},
    )


# --- answers ------------------------------------------------------------------------------------


def answer(response: LLMResponse, call: Call) -> dict[str, object]:
    """The body of a whole answer."""
    notes = response.raw or {}
    said: dict[str, object] = {
        "role": "assistant",
        "content": None if response.tool_calls and not response.text else response.text,
        "refusal": None,
    }
    if reasoning := notes.get("reasoning"):
        said["reasoning_content"] = reasoning
    if response.tool_calls:
        said["tool_calls"] = [
            {
                "id": each.call_id,
                "type": "function",
                "function": {"name": each.name, "arguments": each.arguments_json},
            }
            for each in response.tool_calls
        ]
    return {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": response.model,
        "choices": [
            {
                "index": 0,
                "message": said,
                "logprobs": _scores(_told(response), call),
                "finish_reason": response.finish_reason,
            }
        ],
        "usage": usage(response),
        "runtime": notes_of(response),
    }


def _told(response: LLMResponse) -> Sequence[object]:
    """The probabilities of an answer's tokens."""
    match response.raw_output:
        case {"choices": [{"logprobs": {"content": list(content)}}, *_]}:
            return content
    return ()


def _scores(content: Sequence[object], call: Call) -> dict[str, object] | None:
    """As OpenAI tells probabilities: those of other tokens only where they were asked for."""
    if not content:
        return None
    if not call.echo.get("rivals"):
        content = [
            {**each, "top_logprobs": []} if isinstance(each, dict) else each for each in content
        ]
    return {"content": content, "refusal": None}


class ChatEncoder:
    """Writes a streamed chat completion."""

    alive = COMMENT

    def __init__(self, call: Call) -> None:
        self._call = call
        self._include_usage = bool(call.echo.get("include_usage"))
        self._calls: dict[str | None, int] = {}
        self._before = self._after = b""
        self._scored = 0
        self._head: dict[str, object] = {}

    def begin(self, model: str) -> bytes:
        """The chunk that says whose turn it is."""
        self._head = {
            "id": new_id("chatcmpl"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._before, self._after = self._around()
        return self._before + b'{"role":"assistant","content":""}' + self._after

    def piece(self, delta: LLMDelta) -> bytes:
        """A piece of text, of a call, or of what the model thinks."""
        before, after = self._before, self._after
        if isinstance(delta, ScoredDelta):
            self._scored += len(delta.logprobs)
            before, after = self._around(delta.logprobs)
        made = b""
        if isinstance(delta, ThoughtDelta):
            said = b'{"reasoning_content":%s}' % _WRITER.encode(delta.thought).encode()
            return before + said + after
        if text := delta.text_delta:
            made = before + b'{"content":%s}' % _WRITER.encode(text).encode() + after
        if call := delta.tool_call_delta:
            index = self._calls.setdefault(call.call_id, len(self._calls))
            function: dict[str, object] = {"arguments": call.arguments_json_delta or ""}
            told: dict[str, object] = {"index": index, "function": function}
            if call.name is not None:
                function["name"] = call.name
                told |= {"id": call.call_id, "type": "function"}
            made += before + json.dumps({"tool_calls": [told]}).encode() + after
        return made

    def end(self, response: LLMResponse) -> bytes:
        """The chunk with the reason of the end, that with the usage, and the closing mark."""
        choice = {
            "index": 0,
            "delta": {},
            # Also of tokens that no piece came of, such as the one that ends all.
            "logprobs": _scores(_told(response)[self._scored :], self._call),
            "finish_reason": response.finish_reason,
        }
        made = event({**self._chunk(choice), "runtime": notes_of(response)})
        if self._include_usage:
            made += event({**self._head, "choices": [], "usage": usage(response)})
        return made + b"data: [DONE]\n\n"

    def failed(self, exc: LLMError) -> bytes:
        """The error, as OpenAI's clients look for it in a stream."""
        return event(error(exc)[1])

    def _around(self, scores: Sequence[object] = ()) -> tuple[bytes, bytes]:
        told = _scores(scores, self._call)
        choice = {"index": 0, "delta": GAP, "logprobs": told, "finish_reason": None}
        return around_gap(self._chunk(choice))

    def _chunk(self, choice: Mapping[str, object]) -> dict[str, object]:
        nothing_yet = {"usage": None} if self._include_usage else {}
        return {**self._head, "choices": [choice], **nothing_yet}


def encoder(call: Call) -> ChatEncoder:
    """Who writes a streamed answer."""
    return ChatEncoder(call)
