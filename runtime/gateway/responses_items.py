"""What OpenAI's Responses API answers with: responses, and the items of which they consist."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from runtime.contracts import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.contracts import LLMResponse

Item = dict[str, object]

IN_PROGRESS: Final = "in_progress"


def new_id(kind: str) -> str:
    """An id that nothing else has, with the prefix of its kind."""
    return f"{kind}_{uuid4().hex}"


def text_part(text: str) -> Item:
    """The text of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def thought_part(text: str) -> Item:
    """The text of what the model thought."""
    return {"type": "reasoning_text", "text": text}


def message(item_id: str, text: str | None, status: str) -> Item:
    """A message of the model's; without content yet where ``text`` is None."""
    content = [] if text is None else [text_part(text)]
    told: Item = {"id": item_id, "type": "message", "role": "assistant"}
    return told | {"status": status, "content": content}


def function_call(item_id: str, call_id: str, name: str, arguments: str, status: str) -> Item:
    """A call of a tool."""
    told: Item = {"id": item_id, "type": "function_call", "call_id": call_id, "name": name}
    return told | {"arguments": arguments, "status": status}


def reasoning(item_id: str, text: str | None, status: str) -> Item:
    """What the model thought; without content yet where ``text`` is None."""
    content = [] if text is None else [thought_part(text)]
    told: Item = {"id": item_id, "type": "reasoning", "summary": []}
    return told | {"content": content, "status": status}


def items(response: LLMResponse) -> list[Item]:
    """The items that a whole answer makes."""
    status = status_of(response)
    made: list[Item] = []
    if thought := (response.raw or {}).get("reasoning"):
        made.append(reasoning(new_id("rs"), str(thought), "completed"))
    if response.text or not response.tool_calls:
        last = "completed" if response.tool_calls else status
        made.append(message(new_id("msg"), response.text, last))
    for number, call in enumerate(response.tool_calls, start=1):
        last = status if number == len(response.tool_calls) else "completed"
        made.append(function_call(new_id("fc"), call.call_id, call.name, call.arguments_json, last))
    return made


def status_of(response: LLMResponse) -> str:
    """Whether an answer came to its end."""
    return "incomplete" if response.finish_reason == "length" else "completed"


def completed(base: Mapping[str, object], response: LLMResponse, output: list[Item]) -> Item:
    """A response that is complete, or was cut off by its bound."""
    status = status_of(response)
    reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
    return {
        **base,
        "model": response.model or base["model"],
        "status": status,
        "completed_at": int(time.time()) if status == "completed" else None,
        "incomplete_details": reason,
        "output": output,
        "usage": _usage(response),
    }


def _usage(response: LLMResponse) -> dict[str, object]:
    """Token counts. How many of them were thoughts, engines do not tell."""
    used = response.usage if isinstance(response.usage, Usage) else Usage()
    cache = (response.raw or {}).get("cache")
    reused = cache.get("reused", 0) if isinstance(cache, dict) else 0
    prompt, answer = used.prompt_tokens or 0, used.completion_tokens or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": reused, "cache_write_tokens": 0},
        "output_tokens": answer,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.total_tokens or prompt + answer,
    }
