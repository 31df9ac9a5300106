"""JSON Schema to GBNF, for engines that know no other grammars.

Ours, not an engine's converter: it can stand within a larger grammar, runs before the request, and
what it cannot express it widens to what admits every valid value, never to free text. The
answer is validated by the schema in any case. The notation is that of llama.cpp's grammars/README.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from runtime.inference.gbnf_numbers import integers, numbers
from runtime.inference.gbnf_text import FORMATS, UnsupportedPatternError, literal, of_pattern

__all__ = ["FORMATS", "JSON_RULES", "Converter", "grammar", "literal"]

_MOST_REPEATS: Final = 500
"""Repetitions that are counted; engines expand them, and refuse more than 2,000."""

_MOST_VALUES: Final = 500
_MOST_RULES: Final = 2000
_DEEPEST: Final = 100
_NONE: Final[frozenset[str]] = frozenset()

JSON_RULES: Final[Mapping[str, str]] = {
    "object": '"{" (member (", " member)*)? "}"',
    "member": 'string ": " value',
    "array": '"[" (value (", " value)*)? "]"',
    "value": 'object | array | string | number | "true" | "false" | "null"',
    "string": r'"\"" char* "\""',
    "char": r'[^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" [0-9a-cefA-CEF] [0-9a-fA-F]{3})',
    "number": 'integer ("." [0-9]{1,15})?',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
}
"""Any JSON, laid out as ``json.dumps`` does. Escapes of surrogates are left out."""


class Converter:
    """Rules for the values of schemas.

    Attributes:
        rules: Name → right-hand side, those of :data:`JSON_RULES` included.
    """

    def __init__(self) -> None:
        self.rules: dict[str, str] = dict(JSON_RULES)
        self._references: dict[tuple[int, str], str] = {}
        self._depth = 0

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
                return _string(schema)
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

    def _any(
        self, options: Sequence[object], root: Mapping[str, Any], begun: frozenset[str]
    ) -> str:
        found = dict.fromkeys(self.expression(option, root, begun) for option in options)
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
            least, most = schema.get("minProperties", 0), schema.get("maxProperties")
            return f'("{{" {self._listed(pair, least, most)} "}}")'

        def member(name: str) -> str:
            value = self.expression(named.get(name, extra), root)
            return f"{literal(json.dumps(name, ensure_ascii=False) + ': ')} {value}"

        must = [name for name in named if name in required]
        must += [name for name in dict.fromkeys(required) if name not in named]
        may = [member(name) for name in named if name not in required]
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
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if not first:
            return f'("[" {self._listed(self.expression(items, root), least, most)} "]")'
        together = ' ", " '.join(self.expression(each, root) for each in first)
        more = max(0, math.ceil(least) - len(first))
        if items is False or (not more and len(first) >= least):
            return f'("[" {together} "]")'
        further = _repeated(f'", " {self.expression(items, root)}', more)
        return f'("[" {together} {further} "]")'

    def _listed(self, item: str, least: float, most: float | None) -> str:
        if most is not None and most < 1:
            return ""
        if item != "value" and " " in item:
            item = self._rule(item)
        rest = None if most is None else math.floor(most) - 1
        further = _repeated(f'", " {item}', max(0, math.ceil(least) - 1), rest)
        return f"{item} {further}" if least >= 1 else f"({item} {further})?"


def grammar(root: str, rules: Mapping[str, str]) -> str:
    """The text of a grammar."""
    return "\n".join(f"{name} ::= {side}" for name, side in {"root": root, **rules}.items())


def _repeated(part: str, least: int, most: int | None = None) -> str:
    least = min(least, _MOST_REPEATS)
    if most is not None and most <= _MOST_REPEATS:
        return f"({part}){{{least},{most}}}" if most > 0 else ""
    return f"({part}){{{least},}}" if least else f"({part})*"


def _string(schema: Mapping[str, Any]) -> str:
    pattern, form = schema.get("pattern"), schema.get("format")
    if isinstance(pattern, str):
        try:
            return f'("\\"" {of_pattern(pattern)} "\\"")'
        except UnsupportedPatternError:
            return "string"
    if isinstance(form, str) and form in FORMATS:
        return f'("\\"" {FORMATS[form]} "\\"")'
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if not least and (most is None or most > _MOST_REPEATS):
        return "string"
    ends = None if most is None else math.floor(most)
    return f'("\\"" {_repeated("char", math.ceil(least), ends)} "\\"")'


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
