"""Bounds where a schema sets none: what a grammar adds so that no answer runs on for ever.

They only ever narrow what the schema admits, and apply while decoding alone: an answer is judged by
the caller's own schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.errors import ConfigError
from runtime.inference import unrolling
from runtime.inference.subschemas import subschemas

_FIXED = ("enum", "const")
_ONE = ("additionalProperties", "items", "additionalItems")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_COMBINED = {"$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if"}
_SILENT = {"title", "description", "default", "examples", "example", "$comment", "deprecated"}
_NUMBERED = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much the model may write where the schema does not say; None for no bound.

    Attributes:
        text_chars: Characters of a string.
        items: Elements of an array.
        members: Members of an object whose members the schema does not name.
        digits: Digits of a number before the point.
        decimals: Digits of a number after the point.
        depth: How often a reference may lead back into itself, and how deep a value of no declared
            type may be nested.
        named_only: Whether an object of which the schema names members may have no others.
    """

    text_chars: int | None = 4096
    items: int | None = 256
    members: int | None = 64
    digits: int | None = 15
    decimals: int | None = 9
    depth: int | None = 10
    named_only: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.named_only, bool):
            raise ConfigError(f"bounds.named_only is {self.named_only!r}.", hint="Give a bool.")
        for name in self.__slots__:
            value = None if name == "named_only" else getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= 1):
                raise ConfigError(f"bounds.{name} is {value!r}.", hint="It is 1 or more, or None.")


def narrowed(schema: Mapping[str, Any], bounds: Bounds) -> Mapping[str, Any]:
    """A copy of a schema with bounds where it has none."""
    if bounds.depth is None or unrolling.has_bases(schema):
        made: dict[str, Any] = _narrowed(schema, bounds, None, root=True)
        return made
    made = _narrowed(schema, bounds, {"$ref": f"#/$defs/{_ANY.format(0)}"}, root=True)
    if any(each.get("$ref") == f"#/$defs/{_ANY.format(0)}" for _, each in subschemas(made)):
        made["$defs"] = {**made.get("$defs", {}), **_values(bounds, bounds.depth)}
    return unrolling.unrolled(made, bounds.depth)


_ANY = "any-{}"


def _values(bounds: Bounds, depth: int) -> dict[str, Any]:
    """Schemas of any value at all, nested no deeper than that."""
    found: dict[str, Any] = {}
    for level in range(depth + 1):
        any_value: dict[str, Any] = {}
        inner: object = {"$ref": f"#/$defs/{_ANY.format(level + 1)}"}
        for kind in ("string", "array", "object", "number"):
            _bound(any_value, kind, bounds, inner)
        if level == depth:
            any_value["type"] = ["null", "boolean", "number", "string"]
        found[_ANY.format(level)] = any_value
    return found


def _narrowed(
    schema: Any, bounds: Bounds, inner: Mapping[str, Any] | None, *, root: bool = False
) -> Any:
    if schema is True or (isinstance(schema, Mapping) and not schema.keys() - _SILENT):
        if inner is None or (root and schema is True):
            return schema
        return {**schema, **inner} if root and isinstance(schema, Mapping) else inner
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    # What combined schemas say together cannot be seen from one of them.
    alone = not schema.keys() & _COMBINED
    for keyword in _ONE:
        if keyword in schema and not isinstance(schema[keyword], list):
            made[keyword] = _narrowed(schema[keyword], bounds, inner)
    for keyword in _LISTED:
        if isinstance(listed := schema.get(keyword), list):
            below = None if keyword == "allOf" else inner
            made[keyword] = [_narrowed(each, bounds, below) for each in listed]
    for keyword in _NAMED:
        if isinstance(named := schema.get(keyword), Mapping):
            made[keyword] = {name: _narrowed(each, bounds, inner) for name, each in named.items()}
    if not any(keyword in schema for keyword in _FIXED):
        given = schema.get("type", ["string", "array", "object", "number"] if alone else None)
        for kind in given if isinstance(given, list) else [given]:
            _bound(made, kind, bounds, inner if alone else None)
    return made


def _bound(made: dict[str, Any], kind: object, bounds: Bounds, inner: object) -> None:
    """Add what bounds the values of one type; ``inner`` is for parts that nothing is said of."""
    match kind:
        case "string" if "format" not in made and bounds.text_chars:
            _most(made, "maxLength", "minLength", bounds.text_chars)
        case "array":
            if inner is not None and not made.keys() & {"items", "prefixItems", "contains"}:
                made["items"] = inner
            if bounds.items:
                _most(made, "maxItems", "minItems", bounds.items)
        case "object":
            if not made.keys() & {"additionalProperties", "patternProperties"}:
                if bounds.named_only and made.get("properties") and inner is not None:
                    made["additionalProperties"] = False
                elif inner is not None and "unevaluatedProperties" not in made:
                    made["additionalProperties"] = inner
            if bounds.members and "properties" not in made and "required" not in made:
                _most(made, "maxProperties", "minProperties", bounds.members)
        case "integer" | "number":
            if any(keyword in made for keyword in _NUMBERED):
                return
            if bounds.digits and bounds.digits < 300:
                made["exclusiveMinimum"] = -(10**bounds.digits)
                made["exclusiveMaximum"] = 10**bounds.digits
            if kind == "number" and bounds.decimals and bounds.decimals < 16:
                made["multipleOf"] = 10.0**-bounds.decimals


def _most(made: dict[str, Any], keyword: str, least: str, most: int) -> None:
    needed = made.get(least)
    if keyword not in made:
        made[keyword] = max(most, int(needed)) if isinstance(needed, int | float) else most
