"""Our GBNF: it admits valid values, and of what it can express nothing else."""

from __future__ import annotations

import json
import random
import re
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark

from runtime.errors import LLMInvalidRequestError
from runtime.inference import gbnf, schema
from runtime.inference.bounds import Bounds
from runtime.inference.gbnf_text import UnsupportedPatternError, of_pattern

BYTES = LLTokenizer("byte")
SMALL = Bounds(text_chars=5, items=2, members=1, digits=3, decimals=2, depth=2)


@lru_cache(maxsize=64)
def compiled(text: str) -> str:
    return str(LLMatcher.grammar_from_lark(gbnf_to_lark(text)))


def matcher_of(document: dict[str, Any], bounds: Bounds | None = None) -> LLMatcher:
    text = gbnf.of_schema(json.dumps(document), bounds)
    assert text
    return LLMatcher(BYTES, compiled(text))


def admits(document: dict[str, Any], value: object, bounds: Bounds | None = None) -> bool:
    matcher = matcher_of(document, bounds)
    data = json.dumps(value, ensure_ascii=False).encode()
    return bool(matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting())


def sample(document: dict[str, Any], chance: random.Random, bounds: Bounds | None = None) -> str:
    """A text that the grammar admits, made at random."""
    matcher = matcher_of(document, bounds)
    text = bytearray()
    while not (matcher.is_accepting() and (chance.random() < 0.4 or matcher.is_stopped())):
        if matcher.is_stopped() or len(text) > 3000:
            break
        mask = matcher.compute_bitmask()
        may = [each for each in range(32, 127) if mask[each // 8] >> (each % 8) & 1]
        ends = [each for each in may if chr(each) in '"}],']
        byte = chance.choice(ends if ends and chance.random() < 0.5 else may)
        assert matcher.consume_token(byte)
        text.append(byte)
    assert matcher.is_accepting(), text
    return text.decode()


DOCUMENTS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": -12, "maximum": 1234},
    {"type": "integer", "exclusiveMinimum": 7, "exclusiveMaximum": 9},
    {"type": "integer", "minimum": 98},
    {"type": "integer", "maximum": -3},
    {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 15},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "minimum": 0.5, "maximum": 0.6},
    {"type": "number", "minimum": -3.5, "maximum": 12.25},
    {"type": "number", "exclusiveMinimum": 0},
    {"type": "number", "exclusiveMaximum": 100, "minimum": 99},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": "string", "pattern": r"^[A-Z]{3}-\d{4}$"},
    {"type": "string", "pattern": r"^(foo|ba[rz]+)(\.\w{2,3})?$"},
    {"type": "string", "pattern": r"[^a-y\s-]+$"},
    {"type": "string", "pattern": r"^[\w.\-^\]]+$"},
    *({"type": "string", "format": name} for name in sorted(gbnf.FORMATS)),
    {"enum": ["a b", 3, None, {"x": [1]}]},
    {"const": 'say "hi"\\\n'},
    {"type": ["boolean", "null"]},
    {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 3}, {"const": "x"}]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 0},
    {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "minItems": 2, "items": False},
    {"type": "object", "properties": {}, "additionalProperties": False},
    {
        "type": "object",
        "properties": {"b": {"const": 1}, "a": {"type": "boolean"}, "c/d": {"type": "null"}},
        "required": ["a"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"p": {"const": 1}, "q": {"const": 2}, "r": {"const": 3}},
        "additionalProperties": False,
    },
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "n": {"type": "integer", "minimum": 0, "maximum": 9},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["n", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    {"type": "array", "items": {"$ref": "#/$defs/b%20c"}, "$defs": {"b c": {"const": 1}}},
    {
        "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"y": {"const": 2}}, "required": ["y"]}],
        "$defs": {"a": {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}},
    },
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: json.dumps(document)[:60])
def test_what_it_admits_is_valid(document: dict[str, Any]) -> None:
    checked = schema.check(document)
    chance = random.Random(1)
    for bounds in (None, None, None, Bounds(), SMALL):
        schema.judge(sample(document, chance, bounds), checked)


