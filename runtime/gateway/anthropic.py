"""Anthropic's Messages API: what is asked, and how answers, streams and errors are written.

The protocol: https://docs.anthropic.com/en/api/messages. What is tolerated, and what is refused, is
said in docs/clients.md.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from pydantic import Field
from pydantic_core import from_json

from runtime.contracts import LLMRequest, ToolCall, ToolSpec, Usage
from runtime.errors import ContextOverflowError
from runtime.gateway.content import parts, text_of, unfit
from runtime.gateway.dialect import Body, Call, Turn, keep_alive, parsed, tools_or_format
from runtime.gateway.statuses import status_of
from runtime.inference.request_limits import check_nesting
from runtime.inference.stream import ThoughtDelta

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.contracts import LLMDelta, LLMMessage, LLMResponse
    from runtime.errors import LLMError
    from runtime.gateway.dialect import InvalidFieldError

_TOLERATED: Final = (
    "betas",
    "cache_control",
    "context_management",
    "diagnostics",
    "inference_geo",
    "service_tier",
    "speed",
    "user_profile_id",
    "workspace_id",
)
"""What steers Anthropic's service and says nothing about the answer."""

_REFUSED: Final = {
    "container": "There are no containers here.",
    "mcp_servers": "Call MCP servers yourself, and give their tools in tools.",
}

_BILLING: Final = re.compile(r"^x-anthropic-billing-header:[^\n]*\n?")
"""Claude Code's first system block. It differs with every request, so that no prompt would ever be
found in the engine's cache, and it is not for the model."""


class _Tool(Body):
    name: str
    input_schema: dict[str, Any]
    description: str = ""
    type: str | None = None


class _ToolUse(Body):
    id: str
    name: str
    input: dict[str, Any]


class _ToolResult(Body):
    tool_use_id: str
    content: Any = None
    is_error: bool = False


class _Choice(Body):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(Body):
    type: str
    budget_tokens: int | None = None


class _Format(Body):
    type: str
    schema_: dict[str, Any] = Field(alias="schema")


class _Output(Body):
    format: dict[str, Any] | None = None


class _Message(Body):
    role: str
    content: Any


class _Counted(Body):
    """What is to be counted; all but the bound of what is to be answered."""

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    system: Any = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    stream: bool = False
    max_tokens: int | None = None


class _Wanted(_Counted):
    max_tokens: int = Field(ge=1)


def request(body: Mapping[str, object]) -> Call:
    """What ``POST /v1/messages`` asks for.

    Raises:
        InvalidFieldError: A field is missing, of another type, or asks for what there is not.
    """
    return _call(parsed(_Wanted, body))


def count(body: Mapping[str, object]) -> Call:
    """What ``POST /v1/messages/count_tokens`` wants counted.

    Raises:
        InvalidFieldError: As of :func:`request`.
    """
    return replace(_call(parsed(_Counted, body)), stream=False)


def _call(asked: _Counted) -> Call:
    options = asked.others()
    # As Anthropic has it: an answer that was cut off says so by its stop_reason.
    options.setdefault("on_truncation", "keep")
    kept = keep_alive(options.pop("keep_alive", None))
    for name in _TOLERATED:
        options.pop(name, None)
    for name, hint in _REFUSED.items():
        if options.pop(name, None):
            raise unfit(name, "it is not supported.", hint=hint)
    tools = [_tool(tool, f"tools[{at}]") for at, tool in enumerate(asked.tools or ())]
    if asked.stop_sequences:
        options["stop"] = asked.stop_sequences
    _take_choice(options, asked.tool_choice)
    _take_thinking(options, asked.thinking)
    offered, schema = tools_or_format(tools, _schema(asked), options.get("tool_choice"))
    return Call(
        model=asked.model,
        request=LLMRequest(
            messages=_conversation(asked),
            temperature=asked.temperature,
            max_tokens=asked.max_tokens,
            tools=offered,
            response_schema=schema,
            metadata=asked.metadata or {},
            provider_options=options,
        ),
        stream=asked.stream,
        keep_alive_s=kept,
    )


def _conversation(asked: _Counted) -> list[LLMMessage]:
    turns: list[LLMMessage] = []
    told = [
        _BILLING.sub("", text) if at == 0 else text
        for at, text in enumerate(_texts(asked.system, "system"))
    ]
    if system := "\n\n".join(text for text in told if text):
        turns.append(Turn(role="system", content=system))
    names: dict[str, str] = {}
    for at, message in enumerate(asked.messages):
        turns += _turns(parsed(_Message, message, at=f"messages[{at}]"), f"messages[{at}]", names)
    return turns


