"""Tools for models whose chat template knows none: told in the prompt, enforced by a grammar.

A call is one line, ``{"name": …, "arguments": …}``. The grammar admits well-formed calls to the
tools that were given and nothing else; where the choice is the model's, plain text too. What the
engine cannot enforce is validated afterwards, as ever.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from runtime.inference import gbnf, grammars
from runtime.inference.messages import instructed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.engines.base import EngineCapabilities
    from runtime.inference.bounds import Bounds
    from runtime.inference.tools import ToolBox

MOST_CALLS: Final = 8
"""Calls that one answer may hold, where several are asked for."""

_HEAD: Final = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\S)'
)


def body(
    box: ToolBox,
    messages: Sequence[Mapping[str, object]],
    capabilities: EngineCapabilities,
    *,
    several: bool,
    bounds: Bounds | None = None,
) -> dict[str, object]:
    """What tools add to the request: the instructed messages, and a grammar where there is one."""
    if box.choice == "none":
        return {"messages": list(messages)}
    made: dict[str, object] = {"messages": instructed(messages, _instruction(box, several=several))}
    if capabilities.llguidance:
        made["grammar"] = _llguidance(box, bounds, several=several)
    elif capabilities.grammar:
        made["grammar"] = _gbnf(box, bounds, several=several)
    return made


def _offered(box: ToolBox) -> list[str]:
    return list(box.functions) if box.choice in {"auto", "required"} else [box.choice]


def _instruction(box: ToolBox, *, several: bool) -> str:
    lines = [json.dumps(box.functions[name], ensure_ascii=False) for name in _offered(box)]
    how = 'Answer with a line {"name": <its name>, "arguments": <its arguments>} to call one.'
    if several:
        how += " To make several calls, write one such line for each."
    if box.choice == "auto":
        how += " When none is needed, answer in plain text."
    else:
        how += " Make a call now."
    return "\n".join(["You can call these functions:", *lines, how])


def _llguidance(box: ToolBox, bounds: Bounds | None, *, several: bool) -> str:
    lines = ["%llguidance {}", f"start: {_start(box, several=several)}"]
    names = _offered(box)
    lines.append("call: " + " | ".join(f"call{n}" for n in range(len(names))))
    for n, name in enumerate(names):
        head = json.dumps(f'{{"name": {json.dumps(name)}, "arguments": ')
        document, _ = grammars.json_rule(box.arguments[name].text, bounds)
        lines.append(f'call{n}: {head} arguments{n} "}}"')
        lines.append(f"arguments{n}: %json {document or grammars.ANY_OBJECT}")
    if box.choice == "auto":
        lines.append(r"text: /[^{\s](.|\n)*/")
    return "\n".join(lines)


def _gbnf(box: ToolBox, bounds: Bounds | None, *, several: bool) -> str:
    converter = gbnf.Converter(bounds)
    calls = []
    for name in _offered(box):
        arguments = converter.document(box.arguments[name].document)
        head = gbnf.literal(f'{{"name": {json.dumps(name)}, "arguments": ')
        calls.append(f'{head} {arguments} "}}"')
    rules = {"call": " | ".join(calls)}
    if box.choice == "auto":
        rules["text"] = r"[^{ \t\r\n] [^\x00]*"
    return gbnf.grammar(_start(box, several=several), {**rules, **converter.rules})


def _start(box: ToolBox, *, several: bool) -> str:
    calls = f'call ("\\n" call){{0,{MOST_CALLS - 1}}}' if several else "call"
    return f"{calls} | text" if box.choice == "auto" else calls


class CallReader:
    """Tells calls from text while an answer arrives.

    :meth:`feed` returns pieces: a string is text for the caller, a mapping is a piece of a call in
    the form in which OpenAI streams them.
    """

    def __init__(self) -> None:
        self._waiting = ""
        self._plain = False
        self._calls = 0
        self._value: _Value | None = None

    @property
    def waiting(self) -> str:
        """What arrived and is neither text nor call yet."""
        return self._waiting

    def feed(self, text: str) -> list[str | dict[str, Any]]:
        """The pieces that ``text`` completes, in order."""
        pieces: list[str | dict[str, Any]] = []
        self._waiting += text
        while self._waiting:
            if self._plain:
                pieces.append(self._waiting)
                self._waiting = ""
            elif self._value is not None:
                taken = self._value.take(self._waiting)
                if taken:
                    pieces.append(self._piece(arguments=self._waiting[:taken]))
                self._waiting = self._waiting[taken:]
                if self._value.ended:
                    self._value = None
            elif head := _HEAD.match(self._after_call()):
                self._waiting = self._after_call()[head.end() :]
                self._calls += 1
                pieces.append(self._piece(name=json.loads(head[1])))
                self._value = _Value()
            elif self._calls or _may_become_call(self._waiting):
                break
            else:
                self._plain = True
        return pieces

    def _after_call(self) -> str:
        """What follows, without the brace that closes the call before."""
        return re.sub(r"^\s*\}", "", self._waiting, count=1) if self._calls else self._waiting

    def _piece(self, *, name: str = "", arguments: str = "") -> dict[str, Any]:
        return {"index": self._calls - 1, "function": {"name": name, "arguments": arguments}}


class _Value:
    """Finds the end of one JSON value."""

    def __init__(self) -> None:
        self.ended = False
        self._depth = 0
        self._quoted = self._escaped = False

    def take(self, text: str) -> int:
        """How many characters of ``text`` belong to the value."""
        for position, character in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._quoted = False
                    self.ended = self._depth == 0
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                if self._depth == 0:  # it belongs to the call around a bare value
                    self.ended = True
                    return position
                self._depth -= 1
                self.ended = self._depth == 0
            if self.ended:
                return position + 1
        return len(text)


def _may_become_call(text: str) -> bool:
    wanted = '{"name":"'
    squeezed = re.sub(r"\s+", "", text[:200])
    return wanted.startswith(squeezed[: len(wanted)])