@settings(deadline=None)
@given(low=st.integers(-3000, 3000), width=st.integers(0, 3000), value=st.integers(-7000, 7000))
def test_integers_within_bounds_and_no_others(low: int, width: int, value: int) -> None:
    document = {"type": "integer", "minimum": low, "maximum": low + width}
    assert admits(document, value) is (low <= value <= low + width)
    assert admits(document, low)
    assert admits(document, low + width)


@pytest.mark.parametrize(
    ("document", "value"),
    [
        ({"type": "number", "minimum": 0, "maximum": 1}, 0.25),
        ({"type": "number", "minimum": -3.5, "maximum": 12.25}, -2.75),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"anyOf": [{"$ref": "#"}, {"const": 1}]}, 1),
        ({"allOf": [{"$ref": "#"}]}, 1),
        (
            {
                "$ref": "#/$defs/a",
                "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
            },
            1,
        ),
        ({"type": "object", "properties": {"a": {}, "b": {}, "c": {}}}, {"b": 1, "c": []}),
        ({"type": "object", "additionalProperties": {"type": "null"}}, {"é": None, "y": None}),
        ({"type": "string"}, 'é"\\\n\u2028 💡'),
        ({"type": "string", "pattern": "b"}, "abc"),
        ({"type": "string", "pattern": "(?=x)x"}, "x"),  # widened to any string
        ({"$ref": "#"}, 3),
        ({"$ref": "#/nowhere"}, {"a": [True, None, -1.5]}),
        (
            {"items": {"$ref": "#t"}, "$defs": {"t": {"$anchor": "t", "const": 1}}},
            [1],
        ),
        (
            {
                "items": {
                    "$id": "https://e.org/",
                    "items": {"$ref": "#/$defs/t"},
                    "$defs": {"t": {"const": 1}},
                },
                "$defs": {"t": {"const": 2}},
            },
            [[1]],
        ),
        ({"not": {"type": "string"}}, [1]),
        ({"properties": {"a": {"const": 1}}, "required": ["a", "z"]}, {"a": 1, "z": "any"}),
        ({"type": "array", "maxItems": 100_000}, [1, "a", {}]),
        ({"type": "string", "maxLength": 100_000}, "x" * 900),
        ({"enum": list(range(2_000))}, 3),
    ],
)
def test_valid_values_are_admitted(document: dict[str, Any], value: object) -> None:
    assert admits(document, value)


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=x)",
        "a^b",
        "a$b",
        "\\bx",
        "(a",
        "a{2",
        "a{9999}",
        "[",
        "[]]",
        "[^]a]",
        "\\",
        "^a|b$",
        "\\1",
        "*",
    ],
)
def test_what_is_no_plain_pattern_is_said_to_be_none(pattern: str) -> None:
    with pytest.raises(UnsupportedPatternError):
        of_pattern(pattern)


@settings(max_examples=40)
@given(st.text(alphabet="abc.[](){}|^$*+?\\d09,-", max_size=8), st.randoms(use_true_random=False))
@example("[[]", random.Random(0))
@example("^(a|b)c{2,}?$", random.Random(0))
@example("0{0}", random.Random(0))
@example("^a(b|c){0,0}$", random.Random(0))
def test_any_pattern_becomes_a_grammar_of_its_texts_or_none(
    pattern: str, chance: random.Random
) -> None:
    document = {"type": "string", "pattern": pattern}
    try:
        checked = schema.check(document)
        of_pattern(pattern)
    except (LLMInvalidRequestError, UnsupportedPatternError):
        return
    schema.judge(sample(document, chance), checked)


