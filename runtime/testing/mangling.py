"""Answers with broken JSON in their tool calls, made from good ones. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from runtime.testing.events import delta_of, event_of, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def mangled_whole(pieces: Iterator[bytes], met: Callable[[], None]) -> Iterator[bytes]:
    """A whole chat answer whose last call's arguments lack their last character."""
    data = b"".join(pieces)
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    match value:
        case {"choices": [{"message": {"tool_calls": [*_, {"function": dict(function)}]}}, *_]}:
            function["arguments"] = function["arguments"][:-1]
        case {"choices": [{"message": {"content": str(text)} as message}, *_]} if _is_json(text):
            message["content"] = text.rstrip()[:-1]
        case _:
            yield data
            return
    met()
    yield json.dumps(value).encode()


def mangled_stream(pieces: Iterator[bytes], met: Callable[[], None]) -> Iterator[bytes]:
    """The same of a stream: held back by one event, for only the next tells which was the last."""
    held: bytes | None = None
    text = ""
    calls = False
    for event in pieces:
        value = value_of(event)
        delta = delta_of(value or {})
        if delta.get("tool_calls") or delta.get("content"):
            calls = calls or bool(delta.get("tool_calls"))
            text += delta.get("content") or ""
            if held is not None:
                yield held
            held = event
            continue
        if held is not None:
            shortened = _shortened(held) if calls or _is_json(text) else None
            if shortened is not None:
                met()
            yield shortened or held
            held = None
        yield event
    if held is not None:
        yield held


def _shortened(event: bytes) -> bytes | None:
    """An event without its last character; None when it has none to lose."""
    value: dict[str, Any] = value_of(event) or {}
    match delta_of(value):
        case {"tool_calls": [*_, {"function": dict(function)}]}:
            if not function.get("arguments"):
                return None
            function["arguments"] = function["arguments"][:-1]
        case {"content": str(text)} if text.strip():
            value["choices"][0]["delta"]["content"] = text.rstrip()[:-1]
        case _:
            return None
    return event_of(value)


def _is_json(text: str) -> bool:
    return text.lstrip()[:1] in {"{", "["}
