"""What a JSON Schema forbids, as what may be there instead.

``not`` says which values are wrong and not which are right. Read keyword by keyword, the negation
of a schema is a choice of plain ones: not to be a number is to be of another type, not to have all
members named so is to have one that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, islice
from typing import Any, Final

Conjunction = tuple[Any, ...]
"""Schemas that all apply to one place; each a mapping or a truth value."""

SOME: Final = "\0some"
"""A keyword of our own: the object has a member whose name and whose value keep to the two schemas
that it holds. JSON Schema can say that only by a double negation."""

TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")
"""The types of JSON values, the shortest first."""

_LEAVES: Final = {
    "pattern": "string",
    "format": "string",
    "multipleOf": "number",
    "divisibleBy": "number",
}
_COUNTED: Final = {
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minProperties": ("object", "maxProperties", -1),
    "maxProperties": ("object", "minProperties", 1),
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
}
_MOST_PAIRS: Final = 64


def is_leaf(schema: Any) -> bool:
    """Whether a schema is so plain that what breaks it can be told by looking at one value."""
    return (
        isinstance(schema, Mapping)
        and len(schema) == 1
        and next(iter(schema)) in {*_LEAVES, "const", "enum"}
    )


def negations(schema: Any, find: Callable[[str], Any]) -> Iterator[Conjunction]:
    """The conjunctions of which one holds exactly where ``schema`` does not, the simple ones first.

    Args:
        schema: The schema that must not hold.
        find: Gives the schema that a reference points to.
    """
    if schema is False:
        yield ()
    if not isinstance(schema, Mapping):
        return
    for keyword, value in schema.items():
        yield from _negated(keyword, value, schema, find)


def _negated(
    keyword: str, value: Any, schema: Mapping[str, Any], find: Callable[[str], Any]
) -> Iterator[Conjunction]:
    if keyword in _LEAVES:
        yield ({"type": _LEAVES[keyword], "not": {keyword: value}},)
    elif keyword in _COUNTED:
        kind, opposite, step = _COUNTED[keyword]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and (step == 0 or value + step >= 0):
            yield ({"type": kind, opposite: value + step},)
    elif isinstance(value, Mapping):
        yield from _negated_mapping(keyword, value, schema)
    elif isinstance(value, list):
        yield from _negated_list(keyword, value)
    else:
        yield from _negated_scalar(keyword, value, schema, find)


def _negated_scalar(
    keyword: str, value: Any, schema: Mapping[str, Any], find: Callable[[str], Any]
) -> Iterator[Conjunction]:
    match keyword, value:
        case "type", str():
            yield from _other_types([value])
        case "const", _:
            yield ({"not": {"const": value}},)
        case (("$ref" | "$dynamicRef" | "$recursiveRef"), str()):
            yield ({"not": find(value)},)
        case "uniqueItems", True:
            yield ({"type": "array", "minItems": 2},)
        case "additionalProperties", False:
            yield ({"type": "object", SOME: (_further_names(schema), True)},)
        case (("items" | "propertyNames"), False):
            keyword = "minItems" if keyword == "items" else "minProperties"
            yield ({"type": "array" if keyword == "minItems" else "object", keyword: 1},)
        case "not", False:
            return
        case "not", True:
            yield ()


def _negated_list(keyword: str, value: list[Any]) -> Iterator[Conjunction]:
    match keyword:
        case "type":
            yield from _other_types([each for each in value if isinstance(each, str)])
        case "enum":
            yield ({"not": {"enum": value}},)
        case "required":
            yield from (({"type": "object", "properties": {name: False}},) for name in value)
        case "allOf":
            yield from (({"not": each},) for each in value)
        case "anyOf" | "oneOf":
            yield tuple({"not": each} for each in value)
            if keyword == "oneOf":
                yield from islice(combinations(value, 2), _MOST_PAIRS)
        case "prefixItems" | "items":
            for position, each in enumerate(value):
                listed = [True] * position + [{"not": each}]
                yield ({"type": "array", "minItems": position + 1, "prefixItems": listed},)


def _negated_mapping(
    keyword: str, value: Mapping[str, Any], schema: Mapping[str, Any]
) -> Iterator[Conjunction]:
    match keyword:
        case "const":
            yield ({"not": {"const": value}},)
        case "not":
            yield (value,)
        case "properties":
            for name, each in value.items():
                rule = {name: {"not": each}}
                yield ({"type": "object", "required": [name], "properties": rule},)
        case "patternProperties":
            for pattern, each in value.items():
                yield ({"type": "object", SOME: ({"pattern": pattern}, {"not": each})},)
        case "additionalProperties":
            yield ({"type": "object", SOME: (_further_names(schema), {"not": value})},)
        case "propertyNames":
            yield ({"type": "object", SOME: ({"not": value}, True)},)
        case "items":
            yield ({"type": "array", "minItems": 1, "contains": {"not": value}},)
        case "contains":
            yield ({"type": "array", "items": {"not": value}},)
        case "if":
            yield (value, {"not": schema.get("then", True)})
            yield ({"not": value}, {"not": schema.get("else", True)})
        case "dependentRequired" | "dependentSchemas" | "dependencies":
            for name, each in value.items():
                wanted = each if isinstance(each, Mapping | bool) else {"required": [*each]}
                yield ({"type": "object", "required": [name]}, {"not": wanted})


def _other_types(named: list[str]) -> Iterator[Conjunction]:
    covered = {*named, *(("integer",) if "number" in named else ())}
    others = [kind for kind in TYPES if kind not in covered]
    if "integer" in covered and "number" not in covered:
        others.remove("number")
        yield ({"type": "number", "not": {"multipleOf": 1}},)
    if others:
        yield ({"type": others},)


def _further_names(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The names that neither ``properties`` nor ``patternProperties`` speak of."""
    patterns = [{"not": {"pattern": each}} for each in schema.get("patternProperties", ())]
    return {"not": {"enum": [*schema.get("properties", ())]}, "allOf": patterns}
