"""What the engines' own converters from JSON Schema to a grammar are entrusted with."""

from __future__ import annotations

from typing import Final

# What llama-cpp-python is entrusted with, and how much of it.
_PLAIN: Final = frozenset(
    {"type", "properties", "required", "items", "enum", "const", "anyOf", "additionalProperties"}
    | {"minItems", "maxItems", "title", "description", "default", "examples", "$schema"}
)
_PLAIN_DEPTH: Final = 16
_PLAIN_REPEATS: Final = 64
_PLAIN_VALUES: Final = 128


def is_plain(document: object, depth: int = 0) -> bool:
    """Whether a schema is of the plainest kind, and not large."""
    if not isinstance(document, dict) or depth > _PLAIN_DEPTH or not document.keys() <= _PLAIN:
        return False
    if not document.keys() & {"type", "enum", "const", "anyOf", "properties"}:
        return not document  # "anything" is known only as an empty schema
    if any(document.get(name, 0) > _PLAIN_REPEATS for name in ("minItems", "maxItems")):
        return False
    if len(document.get("enum", ())) > _PLAIN_VALUES or not isinstance(
        document.get("type", ""), str
    ):
        return False
    extra = document.get("additionalProperties", False)
    below = [
        *document.get("properties", {}).values(),
        *document.get("anyOf", ()),
        *([document["items"]] if "items" in document else ()),
        *([] if isinstance(extra, bool) else [extra]),
    ]
    return len(below) <= _PLAIN_VALUES and all(is_plain(each, depth + 1) for each in below)
