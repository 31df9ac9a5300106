"""Conversations with tool calls in them, as a model's chat template can take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, object]


def with_tools(messages: Sequence[Message]) -> list[Message]:
    """The messages for a template that knows tools.

    Such templates want the arguments of a call to be an object, and a result to follow the call
    that it answers. Where a history has it otherwise (the contract's messages do not carry calls),
    what is missing is added.
    """
    made: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            _call_before(made, message)
            made.append({**message, "tool_call_id": _call_id(message)})
        elif calls := _calls(message):
            made.append({**message, "tool_calls": [_repaired(call) for call in calls]})
        else:
            made.append(message)
    return made


def _call_before(made: list[Message], result: Message) -> None:
    """Make sure that the call which a result answers is in the assistant's turn before it."""
    turn = len(made) - 1
    while turn >= 0 and made[turn]["role"] == "tool":
        turn -= 1
    if turn < 0 or made[turn]["role"] != "assistant":
        turn = len(made)
        made.append({"role": "assistant", "content": ""})
    calls = _calls(made[turn])
    if all(call.get("id") != _call_id(result) for call in calls):
        function = {"name": str(result.get("name") or "tool"), "arguments": "{}"}
        call = {"id": _call_id(result), "type": "function", "function": function}
        made[turn] = {**made[turn], "tool_calls": [*calls, call]}


def _call_id(result: Message) -> str:
    return str(result.get("tool_call_id") or "call_0")


def without_tools(messages: Sequence[Message]) -> list[Message]:
    """The messages for a template that knows no tools.

    Calls become the lines in which such a model writes them, results what the user says. Turns of
    one speaker in a row become one: many templates accept no other.
    """
    if not any(message["role"] == "tool" or _calls(message) for message in messages):
        return list(messages)
    made: list[Message] = []
    for message in messages:
        role, content = message["role"], str(message["content"])
        if role == "tool":
            name = message.get("name")
            role, content = "user", f"Result of {name or 'the call'}: {content}"
        elif calls := _calls(message):
            content = "\n".join([*([content] if content else []), *map(_line, calls)])
        if role == "assistant" and not content:
            continue
        if made and role != "system" and made[-1]["role"] == role:
            made[-1] = {**made[-1], "content": f"{made[-1]['content']}\n{content}"}
        else:
            made.append({"role": role, "content": content})
    return made


def _calls(message: Message) -> list[dict[str, Any]]:
    calls = message.get("tool_calls")
    return calls if isinstance(calls, list) else []


def _line(call: dict[str, Any]) -> str:
    function = _repaired(call)["function"]
    return f'{{"name": {json.dumps(function["name"])}, "arguments": {function["arguments"]}}}'


def _repaired(call: dict[str, Any]) -> dict[str, Any]:
    """The call with arguments that are an object; what is none is kept as text within one."""
    function = call["function"]
    arguments = function["arguments"]
    try:
        whole = isinstance(json.loads(arguments), dict)
    except (TypeError, ValueError, RecursionError):
        whole = False
    if whole:
        return call
    kept = json.dumps({"malformed": str(arguments)} if arguments else {}, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": kept}}
