"""JSON Schema to GBNF, for engines that know no other grammars.

Ours, not an engine's converter: it can stand within a larger grammar, runs before the request, and
what it cannot express it widens to what admits every valid value, never to free text. The
answer is validated by the schema in any case. The notation is that of llama.cpp's grammars/README.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from runtime.inference import request_limits, unrolling
from runtime.inference.bounds import Bounds
from runtime.inference.gbnf_numbers import integers, numbers
from runtime.inference.gbnf_text import FORMATS, UnsupportedPatternError, literal, of_pattern

__all__ = ["FORMATS", "Converter", "grammar", "json_rules", "literal", "of_schema"]

_MOST_REPEATS: Final = 500
"""Repetitions that are counted; engines expand them, and refuse more than 2,000."""

_MOST_VALUES: Final = 500
_MOST_OPTIONAL: Final = 200
_MOST_RULES: Final = 2000
_MOST_CHARS: Final = 100_000
_DEEPEST: Final = 100
_BLOCK: Final = 64
_MOST_COUNTED: Final = _BLOCK * _MOST_REPEATS
_NONE: Final[frozenset[str]] = frozenset()
_TURNS: Final = 128
_OPEN: Final = Bounds(
    text_chars=None, items=None, members=None, digits=None, decimals=None, depth=None
)
_NAME: Final = re.compile(r"[a-z]+[0-9]*")


def json_rules(bounds: Bounds = _OPEN) -> dict[str, str]:
    """Any JSON within bounds, laid out as ``json.dumps`` does; escapes of surrogates left out."""
    digits = "*" if bounds.digits is None else f"{{0,{min(bounds.digits, _MOST_REPEATS) - 1}}}"
    decimals = "+" if bounds.decimals is None else f"{{1,{min(bounds.decimals, _MOST_REPEATS)}}}"
    rules = {
        "scalar": 'string | number | "true" | "false" | "null"',
        "string": f'"\\"" {_chars(0, bounds.text_chars)} "\\""',
        "block": f"char{{{_BLOCK}}}",
        "char": r'[^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" [0-9a-cefA-CEF] [0-9a-fA-F]{3})',
        "number": f'integer ("." [0-9]{decimals})?',
        "integer": f'"-"? ("0" | [1-9] [0-9]{digits})',
    }
    levels = 1 if bounds.depth is None else min(bounds.depth, _DEEPEST)
    for level in range(levels):
        here, inner = level or "", (level + 1) if bounds.depth else ""
        members = _separated(f"member{here}", 0, bounds.members)
        rules |= {
            f"value{here}": f"object{here} | array{here} | scalar",
            f"object{here}": f'"{{" {members} "}}"',
            f"member{here}": f'string ": " value{inner}',
            f"array{here}": f'"[" {_separated(f"value{inner}", 0, bounds.items)} "]"',
        }
    return rules | ({f"value{levels}": "scalar"} if bounds.depth else {})


class Converter:
    """Rules for the values of schemas.

    Args:
        bounds: What is bounded where a schema leaves it open.

    Attributes:
        rules: Name → right-hand side, those of :func:`json_rules` included.
    """

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or _OPEN
        self.rules: dict[str, str] = json_rules(self._bounds)
        self._names: dict[str, str] = {}
        self._documents: list[Mapping[str, Any]] = []  # kept, since their ids tell them apart
        self._references: dict[tuple[int, str], str] = {}
        self._depth = 0

    def document(self, document: Mapping[str, Any]) -> str:
        """What stands for a value of a whole document; recursion in it is bounded."""
        if self._bounds.depth is not None and not unrolling.has_bases(document):
            document = unrolling.unrolled(document, self._bounds.depth)
        self._documents.append(document)
        return self.expression(document, document)

    def expression(
        self, schema: object, root: Mapping[str, Any], begun: frozenset[str] = _NONE
    ) -> str:
        """What stands for a value of ``schema``.

        Args:
            schema: A JSON Schema.
            root: What references in it point into.
            begun: References that have led here with nothing written since: a rule that begins
                with itself is no grammar.
        """
        if self._depth >= _DEEPEST:
            return "value"
        self._depth += 1
        try:
            return self._expression(schema, root, begun)
        finally:
            self._depth -= 1

    def _expression(self, schema: object, root: Mapping[str, Any], begun: frozenset[str]) -> str:
        if not isinstance(schema, Mapping) or len(self.rules) > _MOST_RULES:
            return "value"
        match schema:
            case {"$ref": str(reference)}:
                return self._reference(reference, root, begun)
            case {"const": value}:
                return _words([value])
            case {"enum": [*values]} if 0 < len(values) <= _MOST_VALUES:
                return _words(values)
            case {"allOf": [*parts]}:
                rest = {name: value for name, value in schema.items() if name != "allOf"}
                return self.expression(_merged([rest, *parts], root), root, begun)
            case {"anyOf": [*options]} | {"oneOf": [*options]} if "properties" not in schema:
                return self._any(options, root, begun)
        kind = schema.get("type", _implied(schema))
        if isinstance(kind, list):
            return self._any([{**schema, "type": each} for each in kind], root, begun)
        match kind:
            case "object":
                return self._object(schema, root)
            case "array":
                return self._array(schema, root)
            case "string":
                return self._string(schema)
            case "integer":
                return integers(schema)
            case "number":
                return numbers(schema)
            case "boolean":
                return '("true" | "false")'
            case "null":
                return '"null"'
        return "value"

    def _rule(self, expression: str) -> str:
        name = f"r{len(self.rules)}"
        self.rules[name] = expression
        return name

    def _shared(self, expression: str) -> str:
        """The rule for an expression; what engines expand is expanded once."""
        if expression not in self._names:
            self._names[expression] = self._rule(expression)
        return self._names[expression]

    def _any(
        self, options: Sequence[object], root: Mapping[str, Any], begun: frozenset[str]
    ) -> str:
        found = dict.fromkeys(
            self.expression(option, root, begun) for option in options if option is not False
        )
        if not found:
            return "value"
        return f"({' | '.join(found)})"

    def _reference(self, reference: str, root: Mapping[str, Any], begun: frozenset[str]) -> str:
        if reference in begun:
            return "value"
        key = (id(root), reference)
        if key not in self._references:
            self._references[key] = name = self._rule("value")
            self.rules[name] = self.expression(_target(reference, root), root, begun | {reference})
        return self._references[key]

    def _object(self, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
        named: Mapping[str, Any] = schema.get("properties") or {}
        required = list(schema.get("required") or ())
        extra = schema.get("additionalProperties", True)
        if not named and not required:
            if extra is False:
                return '"{}"'
            pair = f'string ": " {self.expression(extra, root)}'
            least = schema.get("minProperties", 0)
            most = schema.get("maxProperties", _at_least(self._bounds.members, least))
            return f'("{{" {self._listed(pair, least, most)} "}}")'

        def member(name: str) -> str:
            value = self.expression(named.get(name, extra), root)
            return f"{literal(json.dumps(name, ensure_ascii=False) + ': ')} {value}"

        must = [name for name in named if name in required]
        must += [name for name in dict.fromkeys(required) if name not in named]
        may = [member(n) for n, each in named.items() if n not in required and each is not False]
        may = may[:_MOST_OPTIONAL]  # each is a call deeper in an engine
        parts = ['"{"', ' ", " '.join(member(name) for name in must)]
        if must:
            parts += [f'(", " {each})?' for each in may]
        elif may:
            parts.append(f"{self._chain(may)}?")
        parts.append('"}"')
        return f"({' '.join(part for part in parts if part)})"

    def _chain(self, members: Sequence[str]) -> str:
        """One or more of ``members``, in order."""
        begin = after = ""
        for each in reversed(members):
            rest = f" {after}" if after else ""
            begin = self._rule(f"{each}{rest}" + (f" | {begin}" if begin else ""))
            after = self._rule(f'(", " {each})?{rest}')
        return begin

    def _array(self, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
        first = schema.get("prefixItems") or ()
        items = schema.get("items", True)
        if isinstance(items, list):  # the form of the drafts before 2020-12
            first, items = items, schema.get("additionalItems", True)
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", _at_least(self._bounds.items, least))
        if not first and items is False:
            return '"[]"'
        if not first:
            return f'("[" {self._listed(self.expression(items, root), least, most)} "]")'
        together = ' ", " '.join(self.expression(each, root) for each in first)
        more = max(0, math.ceil(least) - len(first))
        if items is False or (not more and len(first) >= least):
            return f'("[" {together} "]")'
        rest = None if most is None else max(more, math.floor(most) - len(first))
        further = _repeated(f'", " {self.expression(items, root)}', more, rest)
        return f'("[" {together} {further} "]")'

    def _listed(self, item: str, least: float, most: float | None) -> str:
        if item != "value" and " " in item:
            item = self._shared(item)
        return _separated(item, least, most)

    def _string(self, schema: Mapping[str, Any]) -> str:
        pattern, form = schema.get("pattern"), schema.get("format")
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if isinstance(pattern, str):
            chars = self._bounds.text_chars
            # No turn is counted where the schema demands more of them.
            turns = None if chars is None or least > _TURNS else min(chars, _TURNS)
            with contextlib.suppress(UnsupportedPatternError):
                return self._shared(f'"\\"" {of_pattern(pattern, turns)} "\\""')
        elif isinstance(form, str) and form in FORMATS:
            return self._shared(f'"\\"" {FORMATS[form]} "\\""')
        if most is None:
            most = _at_least(self._bounds.text_chars, least)
        if not least and most == self._bounds.text_chars:
            return "string"
        return self._shared(f'"\\"" {_chars(math.ceil(least), most)} "\\""')


@lru_cache(maxsize=256)
def of_schema(text: str, bounds: Bounds | None) -> str | None:
    """The grammar of a schema, or None when it would be too large for an engine."""
    if len(text) > _MOST_CHARS:
        return None
    converter = Converter(bounds)
    made = grammar(converter.document(json.loads(text)), converter.rules)
    return made if request_limits.is_bearable(made) else None


def grammar(root: str, rules: Mapping[str, str]) -> str:
    """The text of a grammar, of the rules that ``root`` leads to."""
    used = {"root": root}
    waiting = [root]
    while waiting:
        for name in _NAME.findall(waiting.pop()):
            if name in rules and name not in used:
                used[name] = rules[name]
                waiting.append(rules[name])
    return "\n".join(f"{name} ::= {side}" for name, side in used.items())


def _separated(item: str, least: float, most: float | None) -> str:
    """A list of items."""
    if most is not None and most < 1:
        return ""
    rest = None if most is None else math.floor(most) - 1
    further = _repeated(f'", " {item}', max(0, math.ceil(least) - 1), rest)
    return f"{item} {further}" if least >= 1 else f"({item} {further})?"


def _repeated(part: str, least: int, most: int | None = None) -> str:
    least = min(least, _MOST_REPEATS)
    if most is not None and most <= _MOST_REPEATS:
        # What asks for more than it allows, no value meets: that is left to validation.
        return f"({part}){{{least},{max(least, most)}}}" if max(least, most) > 0 else ""
    return f"({part}){{{least},}}" if least else f"({part})*"


def _chars(least: int, most: float | None) -> str:
    """So many characters of a string, counted in blocks: engines expand each repetition."""
    least = min(least, _MOST_COUNTED)
    blocks, single = divmod(least, _BLOCK)
    parts = [f"block{{{blocks}}}"] if blocks else []
    parts += [f"char{{{single}}}"] if single else []
    if most is None or most > _MOST_COUNTED:
        return " ".join([*parts, "char*"])
    blocks, single = divmod(max(0, math.floor(most) - least), _BLOCK)
    if blocks > 1:
        parts.append(f"block{{0,{blocks - 1}}}")
        single += _BLOCK
    else:
        single += blocks * _BLOCK
    return " ".join([*parts, f"char{{0,{single}}}"] if single else parts)


def _at_least(bound: int | None, least: float) -> float | None:
    return None if bound is None else max(bound, least)


def _words(values: Sequence[object]) -> str:
    words = [literal(json.dumps(value, ensure_ascii=False)) for value in values]
    return f"({' | '.join(words)})"


def _implied(schema: Mapping[str, Any]) -> str | None:
    if schema.keys() & {"properties", "required", "additionalProperties"}:
        return "object"
    return "array" if schema.keys() & {"items", "prefixItems"} else None


def _merged(parts: Sequence[object], root: Mapping[str, Any]) -> dict[str, Any]:
    """Several schemas as one, as far as they are easily so."""
    made: dict[str, Any] = {}
    for part in parts:
        if isinstance(part, Mapping) and isinstance(part.get("$ref"), str):
            part = _target(part["$ref"], root)  # noqa: PLW2901 - the same part, found
        if not isinstance(part, Mapping):
            continue
        for name, value in part.items():
            if name == "allOf":
                continue  # one more level would be left to validation, and may be this one
            if name == "properties" and isinstance(value, Mapping):
                made[name] = {**made.get(name, {}), **value}
            elif name == "required":
                made[name] = [*made.get(name, ()), *value]
            else:
                made[name] = value
    return made


def _target(reference: str, root: Mapping[str, Any]) -> object:
    if not reference.startswith("#"):
        return True
    found: Any = root
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, Mapping) and key in found:
            found = found[key]
        else:
            return True
    return found
