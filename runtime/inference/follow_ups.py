"""What to ask for next, when an answer was refused, wrong, missing or broken off."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from runtime.errors import SchemaViolationError
from runtime.inference import payload
from runtime.inference.messages import openai_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.contracts import ToolCall
    from runtime.engines.base import Endpoint
    from runtime.errors import LLMBadResponseError, LLMError
    from runtime.inference.wishes import Wish

_MOST_BLAMED: Final = 4000
"""Characters of an invalid answer and its fault that are told to the model."""

_REFUSED: Final = re.compile(
    r"template|expression at line|alternat|\brole|tool[ _]call|(?:user|system|assistant) message",
    re.IGNORECASE,
)
"""What servers say when a chat template does not take a conversation, in words of its own."""


def repaired(wish: Wish, problem: LLMError) -> Wish | None:
    """The wish with its history in better order, if that may be what a template refused."""
    if wish.repair >= 2 or not _REFUSED.search(problem.message):
        return None
    further = wish.repair + 1
    return replace(wish, repair=further, tells_tools=wish.tells_tools or further == 2)


def corrected(
    wish: Wish, problem: LLMBadResponseError, calls: Sequence[ToolCall] = ()
) -> Wish | None:
    """The wish with what was wrong with its last answer, or None where that says nothing.

    A model is told of wrong arguments as of any failure of a tool: by the result of the call.
    """
    said = problem.partial_text
    if not isinstance(problem, SchemaViolationError):
        return None
    if problem.repeated_key is not None:
        wish = _without_inventions(wish)
    if not said or wish.continued or len(said) + len(problem.reason) > _MOST_BLAMED:
        return wish if problem.repeated_key is not None else None
    place = f" at {problem.pointer}" if problem.pointer else ""
    told = f"That is not valid{place}: {problem.reason}. Answer again."
    turn: dict[str, object] = {"role": "assistant", "content": said}
    heard: list[dict[str, object]] = [{"role": "user", "content": told}]
    if calls:
        turn = {"role": "assistant", "content": "", "tool_calls": [openai_call(c) for c in calls]}
        heard = [_failure(call, told if call.arguments_json == said else "") for call in calls]
    return replace(wish, messages=(*wish.messages, turn, *heard))


def told(wish: Wish, endpoint: Endpoint, calls: Sequence[ToolCall]) -> Wish | None:
    """The wish with its tools told in the prompt, if that promises the call that did not come.

    Where a template knows tools, llama.cpp lets a model that must call one write as much before it
    as it likes: the answer is then prose to the end of its budget.
    """
    known = endpoint.capabilities
    missing = wish.tools is not None and wish.tools.call_wanted and not calls
    if (
        missing
        and not payload.prompts_tools(wish, endpoint)
        and (known.llguidance or known.grammar)
    ):
        return telling(wish)
    return None


def telling(wish: Wish) -> Wish:
    """The wish with its tools told in the prompt, whatever the template knows."""
    return replace(wish, tells_tools=True)


def can_go_on(wish: Wish, endpoint: Endpoint) -> bool:
    """Whether an engine can go on with a text it is given the beginning of.

    Only llama.cpp's takes an assistant message for that; and what a grammar steers, it would begin
    anew.
    """
    steered = wish.schema or wish.tools or "grammar" in wish.options
    return endpoint.kind in payload.LLAMA_CPP_KINDS and not steered


def going_on(wish: Wish, text: str, tokens: int) -> Wish:
    """The wish for the rest of an answer.

    Args:
        wish: What was asked for.
        text: The answer as far as it came.
        tokens: Tokens of that; they are taken off the bound.
    """
    left = None if wish.max_tokens is None else max(1, wish.max_tokens - tokens)
    if wish.prompt is not None:
        return replace(wish, prompt=wish.prompt + text, max_tokens=left)
    before = wish.messages[:-1] if wish.continued else wish.messages
    begun: dict[str, object] = {"role": "assistant", "content": wish.continued + text}
    return replace(wish, messages=(*before, begun), max_tokens=left)


def _without_inventions(wish: Wish) -> Wish:
    """The wish with grammars under which no key can occur twice: a model may not invent any."""
    bounds = replace(wish.policy.bounds, named_only=True, members=1)
    return replace(wish, policy=replace(wish.policy, bounds=bounds))


def _failure(call: ToolCall, reason: str) -> dict[str, object]:
    content = f"Error: {reason or 'not carried out, because another call was wrong.'}"
    return {"role": "tool", "tool_call_id": call.call_id, "name": call.name, "content": content}
