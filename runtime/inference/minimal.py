"""Short values that a JSON Schema admits, derived from the schema itself.

The search is bounded: see :class:`Budget`. Whatever it finds is a candidate; only validation
against the whole schema tells whether it is valid.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any, Final

from runtime.inference import alternatives as alt
from runtime.inference.alternatives import References
from runtime.inference.numerals import numbers
from runtime.inference.texts import texts

if TYPE_CHECKING:
    import jsonschema_rs

    from runtime.inference.negation import Conjunction

CHOICES: Final = 4
"""How many candidates of one part are tried within a larger whole."""

_DEPTHS: Final = (3, 8, 24, 100)

_MOST_DEMANDED: Final = 6
_STRING: Final = {"type": "string"}

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
        exact: Whether what must not hold is looked at, too.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        budget: Budget,
        *,
        exact: bool = False,
    ) -> None:
        self.references = References(document, exact=exact)
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
                leaves = numbers(plain, whole=kind == "integer")
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
        wanted = int(alt.bound(plain, "minItems", least=False) or 0)
        contained = [each["contains"] for each in plain if "contains" in each]
        least = alt.bound(plain, "minContains", least=False)
        times = 1 if least is None else int(least)
        if not contained or not times:
            yield from self._filled(plain, items, [()] * (wanted - len(items)), depth)
            return
        # One element may be all that must be contained; else each is an element of its own.
        together = [tuple(contained)] * times
        apart = [(each,) for each in contained for _ in range(times)]
        for chosen in (together, apart) if len(contained) > 1 else (together,):
            missing = wanted - len(items) - len(chosen)
            yield from self._filled(plain, items, [*chosen, *[()] * missing], depth)
        if items:
            yield from self._filled(plain, items, [()] * (wanted - len(items)), depth)

    def _filled(
        self, plain: Conjunction, items: list[Any], rules: list[tuple[Any, ...]], depth: int
    ) -> Iterator[list[Any]]:
        """``items`` with one more element for each of the rules."""
        distinct = any(each.get("uniqueItems") is True for each in plain)
        made = list(items)
        for rule in rules:
            self.budget.spend()
            place = (*alt.element(plain, len(made)), *rule)
            pool: Iterator[Any] = iter(self.first(place, depth - 1))
            if distinct:
                seen = {_json(value) for value in made}
                pool = (value for value in self.many(place, depth - 1) if _json(value) not in seen)
            value = next(pool, _NOTHING)
            if value is _NOTHING:
                return
            made.append(value)
        yield made

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
        there = {**present, **dict.fromkeys(alt.required(plain, present))}
        known = {id(each) for each in plain}
        extra = [each for each in alt.dependent(plain, there) if id(each) not in known]
        if extra:
            for wider in self.plain((*plain, *extra)):
                yield from self.members(wider, present, depth)
            return
        most = alt.bound(plain, "maxProperties", least=True)
        for some in self._demanded(plain, present, depth):
            for made in self._members(plain, {**present, **some}, depth):
                if most is None or len(present) + len(some) + len(made) <= most:
                    yield {**some, **made}

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

    def _demanded(
        self, plain: Conjunction, present: Mapping[str, Any], depth: int
    ) -> Iterator[dict[str, Any]]:
        """Members of whom only rules are known, as few as can be found."""
        rules = alt.demanded(plain)[:_MOST_DEMANDED]
        if not rules:
            yield {}
            return
        there = dict(present)
        for name in alt.required(plain, present):
            if found := self.first(alt.member(plain, name), depth - 1):
                there.setdefault(name, found[0])
        left = [
            (name, value)
            for name, value in rules
            if not any(self._meets(name, n) and self._meets(value, v) for n, v in there.items())
        ]
        yield from self._covering(plain, left, {}, depth)

    def _meets(self, rule: Any, value: Any) -> bool:
        """Whether a value keeps to a schema, looked at no deeper than itself."""
        return any(self.fits(plain, value) for plain in islice(self.plain((rule,)), CHOICES))

    def _covering(
        self, plain: Conjunction, rules: list[tuple[Any, Any]], made: dict[str, Any], depth: int
    ) -> Iterator[dict[str, Any]]:
        if not rules:
            yield made
            return
        first, rest = rules[0], rules[1:]
        for size in range(len(rest), -1, -1):
            for others in combinations(rest, size):
                met = (first, *others)
                left = [rule for rule in rest if not any(rule is each for each in others)]
                for name, value in self._named(plain, met, depth):
                    if name not in made:
                        yield from self._covering(plain, left, {**made, name: value}, depth)

    def _named(
        self, plain: Conjunction, rules: tuple[tuple[Any, Any], ...], depth: int
    ) -> Iterator[tuple[str, Any]]:
        """Members that keep to all of the rules, each with a name of its own."""
        names = tuple(each["propertyNames"] for each in plain if "propertyNames" in each)
        names = (*names, *(name for name, _ in rules), _STRING)
        patterns = [pattern for each in plain for pattern in each.get("patternProperties", ())]
        for place in (names, *((*names, {"pattern": pattern}) for pattern in patterns)):
            for name in islice(self.values(place, 1), CHOICES):
                self.budget.spend()
                value = (*alt.member(plain, name), *(value for _, value in rules))
                if found := self.first(value, depth - 1):
                    yield name, found[0]

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
        import jsonschema_rs  # noqa: PLC0415 - as in runtime.inference.schema

        try:
            return jsonschema_rs.validator_for(part, validate_formats=True, offline=True)
        except ValueError:  # a dialect that the whole document explains, and a part does not
            return None


_NOTHING: Final = object()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _length(value: Any) -> int:
    return len(_json(value))
