"""Short values that a JSON Schema admits, derived from the schema itself.

The search is bounded: see :class:`Budget`. Whatever it finds is a candidate; only validation
against the whole schema tells whether it is valid.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any, Final

import jsonschema_rs

from runtime.inference import alternatives as alt
from runtime.inference.alternatives import Conjunction, References
from runtime.inference.texts import texts

CHOICES: Final = 4
"""How many candidates of one part are tried within a larger whole."""

_DEPTHS: Final = (3, 8, 24, 100)

_LEAF_KEYWORDS: Final = (
    "type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "multipleOf", "divisibleBy", "minLength", "maxLength", "pattern", "format", "not",
)  # fmt: skip


class ExhaustedError(Exception):
    """The search took as long as it may."""


@dataclass(slots=True)
class Budget:
    """What a search may take.

    Attributes:
        until: Instant (``time.monotonic``) by which it ends.
        steps: Steps it may still take.
    """

    until: float
    steps: int = 200_000

    @classmethod
    def of(cls, seconds: float, *, steps: int = 200_000) -> Budget:
        """A budget of so many seconds from now."""
        return cls(until=time.monotonic() + seconds, steps=steps)

    def spend(self) -> None:
        """Take a step.

        Raises:
            ExhaustedError: There was none left.
        """
        self.steps -= 1
        if self.steps < 0 or (self.steps % 16 == 0 and time.monotonic() > self.until):
            raise ExhaustedError


class Minimal:
    """Short values for the places of one schema.

    Args:
        document: The schema.
        budget: What all searches together may take.
    """

    def __init__(self, document: Mapping[str, Any], budget: Budget) -> None:
        self.references = References(document)
        self.budget = budget
        self._draft = document.get("$schema")
        self._known: dict[tuple[tuple[int, ...], int], tuple[list[Any], Conjunction]] = {}
        self._judges: dict[int, tuple[Mapping[str, Any], jsonschema_rs.Validator | None]] = {}

    def plain(self, place: Conjunction) -> Iterator[Conjunction]:
        """The plain alternatives of a place."""
        for each in alt.alternatives(place, self.references):
            self.budget.spend()
            yield each

    def candidates(self, place: Conjunction) -> Iterator[Any]:
        """Values for a place, the shallow ones first; a value may come twice."""
        for depth in _DEPTHS:
            found = False
            for value in self.values(place, depth):
                found = True
                yield value
            if found:
                return

    def first(self, place: Conjunction, depth: int) -> list[Any]:
        """The first few values for a place within a depth; remembered."""
        key = (tuple(id(each) for each in place), depth)
        if key not in self._known:
            self._known[key] = ([], place)  # a place within itself has no value at this depth
            self._known[key] = (list(islice(self.values(place, depth), CHOICES)), place)
        return self._known[key][0]

    def values(self, place: Conjunction, depth: int) -> Iterator[Any]:
        """Values for a place, nested at most ``depth`` deep."""
        for plain in self.plain(place):
            fixed = alt.fixed_values(plain)
            if fixed is not None:
                small = sorted(fixed, key=_length) if len(fixed) <= 256 else fixed
                yield from (value for value in small if self.fits(plain, value))
                continue
            for kind in alt.types_of(plain):
                self.budget.spend()
                yield from self._of_type(kind, plain, depth)

    def _of_type(self, kind: str, plain: Conjunction, depth: int) -> Iterator[Any]:
        leaves: Iterator[Any]
        match kind:
            case "null":
                leaves = iter((None,))
            case "boolean":
                leaves = iter((False, True))
            case "integer" | "number":
                leaves = _numbers(plain, whole=kind == "integer")
            case "string":
                leaves = self.strings(plain, "")
                yield from leaves
                return
            case "array":
                if depth > 0:
                    yield from self.elements(plain, [], depth)
                return
            case _:
                if depth > 0:
                    yield from self.members(plain, {}, depth)
                return
        yield from (value for value in leaves if self.fits(plain, value))

    def strings(self, plain: Conjunction, prefix: str) -> Iterator[str]:
        """Texts for a plain alternative that begin with ``prefix``."""
        for text in texts(plain, prefix):
            self.budget.spend()
            if self.fits(plain, text):
                yield text

    def elements(self, plain: Conjunction, items: list[Any], depth: int) -> Iterator[list[Any]]:
        """Arrays that begin with ``items`` and hold no more than must be."""
        wanted = alt.bound(plain, "minItems", least=False) or 0
        distinct = any(each.get("uniqueItems") is True for each in plain)
        contained = [each["contains"] for each in plain if "contains" in each]
        if contained:
            least = alt.bound(plain, "minContains", least=False)
            wanted = max(wanted, len(items) + (1 if least is None else int(least)))
        made = list(items)
        while len(made) < wanted:
            self.budget.spend()
            place = (*alt.element(plain, len(made)), *contained)
            pool: Iterator[Any] = iter(self.first(place, depth - 1))
            if distinct:
                pool = (value for value in self.many(place, depth - 1) if value not in made)
            value = next(pool, _NOTHING)
            if value is _NOTHING:
                break
            made.append(value)
        else:
            yield made
        if contained and items:
            yield list(items)

    def many(self, place: Conjunction, depth: int) -> Iterator[Any]:
        """Values for a place, as different as can be had cheaply."""
        yield from self.values(place, depth)
        for plain in self.plain(place):
            kinds = alt.types_of(plain)
            if "string" in kinds:
                yield from self.strings_beyond(plain)
            if "integer" in kinds or "number" in kinds:
                yield from (n for n in range(2, 2000) if self.fits(plain, n))

    def strings_beyond(self, plain: Conjunction) -> Iterator[str]:
        """More texts for a plain alternative."""
        for number in range(200):
            self.budget.spend()
            if self.fits(plain, text := f"{number:x}"):
                yield text
        for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789":
            yield from islice(self.strings(plain, letter), 1)

    def members(
        self, plain: Conjunction, present: Mapping[str, Any], depth: int
    ) -> Iterator[dict[str, Any]]:
        """Members to add to an object that has those in ``present``: no more than must be."""
        extra = alt.dependent(plain, {**present, **dict.fromkeys(alt.required(plain, present))})
        if extra:
            for wider in self.plain((*plain, *extra)):
                yield from self._members(wider, present, depth)
        else:
            yield from self._members(plain, present, depth)

    def _members(
        self, plain: Conjunction, present: Mapping[str, Any], depth: int
    ) -> Iterator[dict[str, Any]]:
        choices: dict[str, list[Any]] = {}
        for name in alt.required(plain, present):
            if name not in present:
                self.budget.spend()
                choices[name] = self.first(alt.member(plain, name), depth - 1)
                if not choices[name]:
                    return
        wanted = int(alt.bound(plain, "minProperties", least=False) or 0)
        if len(present) + len(choices) < wanted:
            for name in self._further_names(plain):
                self.budget.spend()
                if name in present or name in choices:
                    continue
                if found := self.first(alt.member(plain, name), depth - 1):
                    choices[name] = found
                if len(present) + len(choices) >= wanted:
                    break
            else:
                return
        shortest = {name: found[0] for name, found in choices.items()}
        yield shortest
        for name, found in choices.items():
            for other in found[1:]:
                yield {**shortest, name: other}

    def _further_names(self, plain: Conjunction) -> Iterator[str]:
        yield from alt.declared(plain)
        rules = tuple(each["propertyNames"] for each in plain if "propertyNames" in each)
        if rules:
            yield from (name for name in self.many(rules, 1) if isinstance(name, str))
        for each in plain:
            patterns = each.get("patternProperties")
            for pattern in patterns if isinstance(patterns, Mapping) else ():
                rule = {"type": "string", "pattern": pattern}
                yield from islice(self.strings((rule,), ""), 4)
                yield from self.strings_beyond((rule,))
        yield from (f"{number:x}" for number in range(10, 300))

    def fits(self, plain: Conjunction, value: Any) -> bool:
        """Whether the keywords that look at one value alone admit it."""
        for each in plain:
            known = self._judges.get(id(each))
            if known is None:
                known = self._judges[id(each)] = (each, self._judge(each))
            judge = known[1]
            try:
                if judge is not None and not judge.is_valid(value):
                    return False
            except UnicodeEncodeError:  # half a surrogate pair
                return False
        return True

    def _judge(self, schema: Mapping[str, Any]) -> jsonschema_rs.Validator | None:
        part: dict[str, Any] = {name: schema[name] for name in _LEAF_KEYWORDS if name in schema}
        if "not" in part and '"$' in json.dumps(part["not"]):
            del part["not"]
        if not part:
            return None
        if isinstance(self._draft, str):
            part["$schema"] = self._draft
        try:
            return jsonschema_rs.validator_for(part, validate_formats=True, offline=True)
        except ValueError:  # a dialect that the whole document explains, and a part does not
            return None


_NOTHING: Final = object()


def _length(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False))


def _numbers(plain: Conjunction, *, whole: bool) -> Iterator[Any]:
    """Numbers at and around the bounds, the shortest first."""
    low = max(
        (Fraction(n) for key in ("minimum", "exclusiveMinimum")
         if (n := alt.bound(plain, key, least=False)) is not None and math.isfinite(n)),
        default=None,
    )  # fmt: skip
    high = min(
        (Fraction(n) for key in ("maximum", "exclusiveMaximum")
         if (n := alt.bound(plain, key, least=True)) is not None and math.isfinite(n)),
        default=None,
    )  # fmt: skip
    seen: set[Fraction] = set()
    tried: list[Fraction] = [Fraction(n) for n in (0, 1, -1, 2)]
    for edge in (low, high):
        if edge is not None:
            tried += [Fraction(math.floor(edge)) + step for step in (0, 1, -1, 2)]
            tried.append(edge)
    if low is not None and high is not None:
        middle = (low + high) / 2
        tried += [Fraction(math.floor(middle)), middle, low + (high - low) / 4]
    steps = [alt.bound((each,), key, least=True) for each in plain for key in ("multipleOf",)]
    for step in steps:
        if step and math.isfinite(step):
            unit = Fraction(str(step))
            for edge in (low, high, Fraction(0)):
                if edge is not None:
                    near = math.floor(edge / unit)
                    tried += [unit * (near + more) for more in (0, 1, -1, 2)]
    if not whole:
        tried += [Fraction(1, 2), Fraction(1, 10), Fraction(1, 100)]
    for number in tried:
        if number in seen:
            continue
        seen.add(number)
        if number.denominator == 1:
            yield int(number)
        elif not whole:
            try:
                yield float(number)
            except OverflowError:
                continue
