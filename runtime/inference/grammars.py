"""Grammars of llguidance: made of JSON Schemas, and compiled before an engine gets them.

An engine decodes freely, and says nothing, when it cannot compile a grammar. So the same library
compiles it here first, and what it cannot express is left out, and known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from runtime.errors import LLMInvalidRequestError
from runtime.inference.bounds import narrowed
from runtime.inference.subschemas import subschemas

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.inference.bounds import Bounds

# How llguidance lays out JSON: the whitespace of json.dumps and none besides, so that no tokens are
# spent on blank lines. The last two keys let it take schemas it cannot express to the full.
_LAYOUT: Final = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_LENIENT: Final = {**_LAYOUT, "lenient": True, "coerce_one_of": True}

HEAD: Final = "%llguidance {}\nstart: %json "
"""What stands before a rule to make it a grammar."""

ANY_OBJECT: Final = json.dumps({"type": "object", "x-guidance": _LAYOUT})
"""The rule for an object with nothing known of it."""

NEW_FORMATS: Final = frozenset({"uri"})
"""Formats that the package knows and the older llguidance within engines does not (derivre 0.3.8
in xllamacpp 2026.10, 0.3.13 in llguidance 1.9): there the whole grammar would be ignored."""

_MOST_CHARS: Final = 262_144
"""Longest rule that an engine is given: it compiles it for every request, and decodes nothing for
others meanwhile."""

_LEAVES: Final = ("pattern", "format", "multipleOf", "minimum", "maximum", "exclusiveMinimum",
                  "exclusiveMaximum", "minLength", "maxLength")  # fmt: skip


@lru_cache(maxsize=256)
def json_rule(text: str, bounds: Bounds | None) -> tuple[str | None, str | None]:
    """A schema as it stands after ``%json`` in a grammar, or None, and what that leaves out."""
    if len(text) > _MOST_CHARS:
        return None, f"Schemas of more than {_MOST_CHARS} characters are not made into grammars."
    given = json.loads(text)
    whole = implied(without(given, _is_new_format))
    problem = "Unknown format: uri" if whole != implied(given) else None
    # A bound may contradict what another part of the schema demands; then there is none.
    forms = [whole] if bounds is None else [narrowed(whole, bounds), whole]
    failure: str | None = None
    for form in forms:
        failure = failure_of(form)
        if failure is None:
            return _written(form, _LAYOUT), problem
    problem = problem or failure
    spared = [without(form, _is_bad_leaf) for form in forms]
    for form in (*forms, *spared):
        if not failure_of(form, lenient=True):
            return _written(form, _LENIENT), problem
    return None, problem


def plain_rule(document: Mapping[str, Any]) -> str:
    """The rule of a schema of which nothing can go wrong."""
    return _written(document, _LAYOUT)


def _written(document: Mapping[str, Any], options: Mapping[str, object]) -> str:
    return json.dumps({**document, "x-guidance": options}, ensure_ascii=False)


def failure_of(document: Mapping[str, Any], *, lenient: bool = False) -> str | None:
    """Why llguidance cannot compile a schema, in one line; None when it can."""
    return _failure(HEAD + _written(document, _LENIENT if lenient else _LAYOUT))


def _failure(grammar: str) -> str | None:
    from llguidance import LLMatcher  # noqa: PLC0415 - a compiled library, needed by few

    failure = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar))
    return None if not failure or failure.startswith("WARNING") else failure.partition("\n")[0]


def implied(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema with what it says indirectly said in a way that llguidance understands."""
    return _mapped(document, _with_implications)


def _with_implications(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    least = schema.get("minContains", 1)
    if "contains" in schema and isinstance(least, int) and least > schema.get("minItems", 0):
        return {**schema, "minItems": least}
    return schema


def without(
    document: Mapping[str, Any], wrong: Callable[[Mapping[str, Any], str], bool]
) -> Mapping[str, Any]:
    """A copy of a schema without the keywords, wherever they are, that ``wrong`` is true of."""
    return _mapped(
        document, lambda each: {name: v for name, v in each.items() if not wrong(each, name)}
    )


def _mapped(
    document: Mapping[str, Any], change: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """A copy with every schema in it changed."""
    changes = {
        id(each): changed for _, each in subschemas(document) if (changed := change(each)) != each
    }
    return _replaced(document, changes) if changes else document


def _replaced(value: Any, changes: Mapping[int, Mapping[str, Any]]) -> Any:
    if isinstance(value, list):
        return [_replaced(each, changes) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {k: _replaced(each, changes) for k, each in changes.get(id(value), value).items()}


def _is_new_format(schema: Mapping[str, Any], keyword: str) -> bool:
    return keyword == "format" and schema[keyword] in NEW_FORMATS


def _is_bad_leaf(schema: Mapping[str, Any], keyword: str) -> bool:
    return keyword in _LEAVES and leaf_fault(schema, keyword) is not None


def leaf_fault(schema: Mapping[str, Any], keyword: str) -> str | None:
    """Why llguidance does not take one keyword of a schema, looked at alone."""
    if keyword not in _LEAVES:
        return None
    if keyword == "format" and schema[keyword] in NEW_FORMATS:
        return "Unknown format to the llguidance of engines"
    part = {"type": schema["type"]} if isinstance(schema.get("type"), str) else {}
    return _leaf_failure(json.dumps({**part, keyword: schema[keyword]}))


@lru_cache(maxsize=1024)
def _leaf_failure(text: str) -> str | None:
    return failure_of(json.loads(text))


def is_lark(grammar: object) -> bool:
    """Whether a raw grammar is llguidance's, not GBNF."""
    return isinstance(grammar, str) and grammar.lstrip().startswith("%llguidance")


def check_grammar(grammar: object) -> None:
    """Refuse a raw grammar that an engine would not keep to.

    Raises:
        LLMInvalidRequestError: It is no text, or llguidance cannot compile it: the engine would
            then decode freely, and say nothing.
    """
    if not isinstance(grammar, str) or not grammar.strip():
        raise LLMInvalidRequestError(f"grammar is {grammar!r}.", hint="Give GBNF, or llguidance's.")
    if is_lark(grammar) and (failure := _failure(grammar)):
        raise LLMInvalidRequestError(f"The grammar cannot be compiled: {failure}")
