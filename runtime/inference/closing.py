"""From a JSON text that was cut off to the nearest one that is valid.

What the model delivered is kept as far as it can be, and completed with as little as its schema
asks for: required members with minimal values, optional ones left out. The search goes back member
by member where no completion is found. Bounded in time and steps; every result is validated against
the caller's own schema, so that a wrong one cannot come out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from runtime.errors import SchemaViolationError
from runtime.inference import alternatives as alt
from runtime.inference import schema as schemas
from runtime.inference.minimal import CHOICES, Budget, ExhaustedError, Minimal
from runtime.inference.partial import (
    BEGUN,
    COLON,
    DUE,
    QUOTED,
    BrokenTextError,
    Nothing,
    OpenArray,
    OpenLiteral,
    OpenObject,
    OpenText,
    Reader,
    Seed,
    Whole,
)

if TYPE_CHECKING:
    from runtime.inference.negation import Conjunction
    from runtime.inference.schema import Schema

SECONDS: Final = 2.0
"""How long one search may take, the last one, from nothing, as long again."""

_CHARS_PER_TOKEN: Final = 4
_UNKNOWN_CONTEXT: Final = 8192

_TRIES: Final = 48
"""Candidates that are validated for one place to cut."""

_NEAR_CUTS: Final = 24
"""Places to cut that are tried one by one; beyond them, ever larger steps are taken."""

_EXCLUDING: Final = ('"not"', '"oneOf"', '"if"')

_NESTING: Final = 8
"""How deep what is added may be nested within what was begun, at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A text that is valid, and what of it is the model's.

    Attributes:
        text: The whole.
        start: Where what was added begins, in characters.
        dropped: Characters of the delivered text that were left out.
    """

    text: str
    start: int
    dropped: int

    def note(self) -> dict[str, object]:
        """What is told of it with the response."""
        return {"start": self.start, "text": self.text[self.start :], "dropped": self.dropped}


def most_added(context_tokens: int | None) -> int:
    """Most characters that may be added to an answer: about what fills a request's context.

    They cost no decoding, so that they do not count against ``max_tokens``; but who feeds the
    answer back to the model needs it to fit.

    Args:
        context_tokens: The context of one request; None where the server does not tell it.
    """
    return _CHARS_PER_TOKEN * (context_tokens or _UNKNOWN_CONTEXT)


def close(
    text: str, schema: Schema, *, seconds: float = SECONDS, keep_all: bool = False
) -> Closed | None:
    """The nearest valid text, or None when none was found in time.

    Args:
        text: What the model delivered.
        schema: What the whole has to keep to.
        seconds: How long the search may take; it may take twice as long in all.
        keep_all: Whether nothing of ``text`` may be left out.
    """
    try:
        reader = _reader(text)
    except RecursionError:
        return None
    if reader.end < len(text) and keep_all and isinstance(reader.seed, Whole | Nothing):
        return None
    ends = [reader.end] if keep_all else _ends(reader)
    searches = _searches(schema, Budget.of(seconds))
    try:
        for end in ends:
            seed = reader.seed if end == reader.end else Reader(text[:end]).seed
            for search in searches:
                if found := search.complete(text[:end], seed):
                    return Closed(text=found, start=end, dropped=len(text) - end)
    except (ExhaustedError, RecursionError):
        pass  # what follows needs nothing of the text, and is tried with a budget of its own
    if keep_all:
        return None
    for search in _searches(schema, Budget.of(0)):
        search.renew(Budget.of(seconds / 2))
        try:
            if found := search.complete("", Nothing()):
                return Closed(text=found, start=0, dropped=len(text))
        except (ExhaustedError, RecursionError):
            continue
    return None


def _reader(text: str) -> Reader:
    """The text as far as it is JSON."""
    while True:
        try:
            return Reader(text)
        except BrokenTextError as exc:
            text = text[: min(exc.position, len(text) - 1)]


def _ends(reader: Reader) -> Iterator[int]:
    yield reader.end
    cuts = [cut for cut in reversed(reader.cuts) if cut < reader.end]
    yield from cuts[:_NEAR_CUTS]
    step, position = 2, _NEAR_CUTS
    while position < len(cuts):
        yield cuts[position]
        position += step
        step *= 2


def _searches(schema: Schema, budget: Budget) -> list[_Search]:
    """The ways to look for completions, the cheap one first."""
    loose = _Search(schema, budget, exact=False)
    if any(keyword in schema.text for keyword in _EXCLUDING):
        return [loose, _Search(schema, budget, exact=True)]
    return [loose]


class _Search:
    """Completions of one text."""

    def __init__(self, schema: Schema, budget: Budget, *, exact: bool) -> None:
        self._schema = schema
        self._minimal = Minimal(schema.document, budget, exact=exact)

    def renew(self, budget: Budget) -> None:
        """Go on with another budget."""
        self._minimal.budget = budget

    def complete(self, text: str, seed: Seed) -> str | None:
        place = (self._schema.document,)
        for _, more in islice(self._grow(place, seed), _TRIES):
            self._minimal.budget.spend()
            try:
                schemas.judge(text + more, self._schema)
            except SchemaViolationError:
                continue
            return text + more
        return None

    def _grow(self, place: Conjunction, seed: Seed) -> Iterator[tuple[Any, str]]:
        """Values that go on from a seed, each with the text that is to be added."""
        match seed:
            case Whole(value):
                yield value, ""
            case Nothing():
                for value in self._minimal.candidates(place):
                    yield value, _json(value)
            case OpenText(prefix):
                yield from self._text(place, prefix)
            case OpenLiteral(text):
                yield from self._literal(place, text)
            case OpenArray():
                for plain in self._minimal.plain(place):
                    if "array" in alt.types_of(plain):
                        yield from self._array(plain, seed)
            case OpenObject():
                for plain in self._minimal.plain(place):
                    if "object" in alt.types_of(plain) and self._plausible(plain, seed.members):
                        yield from self._object(plain, seed)

    def _text(self, place: Conjunction, prefix: str) -> Iterator[tuple[str, str]]:
        for plain in self._minimal.plain(place):
            if "string" not in alt.types_of(plain):
                continue
            fixed = alt.fixed_values(plain)
            if fixed is None:
                found = self._minimal.strings(plain, prefix)
            else:
                words = (word for word in fixed if isinstance(word, str))
                found = iter(sorted((w for w in words if w.startswith(prefix)), key=len))
            for text in found:
                yield text, _json(text[len(prefix) :])[1:]

    def _literal(self, place: Conjunction, text: str) -> Iterator[tuple[Any, str]]:
        endings = ["", "0", ".0", *"123456789", "00", "000", "e0", "0.1", "0.01"]
        for word in ("true", "false", "null"):
            if word.startswith(text):
                yield json.loads(word), word[len(text) :]
        for plain in self._minimal.plain(place):
            fixed = alt.fixed_values(plain)
            near = islice(self._minimal.values((plain,), 1), _TRIES) if fixed is None else fixed
            written = [_json(value) for value in near if not isinstance(value, str)]
            more = [each[len(text) :] for each in written if each.startswith(text)]
            for ending in more if fixed is not None else [*endings, *more]:
                try:
                    value = json.loads(text + ending)
                except ValueError:
                    continue
                if self._minimal.fits(plain, value):
                    yield value, ending

    def _array(self, plain: Conjunction, seed: OpenArray) -> Iterator[tuple[list[Any], str]]:
        items = list(seed.items)
        begun: Iterator[tuple[list[Any], str]] = iter([(items, "")])
        if seed.child is not None:
            place = alt.element(plain, len(items))
            children = islice(self._grow(place, seed.child), CHOICES)
            begun = (([*items, value], more) for value, more in children)
        for have, more in begun:
            for made in islice(self._minimal.elements(plain, have, _NESTING), CHOICES):
                added = [_json(value) for value in made[len(have) :]]
                comma = ", " if have and added else ""
                yield made, more + comma + ", ".join(added) + "]"

    def _object(self, plain: Conjunction, seed: OpenObject) -> Iterator[tuple[Any, str]]:
        for have, more in self._begun(plain, seed):
            for extra in islice(self._minimal.members(plain, have, _NESTING), CHOICES):
                added = [f"{_json(name)}: {_json(value)}" for name, value in extra.items()]
                comma = ", " if have and added else ""
                yield {**have, **extra}, more + comma + ", ".join(added) + "}"

    def _begun(self, plain: Conjunction, seed: OpenObject) -> Iterator[tuple[dict[str, Any], str]]:
        """The members that are there once the open one is complete."""
        members = dict(seed.members)
        if seed.key is None:
            yield members, ""
            return
        if seed.quote in {QUOTED, COLON}:
            colon = "" if seed.quote == COLON else ": "
            place = alt.member(plain, seed.key)
            for value, more in islice(self._grow(place, seed.child), CHOICES):
                yield {**members, seed.key: value}, colon + more
            return
        for name in self._keys(plain, seed):
            quote = _json(name[len(seed.key) :])[1:] if seed.quote == BEGUN else _json(name)
            for value in self._minimal.first(alt.member(plain, name), _NESTING)[:CHOICES]:
                yield {**members, name: value}, f"{quote}: {_json(value)}"

    @staticmethod
    def _keys(plain: Conjunction, seed: OpenObject) -> Iterator[str]:
        """Keys that go on from the one that was begun."""
        prefix = seed.key or ""
        named = [*alt.required(plain, seed.members), *alt.declared(plain)]
        invented = [prefix, *(prefix + letter for letter in "ab0")] if seed.quote != DUE else []
        for name in dict.fromkeys((*named, *invented, *("" if prefix else "ab"))):
            if name.startswith(prefix) and name not in seed.members:
                yield name

    def _plausible(self, plain: Conjunction, members: Mapping[str, Any]) -> bool:
        """Whether the members that are there speak against an alternative; not looked at deeply."""
        for name, value in members.items():
            place = alt.member(plain, name)
            if any(each is False for each in place):
                return False
            shallow = tuple(each for each in place if isinstance(each, Mapping))
            if not self._minimal.fits(shallow, value):
                return False
        return True


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
