"""GBNF for texts within JSON strings: formats, and the plain part of regular expressions."""

from __future__ import annotations

import json
from typing import Final

_MOST_REPEATS: Final = 500
_MOST_EXPANDED: Final = 1500
"""What the repetitions of one pattern may come to; engines refuse more than 2,000."""

_NESTED: Final = 24
_ANY: Final = r'[^"\\\x00-\x1f]'
_IN_CLASS: Final = {"]": "\\]", "[": "\\[", "\\": "\\\\", "-": "\\x2D", "^": "\\x5E"}
_CLASSES: Final = {"d": "0-9", "w": "a-zA-Z0-9_", "s": " "}

_DATE: Final = '[12] [0-9]{3} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
_TIME: Final = (
    '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [+-] ("0" [0-9] | "1" [0-2]) ":" [0-5] [0-9])'
)
_BYTE: Final = '("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9]{2} | [1-9] [0-9] | [0-9])'
_LABEL: Final = "[a-z0-9] ([a-z0-9]{0,20} [a-z0-9])?"
_HEX: Final = "[0-9a-f]"

FORMATS: Final = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": f'{_HEX}{{8}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{12}}',
    "ipv4": f'{_BYTE} "." {_BYTE} "." {_BYTE} "." {_BYTE}',
    "hostname": f'{_LABEL} ("." {_LABEL}){{0,4}}',
    "email": '[a-z0-9]{1,12} ("." [a-z0-9]{1,8})? "@" [a-z0-9]{1,10} "." [a-z]{2,4}',
    "uri": f'("http" "s"? "://") {_LABEL} ("." {_LABEL}){{0,4}} ("/" [a-z0-9._-]{{0,40}}){{0,6}}',
}
"""Formats, as common forms of them: days to the 28th, lower case, short names."""


class UnsupportedPatternError(Exception):
    """A regular expression has no simple grammar."""


def literal(text: str) -> str:
    """A terminal that is exactly ``text``."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " else f"\\x{ord(c):02X}" for c in escaped) + '"'


def of_pattern(pattern: str, turns: int | None = None) -> str:
    """A grammar for the inside of a JSON string that matches a regular expression.

    Args:
        pattern: The regular expression.
        turns: How often, at most, it is gone through what may be repeated without end; fewer where
            one such part is within another. None for no bound.

    Raises:
        UnsupportedPatternError: It has more than literals, classes, groups, alternatives and
            repetitions, or anchors in other places than its ends.
    """
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    core = pattern[1 if begins else 0 : -1 if ends else None]
    parser = _Parser(core, turns)
    made = parser.alternatives()
    if parser.left:
        raise UnsupportedPatternError(pattern)
    if "|" in core and (begins or ends) and parser.top_alternatives > 1:
        raise UnsupportedPatternError(pattern)  # the anchors belong to its ends alone
    rest = f"{_ANY}*" if turns is None else f"{_ANY}{{0,{turns}}}"
    return f"{'' if begins else f'{rest} '}({made}){'' if ends else f' {rest}'}"


class _Parser:
    """Recursive descent over the part of a regular expression that is left."""

    def __init__(self, pattern: str, turns: int | None) -> None:
        self.left = pattern
        self._turns = turns
        self._size = 0
        self.top_alternatives = 0
        self._depth = 0

    def alternatives(self) -> str:
        forms = [self._sequence()]
        while self._takes("|"):
            forms.append(self._sequence())
        if not self._depth:
            self.top_alternatives = len(forms)
        return " | ".join(forms)

    def _sequence(self) -> str:
        parts = []
        while self.left and self.left[0] not in "|)":
            before = self._size
            atom = self._atom()
            repeats = self._repeats(before)
            # llguidance 1.9 takes a part that stands there no time for one that cannot be.
            parts.append('""' if repeats == "{0,0}" else atom + repeats)
        return " ".join(parts) or '""'

    def _atom(self) -> str:
        first = self._next()
        self._size += 1
        match first:
            case "(":
                if self.left.startswith("?") and not self._takes("?:"):
                    raise UnsupportedPatternError(self.left)
                self._depth += 1
                if self._depth > 20:
                    raise UnsupportedPatternError("nested too deeply")
                inner = self.alternatives()
                self._depth -= 1
                if not self._takes(")"):
                    raise UnsupportedPatternError(self.left)
                return f"({inner})"
            case "[":
                return self._class()
            case ".":
                return _ANY
            case "\\":
                escaped = self._next()
                if escaped in _CLASSES:
                    return f"[{_CLASSES[escaped]}]"
                if escaped.isalnum():
                    raise UnsupportedPatternError(f"\\{escaped}")
                return literal(json.dumps(escaped, ensure_ascii=False)[1:-1])
        if first in "^$*+?{":
            raise UnsupportedPatternError(first)
        return literal(json.dumps(first, ensure_ascii=False)[1:-1])

    def _class(self) -> str:
        negated = self._takes("^")
        if self.left.startswith("]"):  # empty in ECMA-262, a "]" within the class elsewhere
            raise UnsupportedPatternError("[]")
        parts: list[str] = []
        while not self._takes("]"):
            first = self._next()
            if first == "\\":
                first = self._next()
                if first in _CLASSES:
                    parts.append(_CLASSES[first])
                    continue
                if first.isalnum():
                    raise UnsupportedPatternError(f"\\{first}")
            elif first == "-" and parts and not self.left.startswith("]"):
                parts.append("-")  # a range goes on
                continue
            if first < " " or (first in '"\\' and not negated):
                raise UnsupportedPatternError(first)
            parts.append(_IN_CLASS.get(first, first))
        inside = "".join(parts)
        return f'[^{inside}"\\\\\\x00-\\x1f]' if negated else f"[{inside}]"

    def _repeats(self, before: int) -> str:
        """How often the last part stands there; it made the grammar larger than ``before``."""
        if self.left[:1] in {"*", "+", "?"}:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self._next()]
        elif self.left.startswith("{"):
            least, most = self._counted()
        else:
            return ""
        if self.left[:1] in {"?", "+"}:
            self._next()  # lazy or possessive: the same texts
        own = self._size - before
        if most is None and self._turns is not None:
            within = _NESTED if self._depth else self._turns
            most = max(least, min(within, _MOST_REPEATS // own), 1)
        self._size = before + own * max(1, least if most is None else most)
        if self._size > _MOST_EXPANDED:
            raise UnsupportedPatternError("too many repetitions")
        return f"{{{least},{'' if most is None else most}}}"

    def _counted(self) -> tuple[int, int | None]:
        inside, closing, self.left = self.left[1:].partition("}")
        least, comma, most = inside.partition(",")
        counts = [part for part in (least, most) if part]
        if not closing or not least or not all(part.isdecimal() for part in counts):
            raise UnsupportedPatternError(inside)
        if any(int(part) > _MOST_REPEATS for part in counts):
            raise UnsupportedPatternError(inside)
        return int(least), (int(most) if most else None) if comma else int(least)

    def _takes(self, text: str) -> bool:
        if not self.left.startswith(text):
            return False
        self.left = self.left[len(text) :]
        return True

    def _next(self) -> str:
        if not self.left:
            raise UnsupportedPatternError("it ends too early")
        first, self.left = self.left[0], self.left[1:]
        return first
