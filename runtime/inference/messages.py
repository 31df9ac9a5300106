"""Messages: from the contract's form to OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from runtime.errors import LLMInvalidRequestError

if TYPE_CHECKING:
    from runtime.contracts import ToolCall

ROLES: Final = ("system", "user", "assistant", "tool")


def openai_messages(messages: object) -> tuple[dict[str, object], ...]:
    """Messages in OpenAI's form; a plain string is one user message.

    Raises:
        LLMInvalidRequestError: There are none, or one has no known role or no text.
    """
    if isinstance(messages, str):
        if not messages.strip():
            raise LLMInvalidRequestError("The prompt is empty.", hint="Say something.")
        return ({"role": "user", "content": messages},)
    if not isinstance(messages, Sequence):
        raise LLMInvalidRequestError(
            f"messages is {type(messages).__name__}, not a sequence of messages.",
            hint="Pass a list of LLMMessage, or a string.",
        )
    if not messages:
        raise LLMInvalidRequestError("messages is empty.", hint="Pass at least one message.")
    return tuple(_message(position, message) for position, message in enumerate(messages))


def _message(position: int, message: object) -> dict[str, object]:
    role, content = getattr(message, "role", None), getattr(message, "content", None)
    if role not in ROLES:
        raise LLMInvalidRequestError(
            f"messages[{position}] has the role {role!r}.",
            hint=f"Roles are: {', '.join(ROLES)}; messages are LLMMessage objects.",
        )
    if not isinstance(content, str):
        raise LLMInvalidRequestError(
            f"messages[{position}] has content of type {type(content).__name__}, not text."
        )
    made: dict[str, object] = {"role": role, "content": content}
    if calls := getattr(message, "tool_calls", None):  # look-alikes may carry what ours cannot
        made["tool_calls"] = [openai_call(call) for call in calls]
    if call_id := getattr(message, "tool_call_id", None):
        made["tool_call_id"] = call_id
    if name := getattr(message, "name", None) or getattr(message, "tool_name", None):
        made["name"] = name
    return made


def openai_call(call: ToolCall) -> dict[str, object]:
    """A tool call in OpenAI's form."""
    function = {"name": call.name, "arguments": call.arguments_json}
    return {"id": call.call_id, "type": "function", "function": function}


def instructed(messages: Sequence[Mapping[str, object]], text: str) -> list[Mapping[str, object]]:
    """The messages with ``text`` said to the model in the system message."""
    first, rest = messages[0], list(messages[1:])
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    return [{"role": "system", "content": text}, first, *rest]
