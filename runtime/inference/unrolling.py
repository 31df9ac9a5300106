"""Schemas that refer to themselves, written out to a depth.

A grammar of a recursive schema lets a model nest without end. Written out, each turn through the
references is a definition of its own, and the last one leads nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from runtime.inference.subschemas import at_pointer, subschemas

_MOST_CHARS: Final = 24_576
"""How long what is written out may become; less depth is written out of a long schema."""

_DEFINITIONS: Final = ("$defs", "definitions")


def has_bases(document: Mapping[str, Any]) -> bool:
    """Whether parts of a schema have addresses of their own, so that ``#`` is not the document."""
    return any(
        path and ("$id" in each or isinstance(each.get("id"), str))
        for path, each in subschemas(document)
    )


def unrolled(document: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
    """A schema that admits what ``document`` does, as far as no reference leads deeper.

    A document without recursion comes back as it is, and so does one whose references are not all
    JSON Pointers into it.
    """
    targets: dict[str, Any] = {}
    for _, each in subschemas(document):
        reference = each.get("$ref")
        if isinstance(reference, str) and reference not in targets:
            found = target_of(document, reference)
            if found is None:
                return document
            targets[reference] = found
    leads_to = {name: _references(target) & targets.keys() for name, target in targets.items()}
    rolled = [name for name in targets if _reaches(name, leads_to)]
    if not rolled:
        return document
    size = sum(len(json.dumps(targets[name])) for name in rolled)
    depth = min(depth, _MOST_CHARS // size)
    if depth < 1:
        return document
    names = {name: f"turn-{number}" for number, name in enumerate(rolled)}
    made: dict[str, Any] = _redirected(document, names, 0, depth)
    made["$defs"] = dict(made.get("$defs", {}))
    for level in range(depth):
        for name in rolled:
            turn = _redirected(targets[name], names, level + 1, depth)
            made["$defs"][f"{names[name]}-{level}"] = turn
    return made


def target_of(document: Mapping[str, Any], reference: str) -> Any:
    """What a JSON Pointer into a document leads to, its definitions left out; None if nowhere."""
    if reference == "#":
        return {name: each for name, each in document.items() if name not in _DEFINITIONS}
    return at_pointer(document, reference[1:]) if reference.startswith("#/") else None


def _references(schema: Any) -> set[str]:
    return {each["$ref"] for _, each in subschemas(schema) if isinstance(each.get("$ref"), str)}


def _reaches(start: str, leads_to: Mapping[str, set[str]]) -> bool:
    """Whether a reference leads back to itself."""
    waiting, seen = [*leads_to[start]], set[str]()
    while waiting:
        here = waiting.pop()
        if here == start:
            return True
        if here not in seen:
            seen.add(here)
            waiting.extend(leads_to[here])
    return False


def _redirected(schema: Any, names: Mapping[str, str], level: int, depth: int) -> Any:
    """A copy whose recursive references lead to the definitions of one level."""
    if isinstance(schema, list):
        return [_redirected(each, names, level, depth) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference in names:
        if level >= depth:
            return False
        rest = {name: each for name, each in schema.items() if name != "$ref"}
        made = _redirected(rest, names, level, depth)
        return {**made, "$ref": f"#/$defs/{names[reference]}-{level}"}
    return {
        name: each
        if name in {"enum", "const", "default", "examples"}
        else _redirected(each, names, level, depth)
        for name, each in schema.items()
    }
