"""What requests in Anthropic's Messages API ask for."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from runtime.contracts import LLMRequest, ToolCall, ToolSpec
from runtime.gateway.content import parts, text_of, unfit
from runtime.gateway.dialect import Body, Call, Turn, keep_alive, parsed, tools_or_format
from runtime.inference.request_limits import check_nesting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.contracts import LLMMessage
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