def _turns(message: _Message, at: str, names: dict[str, str]) -> list[LLMMessage]:
    """The turns of one message: results of tools stand alone in the core's conversation."""
    if message.role not in {"user", "assistant", "system"}:
        raise unfit(f"{at}.role", f"it is {message.role!r}.", hint='It is "user" or "assistant".')
    results: list[LLMMessage] = []
    texts: list[str] = []
    calls: list[ToolCall] = []
    for number, part in enumerate(parts(message.content, at=f"{at}.content")):
        here = f"{at}.content[{number}]"
        match part.get("type"), message.role:
            case "text", _:
                texts.append(text_of(part, at=here))
            case "thinking" | "redacted_thinking", "assistant":
                pass  # a template leaves out the thoughts of earlier turns, too
            case "tool_use", "assistant":
                use = parsed(_ToolUse, part, at=here)
                check_nesting(use.input, here)
                names[use.id] = use.name
                arguments = json.dumps(use.input, ensure_ascii=False)
                calls.append(ToolCall(name=use.name, arguments_json=arguments, call_id=use.id))
            case "tool_result", "user":
                results.append(_result(part, here, names))
            case kind, speaker:
                raise _unfit(kind, speaker, here)
    if results and not texts:
        return results
    role: Any = message.role
    said = Turn(role=role, content="\n".join(filter(None, texts)), tool_calls=tuple(calls))
    return [*results, said]


def _result(part: Mapping[str, object], at: str, names: Mapping[str, str]) -> Turn:
    result = parsed(_ToolResult, part, at=at)
    text = "\n".join(_texts(result.content, f"{at}.content"))
    return Turn(
        role="tool",
        content=f"Error: {text}" if result.is_error else text,
        tool_call_id=result.tool_use_id,
        tool_name=names.get(result.tool_use_id),
    )


def _texts(content: object, at: str) -> list[str]:
    found = []
    for number, part in enumerate(parts(content, at=at)):
        if part.get("type") != "text":
            raise _unfit(part.get("type"), None, f"{at}[{number}]")
        found.append(text_of(part, at=f"{at}[{number}]"))
    return found


def _unfit(kind: object, role: str | None, at: str) -> InvalidFieldError:
    if str(kind) in {"text", "thinking", "tool_use", "tool_result"}:
        where = f"a message of the {role}" if role else "this place"
        return unfit(at, f"a block of type {kind!r} does not belong into {where}.")
    return unfit(
        f"{at}.type",
        f"blocks of type {kind!r} are not supported.",
        hint="This gateway takes text: text, thinking, tool_use and tool_result blocks.",
    )


def _tool(tool: Mapping[str, object], at: str) -> ToolSpec:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        raise unfit(
            f"{at}.type",
            f"Anthropic's own tools are not supported: {kind!r}.",
            hint="Describe it by name, description and input_schema, and run it yourself.",
        )
    given = parsed(_Tool, tool, at=at)
    return ToolSpec(
        name=given.name,
        description=given.description,
        input_schema=given.input_schema,
        output_schema={},
    )


def _take_choice(options: dict[str, Any], given: Mapping[str, object] | None) -> None:
    if given is None:
        return
    choice = parsed(_Choice, given, at="tool_choice")
    words: dict[str, object] = {"auto": "auto", "any": "required", "none": "none"}
    if choice.type == "tool":
        if choice.name is None:
            raise unfit("tool_choice.name", "which tool is not said.")
        words["tool"] = {"type": "function", "function": {"name": choice.name}}
    if choice.type not in words:
        raise unfit(
            "tool_choice.type",
            f"it is {choice.type!r}.",
            hint='It is "auto", "any", "tool" or "none".',
        )
    options["tool_choice"] = words[choice.type]
    if choice.disable_parallel_tool_use is not None:
        options["parallel_tool_calls"] = not choice.disable_parallel_tool_use


def _take_thinking(options: dict[str, Any], given: Mapping[str, object] | None) -> None:
    """How long to think; models that do not, and templates that know no switch, disregard it."""
    if given is None:
        return
    thinking = parsed(_Thinking, given, at="thinking")
    if thinking.type == "disabled":
        options.setdefault("chat_template_kwargs", {"enable_thinking": False})
    elif thinking.budget_tokens is not None:
        options.setdefault("thinking_budget_tokens", thinking.budget_tokens)


def _schema(asked: _Counted) -> dict[str, Any] | None:
    output = parsed(_Output, asked.output_config or {}, at="output_config")
    given, at = output.format, "output_config.format"
    if given is None:
        given, at = asked.output_format, "output_format"
    if given is None:
        return None
    wanted = parsed(_Format, given, at=at)
    if wanted.type != "json_schema":
        raise unfit(f"{at}.type", f"it is {wanted.type!r}.", hint='It is "json_schema".')
    return wanted.schema_


# --- answers --------------------------------------------------------------------------------------


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
