"""The schemas within a JSON Schema, and where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

_ONE: Final = ("additionalProperties", "items", "additionalItems", "contains", "not", "if", "then",
               "else", "propertyNames", "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
_LISTED: Final = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas",
                 "dependencies")  # fmt: skip

Path = tuple[str | int, ...]


def subschemas(schema: Any, path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Every schema within a schema, itself first, with where it is."""
    waiting: list[tuple[Path, Any]] = [(path, schema)]
    while waiting:
        here, each = waiting.pop()
        if not isinstance(each, Mapping):
            continue
        yield here, each
        inner: list[tuple[Path, Any]] = [((*here, k), each[k]) for k in _ONE if k in each]
        for keyword in _LISTED:
            if isinstance(listed := each.get(keyword), list):
                inner += [((*here, keyword, n), part) for n, part in enumerate(listed)]
        for keyword in _NAMED:
            if isinstance(named := each.get(keyword), Mapping):
                inner += [((*here, keyword, name), part) for name, part in named.items()]
        waiting.extend(reversed(inner))


def at_pointer(document: Any, fragment: str) -> Any:
    """What a JSON Pointer in a URI's fragment (RFC 6901 §6) leads to; None if nowhere."""
    if fragment and not fragment.startswith("/"):
        return None
    here = document
    for part in unquote(fragment).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(here, Mapping) and key in here:
            here = here[key]
        elif isinstance(here, list) and key.isdecimal() and int(key) < len(here):
            here = here[int(key)]
        else:
            return None
    return here
