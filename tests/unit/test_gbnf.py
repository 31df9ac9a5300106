"""Our GBNF: it admits valid values, and of what it can express nothing else."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark

from runtime.errors import LLMInvalidRequestError
from runtime.inference import gbnf, schema
from runtime.inference.gbnf_text import UnsupportedPatternError, of_pattern

BYTES = LLTokenizer("byte")


@lru_cache(maxsize=64)
def compiled(text: str) -> str:
    return str(LLMatcher.grammar_from_lark(gbnf_to_lark(text)))


def matcher_of(document: dict[str, Any]) -> LLMatcher:
    converter = gbnf.Converter()
    root = converter.expression(document, document)
    return LLMatcher(BYTES, compiled(gbnf.grammar(root, converter.rules)))


def admits(document: dict[str, Any], value: object) -> bool:
    matcher = matcher_of(document)
    data = json.dumps(value, ensure_ascii=False).encode()
    return bool(matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting())


def sample(document: dict[str, Any], chance: random.Random) -> str:
    """A text that the grammar admits, made at random."""
    matcher = matcher_of(document)
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
    {
        "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"y": {"const": 2}}, "required": ["y"]}],
        "$defs": {"a": {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}},
    },
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: json.dumps(document)[:60])
def test_what_it_admits_is_valid(document: dict[str, Any]) -> None:
    checked = schema.check(document)
    chance = random.Random(1)
    for _ in range(5):
        schema.judge(sample(document, chance), checked)


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
        ({"not": {"type": "string"}}, [1]),
        ({"properties": {"a": {"const": 1}}, "required": ["a", "z"]}, {"a": 1, "z": "any"}),
        ({"type": "array", "maxItems": 100_000}, [1, "a", {}]),
        ({"type": "string", "maxLength": 100_000}, "x" * 900),
        ({"enum": list(range(20_000))}, 3),
    ],
)
def test_valid_values_are_admitted(document: dict[str, Any], value: object) -> None:
    assert admits(document, value)


@pytest.mark.parametrize(
    "pattern",
    ["(?=x)", "a^b", "a$b", "\\bx", "(a", "a{2", "a{9999}", "[", "\\", "^a|b$", "\\1", "*"],
)
def test_what_is_no_plain_pattern_is_said_to_be_none(pattern: str) -> None:
    with pytest.raises(UnsupportedPatternError):
        of_pattern(pattern)


@settings(max_examples=40)
@given(st.text(alphabet="abc.[](){}|^$*+?\\d09,-", max_size=8), st.randoms(use_true_random=False))
@example("[[]", random.Random(0))
@example("^(a|b)c{2,}?$", random.Random(0))
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
