"""The events of a streamed answer as the relay handles them: one whole one at a time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENDS: Final = (b"data: [DONE]", b"event: message_stop", b"event: response.completed")


def whole_events(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, cut behind each event's blank line."""
    buffer = b""
    for piece in pieces:
        buffer += piece
        while (end := buffer.find(b"\n\n")) >= 0:
            yield buffer[: end + 2]
            buffer = buffer[end + 2 :].removeprefix(b"\n")  # llama.cpp ends with one too many
    if buffer:
        yield buffer


def event_of(value: object) -> bytes:
    """An event with a JSON value."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def value_of(event: bytes) -> dict[str, Any] | None:
    """The JSON object an event carries; None when it carries something else, or has a name."""
    if not event.startswith(b"data:"):
        return None
    try:
        value = json.loads(event[5:])
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def delta_of(value: dict[str, Any]) -> dict[str, Any]:
    """What an event adds to the first choice of a chat; empty when nothing."""
    match value:
        case {"choices": [{"delta": dict(delta)}, *_]}:
            return delta
        case {"choices": [{"text": str(text)}, *_]}:  # of a plain completion
            return {"content": text}
    return {}


def is_last(event: bytes) -> bool:
    """Whether an event ends an answer, in any of the protocols that engines speak."""
    return event.startswith(_ENDS)


def is_token(event: bytes) -> bool:
    """Whether an event brings a piece of the answer; nearly always one token."""
    delta = delta_of(value_of(event) or {})
    return any(delta.get(name) for name in ("content", "reasoning_content", "tool_calls"))
