"""Which recorded request is the one that is asked now, and how the nearest other differs. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from runtime.inference.discovery import is_trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.testing.cassette import Recorded

# Without a say in what is asked: any seed is as good as another to one who did not choose it, and
# the others tell the engine how to go about it, and to say so.
_ASIDE: Final = ("seed", "cache_prompt", "id_slot", "verbose")

MOST_SHOWN: Final = 6
_AROUND: Final = 24


def canonical(method: str, path: str, body: Any) -> str:
    """What is asked, the same for every request that asks the same.

    Seeds are left out, the order of keys does not count, and the ids of tool calls are their
    numbers.
    """
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name not in _ASIDE}
        body = _with_numbered_calls(body)
    return json.dumps([method, path, body], ensure_ascii=False, sort_keys=True)


def seed_of(body: Any) -> int | None:
    """The seed that a request gives."""
    seed = body.get("seed") if isinstance(body, dict) else None
    return seed if isinstance(seed, int) else None


def _with_numbered_calls(body: dict[str, Any]) -> dict[str, Any]:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return body
    numbers: dict[object, str] = {}
    return {**body, "messages": [_numbered(message, numbers) for message in messages]}


def _numbered(message: Any, numbers: dict[object, str]) -> Any:
    if not isinstance(message, dict):
        return message
    message = dict(message)
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [
            {**call, "id": numbers.setdefault(call.get("id"), f"#{len(numbers) + 1}")}
            if isinstance(call, dict)
            else call
            for call in calls
        ]
    if message.get("tool_call_id") is not None:
        asked = message["tool_call_id"]
        message["tool_call_id"] = numbers.setdefault(asked, f"#{len(numbers) + 1}")
    return message


def label(method: str, path: str, body: Any) -> str:
    """A request in a few words."""
    if is_trial(body):
        return "a client's trial of what the engine can do"
    said = ""
    match body:
        case {"messages": [*_, {"content": str(text)}]}:
            said = text
        case (
            {"prompt": str(text)} | {"content": str(text)} | {"input": str(text) | [str(text), *_]}
        ):
            said = text
    return f"{method} {path} {_shortened(said)!r}" if said else f"{method} {path}"


def nearest(key: str, recorded: Sequence[Recorded]) -> tuple[Recorded, list[str]] | None:
    """The recorded request that differs least, and how; None when there is none."""
    method, path, body = json.loads(key)
    best: tuple[Recorded, list[str]] | None = None
    for each in recorded:
        its = json.loads(canonical(each.method, each.path, each.asked))
        found = list(differences(its[2], body))
        if (each.method, each.path) != (method, path):
            found.insert(0, f"path: recorded {each.method} {each.path}, asked {method} {path}")
            found += [""] * 1000  # another kind of request is the nearest only where all others are
        if best is None or len(found) < len(best[1]):
            best = (each, found)
    if best is None:
        return None
    return best[0], [line for line in best[1] if line]


def differences(recorded: Any, asked: Any, where: str = "") -> Iterator[str]:
    """Each place at which two JSON values differ, in words."""
    if isinstance(recorded, dict) and isinstance(asked, dict):
        for name in dict.fromkeys([*recorded, *asked]):
            inner = f"{where}.{name}" if where else str(name)
            if name not in asked:
                yield f"{inner}: recorded {_shortened(recorded[name])}, not asked"
            elif name not in recorded:
                yield f"{inner}: not recorded, asked {_shortened(asked[name])}"
            else:
                yield from differences(recorded[name], asked[name], inner)
    elif isinstance(recorded, list) and isinstance(asked, list):
        for number, (old, new) in enumerate(zip(recorded, asked, strict=False)):
            yield from differences(old, new, f"{where}[{number}]")
        if len(recorded) != len(asked):
            yield f"{where}: recorded {len(recorded)} entries, asked {len(asked)}"
    elif recorded != asked or isinstance(recorded, bool) != isinstance(asked, bool):
        if isinstance(recorded, str) and isinstance(asked, str):
            yield f"{where}: {text_difference(recorded, asked, 'asked')}"
        else:
            yield f"{where}: recorded {_shortened(recorded)}, asked {_shortened(asked)}"


def text_difference(recorded: str, now: str, verb: str) -> str:
    """Where two texts part, with what is around."""
    at = next(
        (number for number, (a, b) in enumerate(zip(recorded, now, strict=False)) if a != b),
        min(len(recorded), len(now)),
    )
    begin = max(0, at - _AROUND // 2)
    old, new = (text[begin : at + _AROUND] for text in (recorded, now))
    return f"from character {at}: recorded {_cut(old, begin)}, {verb} {_cut(new, begin)}"


def _cut(text: str, begin: int) -> str:
    return f"{'…' if begin else ''}{text!r}"


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 2 * _AROUND else f"{text[: 2 * _AROUND]}…"
