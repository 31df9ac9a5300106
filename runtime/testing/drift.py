"""How an answer differs from the recorded one. Pure."""

from __future__ import annotations

import base64
import binascii
import struct
from typing import TYPE_CHECKING, Any, Final

from runtime.testing.events import delta_of
from runtime.testing.matching import differences, text_difference

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.testing.cassette import Recorded

VECTOR_TOLERANCE: Final = 1e-4
"""How far a number of a vector of length 1 may be from the recorded one: other processors add up in
another order."""


def changes(recorded: Recorded, now: Recorded) -> list[str]:
    """What of an answer changed, in words; empty when nothing did."""
    if recorded.status != now.status:
        return [f"status: recorded {recorded.status}, now {now.status}"]
    old, new = _essence(recorded), _essence(now)
    found = []
    for name in dict.fromkeys([*old, *new]):
        was, is_ = old.get(name), new.get(name)
        if name == "vectors":
            found += _vector_changes(was or [], is_ or [])
        elif name == "finish_reason":
            found += [f"{name}: recorded {was}, now {is_}"] if was != is_ else []
        elif isinstance(was, str) and isinstance(is_, str) and was != is_:
            found.append(f"{name} {text_difference(was, is_, 'now')}")
        elif was != is_:
            found += [line.replace(", asked ", ", now ") for line in differences(was, is_, name)]
    return found


def _essence(answer: Recorded) -> dict[str, Any]:
    """Of an answer, what a caller gets to see: the same whether it came whole or in pieces."""
    if answer.stream is not None:
        return _streamed(event for event in answer.stream if isinstance(event, dict))
    match answer.body:
        case {"choices": [{"message": dict(message)} as choice, *_]}:
            calls = message.get("tool_calls") or []
            return {
                "text": message.get("content") or "",
                "reasoning": message.get("reasoning_content") or "",
                "tool_calls": [call.get("function") for call in calls],
                "finish_reason": choice.get("finish_reason"),
            }
        case {"data": [{"embedding": _}, *_] as data}:
            return {"vectors": [_vector(each.get("embedding")) for each in data]}
        case {"choices": [dict(choice), *_]}:
            return {"text": choice.get("text"), "finish_reason": choice.get("finish_reason")}
    return {"answer": answer.body}


def _streamed(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    text, reasoning, finish = "", "", None
    calls: dict[int, dict[str, str]] = {}
    for event in events:
        delta = delta_of(event)
        text += delta.get("content") or ""
        reasoning += delta.get("reasoning_content") or ""
        for piece in delta.get("tool_calls") or []:
            call = calls.setdefault(piece.get("index", 0), {"name": "", "arguments": ""})
            for name in call:
                call[name] += (piece.get("function") or {}).get(name) or ""
        for choice in (event.get("choices") or [])[:1]:
            finish = choice.get("finish_reason") or finish
    return {
        "text": text,
        "reasoning": reasoning,
        "tool_calls": list(calls.values()),
        "finish_reason": finish,
    }


def _vector(value: Any) -> list[float]:
    if not isinstance(value, str):
        return list(value)
    try:  # 32-bit floats, little end first, as OpenAI's client asks for them
        packed = base64.b64decode(value)
        return list(struct.unpack(f"<{len(packed) // 4}f", packed))
    except (binascii.Error, struct.error):
        return []


def _vector_changes(old: Sequence[Sequence[float]], new: Sequence[Sequence[float]]) -> list[str]:
    if [len(vector) for vector in old] != [len(vector) for vector in new]:
        was, is_ = (f"{len(each)} of {len(each[0]) if each else 0}" for each in (old, new))
        return [f"vectors: recorded {was} numbers, now {is_}"]
    found = []
    for number, (was_, now) in enumerate(zip(old, new, strict=True)):
        most = max((abs(a - b) for a, b in zip(was_, now, strict=True)), default=0.0)
        if most > VECTOR_TOLERANCE:
            found.append(f"vector {number}: a number is off by {most:.2g}")
    return found
