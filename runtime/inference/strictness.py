"""What of a schema no engine enforces while decoding, found before the request."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from runtime.errors import LLMInvalidRequestError
from runtime.inference.schema import pointer

if TYPE_CHECKING:
    from runtime.inference.schema import Enforcement, Schema

_KEYS: Final = re.compile(r"Unimplemented keys: (\[.*?\])")
_FORMAT: Final = re.compile(r"Unknown format: (\S+)")

# What llama.cpp's own converter turns into a grammar; it drops the rest without a word.
_CONVERTED: Final = frozenset(
    {
        "type", "properties", "required", "additionalProperties", "items", "prefixItems",
        "minItems", "maxItems", "enum", "const", "anyOf", "$ref", "$defs", "definitions",
        "minLength", "maxLength",
    }
)  # fmt: skip
_REMARKS: Final = frozenset(
    {
        "$schema", "$id", "id", "$comment", "$anchor", "title", "description", "default",
        "examples", "example", "deprecated", "readOnly", "writeOnly",
    }
)  # fmt: skip

_ONE: Final = ("additionalProperties", "items", "additionalItems", "contains", "not", "if", "then",
               "else", "propertyNames", "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
_LISTED: Final = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas",
                 "dependencies")  # fmt: skip

_Path = tuple[str | int, ...]


def subschemas(schema: Any, path: _Path = ()) -> Iterator[tuple[_Path, Mapping[str, Any]]]:
    """Every schema within a schema, itself first, with where it is."""
    waiting: list[tuple[_Path, Any]] = [(path, schema)]
    while waiting:
        here, each = waiting.pop()
        if not isinstance(each, Mapping):
            continue
        yield here, each
        inner: list[tuple[_Path, Any]] = [((*here, k), each[k]) for k in _ONE if k in each]
        for keyword in _LISTED:
            if isinstance(listed := each.get(keyword), list):
                inner += [((*here, keyword, n), part) for n, part in enumerate(listed)]
        for keyword in _NAMED:
            if isinstance(named := each.get(keyword), Mapping):
                inner += [((*here, keyword, name), part) for name, part in named.items()]
        waiting.extend(reversed(inner))


def demand(schema: Schema, how: Enforcement) -> None:
    """Refuse a schema that is not enforced to the full while decoding.

    Raises:
        LLMInvalidRequestError: Names the place and the keyword.
    """
    if how.validated_only is None:
        return
    where, keyword = _culprit(schema, how)
    raise LLMInvalidRequestError(
        f"The schema cannot be enforced while decoding: {keyword} at {where or 'its root'} "
        f"({how.validated_only})",
        hint='Simplify the schema, or use enforcement="best", which validates afterwards.',
    )


def _culprit(schema: Schema, how: Enforcement) -> tuple[str, str]:
    problem = how.validated_only or ""
    if how.kind == "prompt":
        return "", "everything"
    keywords: set[str] = set()
    form = _FORMAT.search(problem)
    if listed := _KEYS.search(problem):
        keywords.update(json.loads(listed[1]))
    if "oneOf constraints" in problem:
        keywords.add("oneOf")
    for path, each in subschemas(schema.document):
        for keyword in each:
            if form:
                hit = keyword == "format" and each[keyword] == form[1]
            elif how.kind == "json_schema":
                hit = keyword not in _CONVERTED | _REMARKS
            else:
                hit = keyword in keywords
            if hit:
                return pointer((*path, keyword)), repr(keyword)
    return "", "the combination of its keywords"
