"""Cut-off JSON becomes the nearest valid JSON: whatever comes out validates."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import LLMInvalidRequestError
from runtime.inference import closing, schema
from runtime.inference.minimal import Budget, ExhaustedError, Minimal
from runtime.inference.partial import BrokenTextError, Nothing, Reader, Whole

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 18},
        "mood": {"enum": ["glad", "gloomy", "sad"]},
        "code": {"type": "string", "pattern": "^[A-Z]{3}-\\d{4}$"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        "friend": {"$ref": "#"},
    },
    "required": ["name", "mood"],
    "additionalProperties": False,
}


def closed(text: str, document: dict[str, Any], *, keep_all: bool = False) -> closing.Closed | None:
    return closing.close(text, schema.check(document), keep_all=keep_all)


@pytest.mark.parametrize(
    ("begun", "whole"),
    [
        ("", '{"name": "", "mood": "sad"}'),
        ("{", '{"name": "", "mood": "sad"}'),
        ('{"na', '{"name": "", "mood": "sad"}'),
        ('{"name"', '{"name": "", "mood": "sad"}'),
        ('{"name":', '{"name":"", "mood": "sad"}'),
        ('{"name": "Ann', '{"name": "Ann", "mood": "sad"}'),
        ('{"name": "Ann"', '{"name": "Ann", "mood": "sad"}'),
        ('{"name": "Ann", ', '{"name": "Ann", "mood": "sad"}'),
        ('{"name": "A\\', '{"name": "A", "mood": "sad"}'),
        ('{"name": "A\\u00', '{"name": "A", "mood": "sad"}'),
        ('{"name": "A\\ud83d', '{"name": "A", "mood": "sad"}'),
        ('{"name": "A\\ud83d", "mood": "gl', '{"name": "", "mood": "sad"}'),
        ('{"name": "A\\ud83d\\ude00', '{"name": "A\\ud83d\\ude00", "mood": "sad"}'),
        ('{"mood": "glo', '{"mood": "gloomy", "name": ""}'),
        ('{"age": 1', '{"age": 18, "name": "", "mood": "sad"}'),
        ('{"age": 2', '{"age": 20, "name": "", "mood": "sad"}'),
        ('{"code": "Q', '{"code": "QAA-0000", "name": "", "mood": "sad"}'),
        ('{"tags": ["x', '{"tags": ["x", ""], "name": "", "mood": "sad"}'),
        ('{"tags": ["x",', '{"tags": ["x",""], "name": "", "mood": "sad"}'),
        (
            '{"friend": {"name": "B", "mood": "sad"',
            '{"friend": {"name": "B", "mood": "sad"}, "name": "", "mood": "sad"}',
        ),
        ('{"name": "Ann", "mood": "sad"}', '{"name": "Ann", "mood": "sad"}'),
        # What fits nowhere is left out again.
        ('{"name": "Ann", "mood": "angr', '{"name": "Ann", "mood": "sad"}'),
        ('{"name": "Ann", "nick": "A', '{"name": "Ann", "mood": "sad"}'),
        ("Sure! Here is", '{"name": "", "mood": "sad"}'),
    ],
)
def test_what_was_begun_is_closed_with_the_least(begun: str, whole: str) -> None:
    made = closed(begun, PERSON)
    assert made is not None
    assert made.text == whole
    assert made.text[: made.start] == begun[: made.start]
    assert made.dropped == len(begun) - made.start
    assert made.note()["text"] == whole[made.start :]


def test_what_the_caller_has_already_is_not_taken_back() -> None:
    assert closed('{"name": "Ann", "mood": "angr', PERSON, keep_all=True) is None
    made = closed('{"name": "Ann", "mo', PERSON, keep_all=True)
    assert made is not None
    assert (made.text, made.dropped) == ('{"name": "Ann", "mood": "sad"}', 0)


@pytest.mark.parametrize(
    ("document", "begun", "whole"),
    [
        ({"type": "integer"}, "-", "-0"),
        ({"type": "number", "multipleOf": 0.5, "exclusiveMinimum": 1}, "", "2"),
        ({"type": "number", "minimum": 0.5, "maximum": 0.6}, "0", "0.5"),
        ({"type": "boolean"}, "tr", "true"),
        ({"const": {"a": [1]}}, "", '{"a": [1]}'),
        ({"type": "string", "format": "date-time"}, "", '"1970-01-01T00:00:00Z"'),
        ({"type": "string", "minLength": 3}, '"é', '"éaa"'),
        ({"type": "array", "uniqueItems": True, "minItems": 3}, "", "[null, false, true]"),
        ({"type": "array", "contains": {"const": 7}}, "[1", "[1, 7]"),
        ({"type": "object", "minProperties": 1}, "", '{"a": null}'),
        (
            {"type": "object", "required": ["a"], "dependentRequired": {"a": ["b"]}},
            "",
            '{"a": null, "b": null}',
        ),
        (
            {
                "oneOf": [
                    {"properties": {"kind": {"const": "x"}, "n": {"type": "integer"}},
                     "required": ["kind", "n"]},
                    {"properties": {"kind": {"const": "y"}, "s": {"type": "string"}},
                     "required": ["kind", "s"]},
                ],
                "type": "object",
            },
            '{"kind": "y", ',
            '{"kind": "y", "s": ""}',
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "boolean"}},
                "required": ["a"],
                "if": {"properties": {"a": {"const": True}}},
                "then": {"required": ["b"]},
            },
            '{"a": true',
            '{"a": true, "b": null}',
        ),
    ],
)  # fmt: skip
def test_keywords_are_satisfied(document: dict[str, Any], begun: str, whole: str) -> None:
    made = closed(begun, document)
    assert made is not None
    assert json.loads(made.text) == json.loads(whole)
    assert made.dropped == 0


def some(rule: dict[str, Any], value: Any = False) -> dict[str, Any]:
    """An object must have a member whose name keeps to ``rule``: by a double negation."""
    if value is False:
        return {"not": {"propertyNames": {"not": rule}}}
    return {"not": {"patternProperties": {rule["pattern"]: {"not": value}}}}


OBJECT: dict[str, Any] = {"type": "object"}


@pytest.mark.parametrize(
    "document",
    [
        {"type": "number", "allOf": [{"multipleOf": 33}, {"multipleOf": 26}, {"minimum": 1}]},
        {
            "oneOf": [{"multipleOf": 3}, {"multipleOf": 5}, {"multipleOf": 15}],
            "allOf": [{"oneOf": [{"not": {"multipleOf": 3}}, {"multipleOf": 8}]}],
            "type": "integer",
            "minimum": 1,
        },
        {**OBJECT, **some({"const": "zero"})},
        {**OBJECT, **some({"pattern": "a1"}, {"type": "string", "pattern": "^B$"})},
        {
            **OBJECT,
            "allOf": [some({"pattern": letter}) for letter in "abcd"],
            "propertyNames": {"pattern": "^..$"},
            "maxProperties": 2,
            "patternProperties": {"ab|ba": False},
        },
        {**OBJECT, "properties": {"a": {"const": 1}}, "not": {"additionalProperties": False}},
        {**OBJECT, "not": {"maxProperties": 2}},
        {**OBJECT, "required": ["a"], "not": {"properties": {"a": {"type": ["null", "boolean"]}}}},
        {**OBJECT, "not": {"anyOf": [{"minProperties": 3}, {"not": {"required": ["x", "y"]}}]}},
        {
            **OBJECT,
            "dependentSchemas": {"a": {"required": ["b", "c"]}, "c": {"required": ["d"]}},
            "dependentRequired": {"b": ["e"]},
            "required": ["a"],
        },
        {"type": "array", "not": {"items": {"type": "null"}}},
        {"type": "array", "minItems": 2, "not": {"contains": {"type": ["null", "boolean"]}}},
        {"type": "array", "not": {"prefixItems": [True, {"type": "null"}]}},
        {"type": "array", "allOf": [{"contains": {"const": 1}}, {"contains": {"const": 2}}]},
        {"not": {"type": ["null", "boolean", "number", "string"]}},
        {"not": {"enum": [None, False, True, 0]}},
        {"type": "number", "not": {"type": "integer"}},
        {"type": "integer", "not": {"maximum": 1000}},
        {"type": "string", "not": {"maxLength": 9}},
        {"if": {"type": "null"}, "then": False, "else": {"not": {"type": "boolean"}}},
        {"not": {"if": {"type": "null"}, "else": {"type": "boolean"}}},
        {"not": {"$ref": "#/$defs/short"}, "$defs": {"short": {"type": ["null", "boolean"]}}},
        {"type": "string", "allOf": [{"pattern": "A"}, {"pattern": "7"}, {"pattern": "^..$"}]},
        {"type": "string", "pattern": "^([a-z][0-9])+$", "minLength": 2001},
    ],
)  # fmt: skip
def test_what_is_forbidden_or_implied_is_heeded(document: dict[str, Any]) -> None:
    made = closed("", document)
    assert made is not None
    schema.judge(made.text, schema.check(document))


def test_what_is_added_is_bounded_by_the_context() -> None:
    assert closing.most_added(512) == 2048
    assert closing.most_added(None) == 32_768


@pytest.mark.parametrize(
    "document",
    [
        {"type": "string", "not": {"type": "string"}},
        {"type": "object", "not": {"type": "object"}},
        {"oneOf": [{"type": "null"}, {"const": None}], "type": "null"},
        {"type": "object", "required": ["a"], "properties": {"a": False}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"type": "null"}, {"type": "array"}]}}},
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {
                    "type": "object",
                    "required": ["b"],
                    "properties": {"b": {"$ref": "#/$defs/a"}},
                }
            },
        },
    ],
)
def test_a_schema_that_admits_nothing_has_no_completion(document: dict[str, Any]) -> None:
    assert closed("", document) is None


def test_the_search_ends_in_time() -> None:
    wide = {f"p{i}": {"anyOf": [{"$ref": "#"}] * 20} for i in range(20)}
    endless = {"type": "object", "properties": wide, "required": [*wide]}
    started = time.monotonic()
    assert closing.close('{"p0": {"p1":', schema.check(endless), seconds=0.3) is None
    assert time.monotonic() - started < 3
    with pytest.raises(ExhaustedError):
        list(Minimal(endless, Budget.of(60, steps=50)).candidates((endless,)))


def test_deep_nesting_is_survived() -> None:
    assert closed("[" * 100_000, {"type": "array"}) is None
    made = closed("[" * 100, {"type": "array"})
    assert made is not None
    assert made.text == "[" * 100 + "]" * 100


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(value=JSON, data=st.data(), ascii_only=st.booleans())
def test_every_beginning_of_json_can_be_closed_without_loss(
    value: object, data: st.DataObject, ascii_only: bool
) -> None:
    whole = json.dumps(value, ensure_ascii=ascii_only)
    begun = whole[: data.draw(st.integers(0, len(whole)))]
    made = closed(begun, {})
    assert made is not None
    assert made.text.startswith(begun[: made.start])
    assert made.dropped <= 12  # half an escape, or half a surrogate pair
    schema.judge(made.text, schema.check({}))


@settings(max_examples=150, deadline=None)
@given(value=JSON, extra=st.sampled_from(["", "x", "}", ",", '"']))
def test_the_reader_agrees_with_json(value: object, extra: str) -> None:
    whole = json.dumps(value) + extra
    try:
        expected: Any = json.loads(whole)
    except ValueError:
        expected = None
    try:
        seed = Reader(whole).seed
    except BrokenTextError:
        seed = Nothing()
    if isinstance(seed, Whole):
        assert seed.value == expected


TYPED = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
SCHEMAS = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "type": TYPED | st.lists(TYPED, min_size=1, max_size=3, unique=True),
            "minimum": st.integers(-5, 5),
            "maximum": st.integers(0, 9),
            "multipleOf": st.sampled_from([1, 2, 0.5, 3]),
            "minLength": st.integers(0, 5),
            "maxLength": st.integers(3, 9),
            "pattern": st.sampled_from(["^a", "\\d$", "^[A-Z]{2}\\d*$"]),
            "enum": st.lists(JSON, min_size=1, max_size=3),
            "uniqueItems": st.booleans(),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            "required": st.lists(st.sampled_from("abc"), max_size=3, unique=True),
            "additionalProperties": inner | st.booleans(),
            "items": inner,
            "minItems": st.integers(0, 3),
            "anyOf": st.lists(inner, min_size=1, max_size=3),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
        },
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(document=SCHEMAS, begun=JSON.map(json.dumps), cut=st.integers(0, 40))
def test_what_comes_out_is_always_valid(document: Any, begun: str, cut: int) -> None:
    try:
        checked = schema.check(document)
    except LLMInvalidRequestError:
        return
    started = time.monotonic()
    made = closing.close(begun[:cut], checked, seconds=0.5)
    assert time.monotonic() - started < 3
    if made is not None:
        schema.judge(made.text, checked)