def test_no_rule_begins_with_itself_and_no_depth_is_too_much() -> None:
    """Engines refuse the former, and the process has but one stack."""
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    assert admits(deep, [])
    looped = {"anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}}]}
    assert admits(looped, [[], [[]]])


NUL: dict[str, Any] = {"type": "null"}
TREE: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#"}}}


@pytest.mark.parametrize(
    ("document", "within", "beyond"),
    [
        ({"type": "string"}, "aaaaa", "aaaaaa"),
        ({"type": "string", "minLength": 6}, "aaaaaa", "aaaaaaa"),
        ({"type": "string", "pattern": "^a+$"}, "aaaaa", "aaaaaa"),
        ({"type": "string", "pattern": "b"}, "aaaaab", "aaaaaab"),
        ({"type": ["null", "string"]}, "aaaaa", "aaaaaa"),
        ({"type": "array", "items": NUL}, [None] * 2, [None] * 3),
        ({"type": "array", "items": NUL, "minItems": 3}, [None] * 3, [None] * 4),
        (
            {"type": "array", "prefixItems": [NUL], "items": {"const": 1}, "minItems": 3},
            [None, 1, 1],
            [None, 1, 1, 1],
        ),
        ({"type": "object", "additionalProperties": NUL}, {"a": None}, {"a": None, "b": None}),
        ({"type": "object"}, {"a": 1}, {"a": 1, "b": 2}),
        ({"type": "integer"}, -999, 1000),
        ({"type": "number"}, 998.25, 0.125),
        ({"$ref": "#/$defs/t", "$defs": {"t": {"type": "string"}}}, "aaaaa", "aaaaaa"),
        (TREE, {"next": {"next": {}}}, {"next": {"next": {"next": {}}}}),
        ({"type": "array", "items": {"$ref": "#"}}, [[[]]], [[[[]]]]),
        ({}, [[1]], [[[]]]),
        ({"properties": {"a": {}}, "required": ["a"]}, {"a": [[1]]}, {"a": [[[]]]}),
    ],
)
def test_what_a_schema_leaves_open_is_bounded(
    document: dict[str, Any], within: object, beyond: object
) -> None:
    assert admits(document, within, SMALL)
    assert not admits(document, beyond, SMALL)
    assert admits(document, beyond)
    schema.judge(json.dumps(beyond), schema.check(document))


@pytest.mark.parametrize(
    ("document", "value"),
    [
        ({"type": "string", "maxLength": 9}, "aaaaaaaaa"),
        ({"type": "string", "minLength": 3000}, "a" * 3000),
        ({"type": "string", "pattern": "^a+$", "minLength": 300}, "a" * 300),
        ({"type": "string", "pattern": "^a{9,}$"}, "a" * 9),
        ({"type": "integer", "minimum": 5000}, 5001),
        ({"type": "array", "minItems": 3, "items": NUL}, [None] * 3),
        ({"type": "object", "minProperties": 2}, {"a": 1, "b": 2}),
        ({"enum": ["aaaaaaaaa"]}, "aaaaaaaaa"),
        ({"allOf": [{"type": "string"}, {"type": "string", "minLength": 7}]}, "aaaaaaa"),
    ],
)
def test_what_a_schema_bounds_or_demands_stays(document: dict[str, Any], value: object) -> None:
    assert admits(document, value, SMALL)


@pytest.mark.parametrize("most", [0, 1, 63, 64, 65, 128, 130, 1000, 4096])
def test_characters_are_counted_to_the_last(most: int) -> None:
    """Long counts are made of blocks: engines refuse more than 2,000 repetitions."""
    for document, bounds in (
        ({"type": "string", "maxLength": most}, None),
        ({"type": "string"}, Bounds(text_chars=max(1, most))),
    ):
        longest = max(1, most) if bounds else most
        for length in {0, longest // 2, longest}:
            assert admits(document, "x" * length, bounds)
        assert not admits(document, "x" * (longest + 1), bounds)
    exact = {"type": "string", "minLength": most, "maxLength": most + 1}
    assert [admits(exact, "x" * n) for n in range(max(0, most - 1), most + 3)][-3:] == [
        True, True, False,
    ]  # fmt: skip
    assert not most or not admits(exact, "x" * (most - 1))


def test_repetitions_stay_below_what_engines_refuse() -> None:
    assert of_pattern("^(a+b+)*$", 128)
    with pytest.raises(UnsupportedPatternError):
        of_pattern("^(a{100}b){100}$")
    text = gbnf.of_schema('{"type": "string", "minLength": 31000}', Bounds())
    assert text
    assert max(int(n) for n in re.findall(r"(\d+)\}", text)) <= 2000


def test_rules_that_nothing_leads_to_are_left_out() -> None:
    assert gbnf.of_schema('{"type": "boolean"}', Bounds()) == 'root ::= ("true" | "false")'
