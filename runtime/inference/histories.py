"""Conversations with tool calls in them, as a model's chat template can take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

Message = Mapping[str, object]

_SILENCE: Final = "…"
"""What somebody says whose turn it is, and who said nothing."""


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


def regular(messages: Sequence[Message], *, tools: bool) -> list[Message]:
    """The messages in the order that the strictest templates ask for.

    One system message at the start; then user and assistant in turn; each call in a turn of its
    own, followed by its result and under an identifier of nine letters and digits. What is missing
    is filled in with as little as possible.

    Args:
        messages: The conversation.
        tools: Whether the template knows tools. Without, calls become text, and what the system
            says is said by the user.
    """
    shaped = with_tools(messages) if tools else without_tools(messages)
    system = "\n\n".join(str(each["content"]) for each in shaped if each["role"] == "system")
    made: list[Message] = []
    results = {_call_id(each): each for each in shaped if each["role"] == "tool"}
    for message in shaped:
        if message["role"] == "user":
            _say(made, "user", str(message["content"]))
        elif message["role"] == "assistant":
            calls = _calls(message)
            if message["content"] or not calls:
                _say(made, "assistant", str(message["content"]))
            for call in calls:
                _call(made, call, results)
    if not made or made[0]["role"] != "user":
        made.insert(0, {"role": "user", "content": "" if system and not tools else _SILENCE})
    if system and tools:
        made.insert(0, {"role": "system", "content": system})
    elif system:
        said = "\n\n".join(part for part in (system, str(made[0]["content"])) if part)
        made[0] = {**made[0], "content": said}
    return made


def _say(made: list[Message], role: str, text: str) -> None:
    last = made[-1] if made else None
    if last and last["role"] == role and not _calls(last):
        both = [str(last["content"]), text]
        made[-1] = {**last, "content": "\n\n".join(part for part in both if part)}
        return
    if role == "user" and last and last["role"] == "tool":
        made.append({"role": "assistant", "content": _SILENCE})
    made.append({"role": role, "content": text or _SILENCE})


def _call(made: list[Message], call: dict[str, Any], results: Mapping[str, Message]) -> None:
    """A turn with one call, and one with its result."""
    if not made:
        made.append({"role": "user", "content": _SILENCE})
    given = str(call.get("id"))
    short = sha256(given.encode()).hexdigest()[:9]
    turn: Message = {"role": "assistant", "content": ""}
    if made[-1]["role"] == "assistant":
        turn = made.pop()
    made.append({**turn, "tool_calls": [{**call, "id": short}]})
    result = results.get(given, {"role": "tool", "name": call["function"]["name"]})
    made.append({**result, "content": result.get("content") or "None.", "tool_call_id": short})


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
