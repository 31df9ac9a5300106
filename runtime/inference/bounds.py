"""Bounds where a schema sets none: what a grammar adds so that no answer runs on for ever.

They only ever narrow what the schema admits, and apply while decoding alone: an answer is judged by
the caller's own schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.errors import ConfigError

_FIXED = ("enum", "const")
_ONE = ("additionalProperties", "items", "additionalItems")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much the model may write where the schema does not say; None for no bound.

    Attributes:
        text_chars: Characters of a string.
        items: Elements of an array.
        members: Members of an object whose members the schema does not name.
        digits: Digits of a number before the point.
        decimals: Digits of a number after the point.
    """

    text_chars: int | None = 4096
    items: int | None = 256
    members: int | None = 64
    digits: int | None = 15
    decimals: int | None = 9

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= 1):
                raise ConfigError(f"bounds.{name} is {value!r}.", hint="It is 1 or more, or None.")


def narrowed(schema: Any, bounds: Bounds) -> Any:
    """A copy of a schema with bounds where it has none."""
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    for keyword in _ONE:
        if isinstance(schema.get(keyword), Mapping):
            made[keyword] = narrowed(schema[keyword], bounds)
    for keyword in _LISTED:
        if isinstance(listed := schema.get(keyword), list):
            made[keyword] = [narrowed(each, bounds) for each in listed]
    for keyword in _NAMED:
        if isinstance(named := schema.get(keyword), Mapping):
            made[keyword] = {name: narrowed(each, bounds) for name, each in named.items()}
    if not any(keyword in schema for keyword in _FIXED):
        given = schema.get("type")
        for kind in given if isinstance(given, list) else [given]:
            _bound(made, kind, bounds)
    return made


def _bound(made: dict[str, Any], kind: object, bounds: Bounds) -> None:
    match kind:
        case "string" if "format" not in made and bounds.text_chars:
            _most(made, "maxLength", "minLength", bounds.text_chars)
        case "array" if bounds.items:
            _most(made, "maxItems", "minItems", bounds.items)
        case "object" if bounds.members and "properties" not in made and "required" not in made:
            _most(made, "maxProperties", "minProperties", bounds.members)
        case "integer" | "number":
            named = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
            if any(keyword in made for keyword in named):
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
