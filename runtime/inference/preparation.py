"""A caller's schema in the form that compilers take: whole, flat enough, with no endless chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtime.errors import LLMInvalidRequestError
from runtime.inference import request_limits
from runtime.inference.subschemas import subschemas
from runtime.inference.unrolling import has_bases, target_of

_MOST_FLAT: Final = 100
"""Containers within one another that every compiler reads: serde_json gives up at 128."""

_HOISTED_AT: Final = 48
_OLD_DRAFTS: Final = ("draft-03", "draft-04", "draft-06", "draft-07")


def bundled(document: Mapping[str, Any], others: Mapping[str, object]) -> Mapping[str, Any]:
    """A schema with others embedded under their addresses, as JSON Schema 2020-12 §9.3 has it.

    Raises:
        LLMInvalidRequestError: One of the others is no schema, or its address no absolute one.
    """
    draft = str(document.get("$schema", ""))
    old = any(name in draft for name in _OLD_DRAFTS)
    place, own = ("definitions" if old else "$defs"), ("id" if "draft-04" in draft else "$id")
    embedded: dict[str, object] = {}
    for address, other in others.items():
        if not isinstance(address, str) or ":" not in address or "#" in address:
            raise LLMInvalidRequestError(
                f"schemas has the address {address!r}.",
                hint="An address is an absolute URI without a fragment.",
            )
        if not isinstance(other, Mapping):
            raise LLMInvalidRequestError(
                f"schemas[{address!r}] is {type(other).__name__}, not a JSON Schema object."
            )
        embedded[address] = {**other, own: address}
    known = document.get(place)
    return {**document, place: {**(known if isinstance(known, Mapping) else {}), **embedded}}


def check_chains(document: Mapping[str, Any], what: str) -> None:
    """Refuse references that lead from one to the next without end; compilers follow each.

    Raises:
        LLMInvalidRequestError: They do.
    """
    names = [each["$ref"] for _, each in subschemas(document) if isinstance(each.get("$ref"), str)]
    if len(names) <= request_limits.MOST_REFERENCES:
        return
    leads_to: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        target = target_of(document, name)
        leads_to[name] = [
            each["$ref"] for _, each in subschemas(target) if isinstance(each.get("$ref"), str)
        ]
    root = target_of(document, "#")
    first = [each["$ref"] for _, each in subschemas(root) if isinstance(each.get("$ref"), str)]
    request_limits.check_references(leads_to, [*first, *names], what)


def flattened(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema that says the same, with what is nested too deeply moved to definitions.

    One that has parts with addresses of their own comes back as it is: there a reference would not
    lead to the whole.
    """
    deepest = max((len(path) for path, _ in subschemas(document)), default=0)
    if deepest <= _MOST_FLAT or has_bases(document):
        return document
    made = dict(document)
    moved: dict[str, Any] = {}
    waiting: list[tuple[dict[str, Any], int]] = [(made, 0)]
    while waiting:
        here, depth = waiting.pop()
        for keyword, value in here.items():
            here[keyword] = _lifted(keyword, value, depth, moved, waiting)
    known = made.get("$defs")
    return {**made, "$defs": {**(known if isinstance(known, Mapping) else {}), **moved}}


def _lifted(
    keyword: str,
    value: Any,
    depth: int,
    moved: dict[str, Any],
    waiting: list[tuple[dict[str, Any], int]],
) -> Any:
    """The value of a keyword with the schemas in it copied, and put elsewhere if they are deep."""

    def placed(part: Any, level: int) -> Any:
        if not isinstance(part, Mapping):
            return part
        copy = dict(part)
        if level <= _HOISTED_AT:
            waiting.append((copy, level))
            return copy
        name = f"deep-{len(moved)}"
        moved[name] = copy
        waiting.append((copy, 2))
        return {"$ref": f"#/$defs/{name}"}

    parts = {path: part for path, part in subschemas({keyword: value}) if 0 < len(path) <= 2}
    if (keyword,) in parts:
        return placed(value, depth + 1)
    if not parts:
        return value
    if isinstance(value, list):
        return [
            placed(part, depth + 2) if (keyword, n) in parts else part
            for n, part in enumerate(value)
        ]
    return {
        k: placed(part, depth + 2) if (keyword, k) in parts else part for k, part in value.items()
    }
