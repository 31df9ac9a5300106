"""What a JSON Schema allows, one plain alternative at a time.

A place in a document is described by a *conjunction*: schemas that all apply there. References,
``allOf``, ``anyOf``, ``oneOf`` and ``if`` are resolved into alternatives, each a conjunction whose
members' remaining keywords (``type``, ``properties``, ``pattern``, …) can be read off directly.
An alternative may admit too much: who builds a value from it validates the whole afterwards. Read
exactly, ``not``, the other branches of ``oneOf`` and a failing ``if`` are excluded as well, which
makes for many more alternatives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urljoin

from runtime.inference.negation import SOME, TYPES, Conjunction, is_leaf, negations
from runtime.inference.subschemas import at_pointer


@dataclass(frozen=True, slots=True)
class _Either:
    """Several conjunctions, of which one applies."""

    branches: tuple[Conjunction, ...]


class References:
    """Finds what a schema's references point to.

    Args:
        document: The schema.
        exact: Whether what must not hold is made into alternatives, too.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        *,
        exact: bool = False,
    ) -> None:
        self.exact = exact
        self._document = document
        self._named: dict[str, Any] | None = None
        self._negated: dict[int, tuple[Any, tuple[Conjunction, ...]]] = {}
        self._opposites: dict[int, tuple[Any, dict[str, Any]]] = {}

    def negated(self, schema: Any) -> tuple[Conjunction, ...]:
        """The alternatives to a schema; the same objects every time."""
        known = self._negated.get(id(schema))
        if known is None:
            known = (schema, tuple(negations(schema, self.find)))
            self._negated[id(schema)] = known
        return known[1]

    def opposite(self, schema: Any) -> Any:
        """The schema that holds where another does not; the same object every time."""
        known = self._opposites.get(id(schema))
        if known is None:
            known = self._opposites[id(schema)] = (schema, {"not": schema})
        return known[1]

    def find(self, reference: str) -> Any:
        """The schema that is referred to; None when it is not in the document."""
        if reference.startswith("#"):
            found = at_pointer(self._document, reference[1:])
            if found is not None:
                return found
        if self._named is None:
            self._named = dict(_names(self._document, ""))
        if reference in self._named:
            return self._named[reference]
        base = str(self._document.get("$id") or self._document.get("id") or "")
        whole = urljoin(base, reference)
        if whole in self._named:
            return self._named[whole]
        address, _, fragment = whole.partition("#")
        for name in (address, address + "#"):
            if name in self._named:
                return at_pointer(self._named[name], fragment)
        return None


def _names(value: Any, base: str) -> Iterator[tuple[str, Any]]:
    """Every schema that has a name, under each form of it."""
    if isinstance(value, list):
        for each in value:
            yield from _names(each, base)
    if not isinstance(value, Mapping):
        return
    own = value.get("$id", value.get("id"))
    if isinstance(own, str):
        yield own, value
        yield urljoin(base, own), value
        if not own.startswith("#"):
            base = urljoin(base, own)
    for keyword in ("$anchor", "$dynamicAnchor"):
        if isinstance(anchor := value.get(keyword), str):
            yield f"#{anchor}", value
            yield urljoin(base, f"#{anchor}"), value
    for each in value.values():
        yield from _names(each, base)


def alternatives(start: Conjunction, references: References) -> Iterator[tuple[Any, ...]]:
    """The plain alternatives of a conjunction, in the order in which the schema gives them."""
    yield from _alternatives(start, (), frozenset(), references)


def _alternatives(
    todo: tuple[Any, ...], done: Conjunction, seen: frozenset[int], references: References
) -> Iterator[Conjunction]:
    while todo:
        first, *rest = todo
        todo = tuple(rest)
        if isinstance(first, _Either):
            for branch in first.branches:
                yield from _alternatives((*branch, *todo), done, seen, references)
            return
        if first is False:
            return
        if not isinstance(first, Mapping) or id(first) in seen:
            continue
        seen = seen | {id(first)}
        more: list[Any] = []
        for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            if isinstance(reference := first.get(keyword), str):
                found = references.find(reference)
                if found is None:
                    return
                more.append(found)
        more.extend(_listed(first, "allOf"))
        if "anyOf" in first:
            more.append(_Either(tuple((each,) for each in _listed(first, "anyOf"))))
        if "oneOf" in first:
            more.append(_one_of(_listed(first, "oneOf"), references))
        if "if" in first:
            yes, no = first.get("then", True), first.get("else", True)
            unless = (references.opposite(first["if"]),) if references.exact else ()
            more.append(_Either(((first["if"], yes), (no, *unless))))
        if references.exact and "not" in first and not is_leaf(first["not"]):
            more.append(_Either(references.negated(first["not"])))
        todo = (*more, *todo)
        done = (*done, first)
        if references.exact and not types_of(done):
            return
    yield done


