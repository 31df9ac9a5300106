"""What of a schema no engine enforces while decoding, found before the request."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from runtime.errors import UnenforceableSchemaError
from runtime.inference import grammars
from runtime.inference.schema import pointer
from runtime.inference.subschemas import subschemas

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runtime.inference.schema import Enforcement, Schema

_KEYS: Final = re.compile(r"Unimplemented keys: (\[.*?\])")
_MOST_TOLD: Final = 20
_MOST_ROUNDS: Final = 32
_TOGETHER: Final = "the combination of its keywords"

# What becomes GBNF everywhere; of the rest, servers' own converters drop most without a word.
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


def demand(schema: Schema, how: Enforcement) -> None:
    """Refuse a schema that is not enforced to the full while decoding.

    Raises:
        UnenforceableSchemaError: Names every place and keyword.
    """
    if how.validated_only is None:
        return
    places = tuple(_places(schema, how))
    told = [f"{keyword!r} at {where or 'its root'}" for where, keyword in places[:_MOST_TOLD]]
    if len(places) > _MOST_TOLD:
        told.append(f"and {len(places) - _MOST_TOLD} more")
    if not places:
        told = ["everything at its root" if how.kind == "prompt" else _TOGETHER]
    raise UnenforceableSchemaError(
        f"The schema cannot be enforced while decoding: {', '.join(told)} ({how.validated_only})",
        places=places,
        hint='Simplify the schema, or use enforcement="best", which validates afterwards.',
    )


def _places(schema: Schema, how: Enforcement) -> Iterator[tuple[str, str]]:
    if how.kind in {"gbnf", "json_schema"}:
        for path, each in subschemas(schema.document):
            for keyword in each:
                if keyword not in _CONVERTED | _REMARKS:
                    yield pointer((*path, keyword)), keyword
    elif how.kind == "llguidance":
        yield from _uncompiled(schema.document)


def _uncompiled(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What llguidance complains of, one complaint after the other."""
    places: dict[int, tuple[str | int, ...]] = {}
    for path, each in subschemas(document):
        places.setdefault(id(each), path)
    found: set[tuple[int, str]] = {
        (id(each), keyword)
        for _, each in subschemas(document)
        for keyword in each
        if grammars.leaf_fault(each, keyword)
    }

    def is_found(schema: Mapping[str, Any], keyword: str) -> bool:
        return (id(schema), keyword) in found

    for _ in range(_MOST_ROUNDS):
        failure = grammars.failure_of(grammars.without(document, is_found))
        keywords = _named_in(failure or "")
        more = {
            (id(each), keyword)
            for _, each in subschemas(document)
            for keyword in keywords & each.keys()
        }
        if more <= found:
            break
        found |= more
    ordered = {id(each): n for n, (_, each) in enumerate(subschemas(document))}
    for identity, keyword in sorted(found, key=lambda each: (ordered[each[0]], each[1])):
        yield pointer((*places[identity], keyword)), keyword


def _named_in(failure: str) -> set[str]:
    """The keywords that a complaint of llguidance's names."""
    keywords = set(json.loads(listed[1])) if (listed := _KEYS.search(failure)) else set()
    if "oneOf constraints" in failure:
        keywords.add("oneOf")
    if "min/maxProperties" in failure:
        keywords |= {"minProperties", "maxProperties"}
    return keywords
