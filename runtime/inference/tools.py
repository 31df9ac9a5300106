"""Tools: from the contract's form to OpenAI's, and the check of what the model calls."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import LLMBadResponseError, LLMInvalidRequestError, SchemaViolationError
from runtime.inference import schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from runtime.contracts import ToolCall

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_CHOICES = ("auto", "required", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolBox:
    """The tools of one request.

    Attributes:
        functions: Each tool's function object in OpenAI's form, by name, in the caller's order.
        arguments: The schema of each tool's arguments, by name.
        choice: ``"auto"``, ``"required"``, ``"none"``, or the name of the one tool to call.
    """

    functions: Mapping[str, dict[str, object]]
    arguments: Mapping[str, schema.Schema]
    choice: str

    @property
    def call_wanted(self) -> bool:
        """Whether the answer must be a call."""
        return self.choice not in {"auto", "none"}


def toolbox(tools: Iterable[object], choice: object = None) -> ToolBox | None:
    """The tools of a request, checked; None when there are none.

    Args:
        tools: Objects with ``name``, ``description`` and ``input_schema``.
        choice: OpenAI's ``tool_choice``: a word, a tool's name, or
            ``{"type": "function", "function": {"name": …}}``.

    Raises:
        LLMInvalidRequestError: A name is unfit or repeated, a schema is no object schema, or the
            choice names no tool.
    """
    functions: dict[str, dict[str, object]] = {}
    arguments: dict[str, schema.Schema] = {}
    for position, tool in enumerate(tools):
        name = getattr(tool, "name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise LLMInvalidRequestError(
                f"tools[{position}] has the name {name!r}.",
                hint="A tool's name is 1 to 128 letters, digits, '_', '-' or '.'.",
            )
        if name in functions:
            raise LLMInvalidRequestError(f"Two tools have the name {name!r}.")
        document = getattr(tool, "input_schema", None)
        checked = schema.check(document, what=f"The input_schema of the tool {name!r}")
        if checked.document.get("type") != "object":
            raise LLMInvalidRequestError(
                f"The input_schema of the tool {name!r} describes no object.",
                hint='It needs "type": "object" at its root.',
            )
        arguments[name] = checked
        functions[name] = {
            "name": name,
            "description": str(getattr(tool, "description", "") or ""),
            "parameters": document,
        }
    if not functions:
        if choice not in {None, "auto", "none"} if isinstance(choice, str) else choice:
            raise LLMInvalidRequestError("tool_choice asks for a tool, but there are no tools.")
        return None
    return ToolBox(functions=functions, arguments=arguments, choice=_choice(choice, functions))


def _choice(choice: object, known: Mapping[str, object]) -> str:
    match choice:
        case None:
            return "auto"
        case str(word) if word in _CHOICES or word in known:
            return word
        case {"type": "function", "function": {"name": str(name)}} if name in known:
            return name
    raise LLMInvalidRequestError(
        f"tool_choice is {choice!r}.",
        hint=f"It can be one of: {', '.join((*_CHOICES, *known))}.",
    )


def fields(box: ToolBox, *, llama_cpp: bool) -> dict[str, object]:
    """What the tools add to a request.

    llama.cpp knows no choice by name; offering that tool alone and requiring a call is the same.
    """
    functions = box.functions
    choice: object = box.choice
    if box.choice not in _CHOICES:
        choice = {"type": "function", "function": {"name": box.choice}}
        if llama_cpp:
            functions, choice = {box.choice: functions[box.choice]}, "required"
    return {
        "tools": [{"type": "function", "function": function} for function in functions.values()],
        "tool_choice": choice,
    }


def check_calls(box: ToolBox, calls: Sequence[ToolCall], *, text: str, more: bool = False) -> None:
    """Refuse an answer that does not keep to the tools.

    Args:
        box: The tools.
        calls: The calls of the answer.
        text: Its text.
        more: Whether there is a further call, which is not looked at here.

    Raises:
        LLMBadResponseError: A call was required and none came, or one came that nobody may make.
        SchemaViolationError: A call's arguments violate its tool's schema.
    """
    if not calls and box.call_wanted and not more:
        raise LLMBadResponseError(
            "A tool call was required, but the model answered with text.",
            partial_text=text or None,
            hint="Use a model trained for tools.",
        )
    check_names(box, calls)
    for call in calls:
        try:
            schema.judge(call.arguments_json, box.arguments[call.name])
        except SchemaViolationError as exc:
            raise SchemaViolationError(
                f"The arguments of the call to {call.name!r} are wrong: {exc.reason}.",
                pointer=exc.pointer,
                reason=exc.reason,
                partial_text=call.arguments_json,
            ) from exc


def check_names(box: ToolBox, calls: Sequence[ToolCall]) -> None:
    """Refuse calls to what was not offered.

    Raises:
        LLMBadResponseError: There is one.
    """
    allowed = {*box.functions} if box.choice in {"auto", "required"} else {box.choice}
    for call in calls:
        if call.name not in allowed:
            raise LLMBadResponseError(
                f"The model called {call.name!r}, which it may not.",
                partial_text=call.arguments_json or None,
                hint=f"It was offered: {', '.join(sorted(allowed - {'none'})) or 'nothing'}.",
            )
