"""The beginning of a JSON text, read as far as it goes.

What is complete becomes values; what is open becomes a :data:`Seed` that says how it may go on.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Nothing:
    """A value is due, and none of it is there."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A value that is complete."""

    value: Any


@dataclass(frozen=True, slots=True)
class OpenText:
    """A string that has no closing quote yet."""

    prefix: str


@dataclass(frozen=True, slots=True)
class OpenLiteral:
    """A number, or the beginning of a word, that may go on."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenArray:
    """An array that has no closing bracket yet.

    Attributes:
        items: Its complete elements.
        child: The element that is open, or due after a comma; None after a complete one.
    """

    items: tuple[Any, ...] = ()
    child: Seed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenObject:
    """An object that has no closing brace yet.

    Attributes:
        members: Its complete members.
        key: The key that is open, or due after a comma; None after a complete member.
        quote: What of the key is written: nothing, its beginning, the whole, the colon too.
        child: The value after the colon.
    """

    members: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    quote: int = 0
    child: Seed = field(default_factory=Nothing)


Seed = Nothing | Whole | OpenText | OpenLiteral | OpenArray | OpenObject

DUE, BEGUN, QUOTED, COLON = range(4)

_BLANK: Final = re.compile(r"[ \t\n\r]*")
_CHARACTERS: Final = re.compile(r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*')
_HALF_PAIR: Final = re.compile(r"(?<!\\)(?:\\\\)*(\\u[dD][89abAB][0-9a-fA-F]{2})$")
_LITERAL: Final = re.compile(r"[-+.0-9A-Za-z]*")
_WORDS: Final = {"true": True, "false": False, "null": None}
_NUMBER_BEGUN: Final = re.compile(r"-?(?:(?:0|[1-9]\d*)(?:\.\d*)?(?:(?<=\d)[eE][-+]?\d*)?)?")


class BrokenTextError(ValueError):
    """The text is not the beginning of JSON.

    Attributes:
        position: Where it stops being so.
    """

    def __init__(self, position: int) -> None:
        super().__init__(f"not JSON at {position}")
        self.position = position


class Reader:
    """Reads the beginning of a JSON text.

    Attributes:
        seed: What was read.
        end: How much of the text it comes from; less than all when a half character is left out.
        cuts: Where the text could be cut so that no member or element is left incomplete,
            ascending.

    Raises:
        BrokenTextError: It is no such beginning.
        RecursionError: It is nested too deeply.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self.cuts: list[int] = [0]
        self.end = len(text)
        self.seed = self._value(0)[0]
        if isinstance(self.seed, Whole) and _BLANK.fullmatch(text, self._at) is None:
            raise BrokenTextError(self._at)

    _at: int = 0

    def _blank(self, position: int) -> int:
        match = _BLANK.match(self._text, position)
        return match.end() if match else position

    def _value(self, position: int) -> tuple[Seed, int]:
        position = self._blank(position)
        if position >= len(self._text):
            return Nothing(), position
        first = self._text[position]
        if first == '"':
            text, after, closed = self._string(position)
            found: Seed = Whole(text) if closed else OpenText(text)
        elif first == "[":
            found, after = self._array(position + 1)
        elif first == "{":
            found, after = self._object(position + 1)
        else:
            found, after = self._literal(position)
        self._at = after
        return found, after

    def _string(self, position: int) -> tuple[str, int, bool]:
        match = _CHARACTERS.match(self._text, position + 1)
        after = match.end() if match else position + 1
        raw = self._text[position + 1 : after]
        if after < len(self._text) and self._text[after] == '"':
            return json.loads(f'"{raw}"'), after + 1, True
        if after < len(self._text) and not _escape_begun(self._text[after:]):
            raise BrokenTextError(after)
        if half := _HALF_PAIR.search(raw):
            raw = raw[: half.start(1)]
        self.end = position + 1 + len(raw)
        return json.loads(f'"{raw}"'), after, False

    def _literal(self, position: int) -> tuple[Seed, int]:
        match = _LITERAL.match(self._text, position)
        after = match.end() if match else position
        text = self._text[position:after]
        if text in _WORDS:
            return Whole(_WORDS[text]), after
        if after == len(self._text):
            words = any(word.startswith(text) for word in _WORDS)
            if not words and not _NUMBER_BEGUN.fullmatch(text):
                raise BrokenTextError(position)
            return OpenLiteral(text), after
        try:
            return Whole(json.loads(text)), after
        except ValueError as exc:
            raise BrokenTextError(position) from exc

    def _follows(self, position: int, closing: str) -> tuple[str, int]:
        """The mark after a complete element (none at the end of the text), and what it leads to."""
        self.cuts.append(position)
        position = self._blank(position)
        mark = self._text[position : position + 1]
        if mark not in {closing, ",", ""}:
            raise BrokenTextError(position)
        return mark, self._blank(position + 1) if mark == "," else position + len(mark)

    def _array(self, position: int) -> tuple[Seed, int]:
        items: list[Any] = []
        self.cuts.append(position)
        position = self._blank(position)
        if self._text[position : position + 1] == "]":
            return Whole([]), position + 1
        while position < len(self._text):
            child, position = self._value(position)
            if not isinstance(child, Whole):
                return OpenArray(items=tuple(items), child=child), position
            items.append(child.value)
            mark, position = self._follows(position, "]")
            if mark == "]":
                return Whole(items), position
            if not mark:
                break
            if position >= len(self._text):
                return OpenArray(items=tuple(items), child=Nothing()), position
        return OpenArray(items=tuple(items)), position

    def _object(self, position: int) -> tuple[Seed, int]:
        members: dict[str, Any] = {}
        self.cuts.append(position)
        position = self._blank(position)
        if self._text[position : position + 1] == "}":
            return Whole({}), position + 1
        while position < len(self._text):
            if self._text[position] != '"':
                raise BrokenTextError(position)
            key, position, closed = self._string(position)
            if not closed:
                return OpenObject(members=members, key=key, quote=BEGUN), position
            if key in members:
                raise BrokenTextError(position)
            position = self._blank(position)
            if position >= len(self._text):
                return OpenObject(members=members, key=key, quote=QUOTED), position
            if self._text[position] != ":":
                raise BrokenTextError(position)
            child, position = self._value(position + 1)
            if not isinstance(child, Whole):
                return OpenObject(members=members, key=key, quote=COLON, child=child), position
            members[key] = child.value
            mark, position = self._follows(position, "}")
            if mark == "}":
                return Whole(members), position
            if not mark:
                break
            if position >= len(self._text):
                return OpenObject(members=members, key="", quote=DUE), position
        return OpenObject(members=members), position


def _escape_begun(text: str) -> bool:
    return re.fullmatch(r"\\(?:u[0-9a-fA-F]{0,3})?", text) is not None