def _one_of(listed: tuple[Any, ...], references: References) -> _Either:
    if not references.exact:
        return _Either(tuple((each,) for each in listed))
    others = [references.opposite(each) for each in listed]
    return _Either(tuple((each, *others[:n], *others[n + 1 :]) for n, each in enumerate(listed)))


def _listed(schema: Mapping[str, Any], keyword: str) -> tuple[Any, ...]:
    value = schema.get(keyword)
    return tuple(value) if isinstance(value, list) else ()


def types_of(plain: Conjunction) -> tuple[str, ...]:
    """The types that an alternative admits, the shortest first."""
    allowed = list(TYPES)
    for each in plain:
        given = each.get("type")
        if given is None or given == "any":
            continue
        named = set(given) if isinstance(given, list) else {given}
        if "number" in named:
            named.add("integer")
        allowed = [name for name in allowed if name in named]
    return tuple(allowed)


def fixed_values(plain: Conjunction) -> list[Any] | None:
    """The values that ``const`` and ``enum`` leave, or None when there are neither."""
    found: list[Any] | None = None
    for each in plain:
        if "const" in each:
            listed = [each["const"]]
        elif isinstance(each.get("enum"), list):
            listed = each["enum"]
        else:
            continue
        found = listed if found is None else [value for value in found if value in listed]
    return found


def required(plain: Conjunction, present: Mapping[str, Any]) -> list[str]:
    """The members that must be there, when those in ``present`` are: in the schema's order."""
    names: dict[str, None] = {}
    for each in plain:
        listed = each.get("required")
        if isinstance(listed, list):
            names.update(dict.fromkeys(name for name in listed if isinstance(name, str)))
        for name, declared in _mapping(each, "properties").items():  # draft 3's way to say it
            if isinstance(declared, Mapping) and declared.get("required") is True:
                names[name] = None
    while True:
        there = {*present, *names}
        added = [
            name
            for each in plain
            for keyword in ("dependentRequired", "dependencies")
            for trigger, wanted in _mapping(each, keyword).items()
            if trigger in there
            for name in ([wanted] if isinstance(wanted, str) else wanted)
            if (isinstance(wanted, list | str)) and name not in there
        ]
        if not added:
            return list(names)
        names.update(dict.fromkeys(added))


def dependent(plain: Conjunction, present: Mapping[str, Any]) -> Conjunction:
    """The schemas that apply because of the members that are there."""
    return tuple(
        wanted
        for each in plain
        for keyword in ("dependentSchemas", "dependencies")
        for trigger, wanted in _mapping(each, keyword).items()
        if trigger in present and isinstance(wanted, Mapping)
    )


def member(plain: Conjunction, name: str) -> Conjunction:
    """What applies to the member ``name`` of an object."""
    found: list[Any] = []
    for each in plain:
        properties = _mapping(each, "properties")
        patterns = [
            schema
            for pattern, schema in _mapping(each, "patternProperties").items()
            if _matches(pattern, name)
        ]
        found.extend(patterns)
        if name in properties:
            found.append(properties[name])
        elif not patterns and "additionalProperties" in each:
            found.append(each["additionalProperties"])
    declared = any(name in _mapping(each, "properties") for each in plain)
    if not found and not declared:
        found.extend(each["unevaluatedProperties"] for each in plain if _closed(each))
    return tuple(found)


def _closed(schema: Mapping[str, Any]) -> bool:
    return "unevaluatedProperties" in schema


def demanded(plain: Conjunction) -> list[tuple[Any, Any]]:
    """The rules for a name and a value that some member must keep to, each for one member."""
    return [each[SOME] for each in plain if SOME in each]


def declared(plain: Conjunction) -> list[str]:
    """The members that an alternative names, required or not."""
    names: dict[str, None] = {}
    for each in plain:
        names.update(dict.fromkeys(_mapping(each, "properties")))
    return list(names)


def element(plain: Conjunction, position: int) -> Conjunction:
    """What applies to the element of an array at ``position``."""
    found: list[Any] = []
    for each in plain:
        items = each.get("items")
        listed = each.get("prefixItems", items if isinstance(items, list) else None)
        if isinstance(listed, list) and position < len(listed):
            found.append(listed[position])
        elif isinstance(items, list):
            found.append(each.get("additionalItems", True))
        elif items is not None:
            found.append(items)
    return tuple(found)


def bound(plain: Conjunction, keyword: str, *, least: bool) -> Any:
    """The strictest value of a numeric keyword: the least or the greatest given, or None."""
    given = [
        each[keyword]
        for each in plain
        if isinstance(each.get(keyword), int | float) and not isinstance(each[keyword], bool)
    ]
    if not given:
        return None
    return min(given) if least else max(given)


@lru_cache(maxsize=1024)
def _pattern(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return None


def _matches(pattern: str, name: str) -> bool:
    compiled = _pattern(pattern)
    return compiled is not None and compiled.search(name) is not None


def _mapping(schema: Mapping[str, Any], keyword: str) -> Mapping[str, Any]:
    value = schema.get(keyword)
    return value if isinstance(value, Mapping) else {}
