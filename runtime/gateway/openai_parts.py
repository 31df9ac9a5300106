"""What OpenAI's answers have in common."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Final

from runtime.inference.usage import usage_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.contracts import LLMResponse

GAP: Final = "\0"
"""Stands in a chunk for what changes from one to the next."""


def new_id(kind: str) -> str:
    """An id that no other answer has."""
    return f"{kind}-{secrets.token_hex(12)}"


def event(data: Mapping[str, object]) -> bytes:
    """A server-sent event."""
    return b"data: %s\n\n" % json.dumps(data, separators=(",", ":")).encode()


def around_gap(chunk: Mapping[str, object]) -> tuple[bytes, bytes]:
    """What is written before and behind the ``GAP`` of a chunk, so that it is encoded once."""
    before, _, after = event(chunk).partition(json.dumps(GAP).encode())
    return before, after


def usage(response: LLMResponse) -> dict[str, object] | None:
    """What an answer took; None where the engine did not tell, as clients expect numbers."""
    counts = usage_of(response.usage)
    if counts.prompt_tokens is None:
        return None
    cache = (response.raw or {}).get("cache")
    reused = cache.get("reused", 0) if isinstance(cache, dict) else 0
    return {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.total_tokens,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


def notes_of(response: LLMResponse) -> dict[str, object]:
    """What the runtime has to say of an answer besides: its seed, recoveries, enforcement."""
    return {name: value for name, value in (response.raw or {}).items() if name != "reasoning"}
