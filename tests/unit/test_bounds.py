"""Bounds narrow what decoding admits, and never what is judged valid."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from runtime import Bounds
from runtime.contracts import LLMMessage, LLMRequest
from runtime.engines.base import EngineCapabilities
from runtime.errors import ConfigError, LLMInvalidRequestError
from runtime.inference import schema, wishes

LLGUIDANCE = EngineCapabilities(llguidance=True)
SMALL = Bounds(text_chars=5, items=2, members=1, digits=3, decimals=2)


def admits(document: dict[str, Any], text: str, bounds: Bounds | None = SMALL) -> bool:
    found = schema.enforcement(schema.check(document), LLGUIDANCE, bounds)
    grammar = LLMatcher.grammar_from_lark(str(found.fields["grammar"]))
    matcher = LLMatcher(LLTokenizer("byte"), grammar)
    data = text.encode()
    return bool(matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting())


TEXT: dict[str, Any] = {"type": "string"}


@pytest.mark.parametrize(
    ("document", "within", "beyond"),
    [
        (TEXT, '"aaaaa"', '"aaaaaa"'),
        ({"type": "string", "minLength": 6}, '"aaaaaa"', '"aaaaaaa"'),
        ({"type": "string", "pattern": "^a+$"}, '"aaaaa"', '"aaaaaa"'),
        ({"type": ["null", "string"]}, '"aaaaa"', '"aaaaaa"'),
        ({"type": "array", "items": {"type": "null"}}, "[null, null]", "[null, null, null]"),
        ({"type": "object", "additionalProperties": TEXT}, '{"a": "aaaaa"}', '{"a": "aaaaaa"}'),
        ({"type": "object"}, '{"a": 1}', '{"a": 1, "b": 2}'),
        ({"type": "integer"}, "-999", "1000"),
        ({"type": "number"}, "998.25", "0.125"),
        ({"type": "number"}, "0.25", "1000.5"),
        ({"properties": {"a": TEXT}, "type": "object"}, '{"a": "aaaaa"}', '{"a": "aaaaaa"}'),
        ({"$ref": "#/$defs/t", "$defs": {"t": TEXT}}, '"aaaaa"', '"aaaaaa"'),
    ],
)
def test_what_a_schema_leaves_open_is_bounded(
    document: dict[str, Any], within: str, beyond: str
) -> None:
    assert admits(document, within)
    assert not admits(document, beyond)
    assert admits(document, beyond, None)
    schema.judge(beyond, schema.check(document))


TREE: dict[str, Any] = {
    "type": "object",
    "properties": {"next": {"$ref": "#"}},
    "additionalProperties": False,
}
LISTS: dict[str, Any] = {
    "$ref": "#/$defs/list",
    "$defs": {
        "list": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        "item": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]},
    },
}


@pytest.mark.parametrize(
    ("document", "within", "beyond"),
    [
        (TREE, '{"next": {"next": {"next": {}}}}', '{"next": {"next": {"next": {"next": {}}}}}'),
        (LISTS, "[null, []]", "[[null]]"),
        ({}, '{"a": {"b": {"c": 1}}}', '{"a": {"b": {"c": {}}}}'),
        ({}, "[[[1]]]", "[[[[]]]]"),
        ({"type": "array"}, "[[[[1]]]]", "[[[[[]]]]]"),
        ({"type": "object"}, '{"a": [[[1]]]}', '{"a": [[[[[]]]]]}'),
        ({"type": "object", "required": ["a"]}, '{"a": "aaaaa"}', '{"a": "aaaaaa"}'),
        ({"description": "what you like"}, '"aaaaa"', '"aaaaaa"'),
        ({"items": {}}, "[1, 2]", "[1, 2, 3]"),
    ],
)
def test_nesting_is_bounded(document: dict[str, Any], within: str, beyond: str) -> None:
    bounds = Bounds(text_chars=5, items=2, depth=3)
    assert admits(document, within, bounds)
    assert not admits(document, beyond, bounds)
    assert admits(document, beyond, None)


def test_a_reference_that_must_be_followed_for_ever_is_no_bound_s_fault() -> None:
    endless = {**TREE, "required": ["next"]}
    found = schema.enforcement(schema.check(endless), LLGUIDANCE, SMALL)
    assert found.fields


def test_objects_can_be_kept_to_the_members_that_are_named() -> None:
    document = {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "object"}},
    }
    named = Bounds(named_only=True, members=1)
    assert admits(document, '{"a": null, "b": {"c": 1}}', named)
    assert not admits(document, '{"a": null, "c": 1}', named)
    assert not admits(document, '{"a": null, "b": {"c": 1, "c": 1}}', named)
    assert admits(document, '{"a": null, "c": 1, "c": 1}')


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"type": "string", "maxLength": 9}, '"aaaaaaaaa"'),
        ({"type": "integer", "minimum": 5000}, "5001"),
        ({"type": "array", "minItems": 3, "items": {"type": "null"}}, "[null, null, null]"),
        ({"enum": ["aaaaaaaaa"]}, '"aaaaaaaaa"'),
        ({"allOf": [TEXT, {"type": "string", "minLength": 7}]}, '"aaaaaaa"'),
    ],
)
def test_what_a_schema_bounds_or_demands_stays(document: dict[str, Any], text: str) -> None:
    assert admits(document, text)


def test_bounds_can_be_set_for_one_request() -> None:
    def made(bounds: object) -> Bounds:
        request = LLMRequest(
            messages=[LLMMessage(role="user", content="x")], provider_options={"bounds": bounds}
        )
        return wishes.from_request(request).policy.bounds

    assert made({"items": 3}) == Bounds(items=3)
    assert made(SMALL) is SMALL
    for wrong in ({"item": 3}, 3, {"items": 0}, {"items": True}):
        with pytest.raises(ConfigError, match="bounds"):
            made(wrong)


def big(size: int) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for n in range(size // 120):
        properties[f"member_{n}"] = {
            "type": "object",
            "properties": {"a": TEXT, "n": {"type": "integer", "minimum": n}},
            "required": ["a"],
        }
    return {"type": "object", "properties": properties, "required": [*properties][:5]}


def test_a_schema_is_compiled_once() -> None:
    document = big(20_000)
    schema.enforcement(schema.check(document), LLGUIDANCE, Bounds())
    started = time.perf_counter()
    for _ in range(20):
        schema.enforcement(schema.check(document), LLGUIDANCE, Bounds())
    assert (time.perf_counter() - started) / 20 < 0.005


def deep(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        made = {"type": "object", "properties": {"a": made}, "required": ["a"]}
    return made


@pytest.mark.parametrize(
    "document",
    [{"enum": [f"value {n}" for n in range(10_000)]}, deep(60), big(1_000_000)],
    ids=["wide", "deep", "big"],
)
def test_large_schemas_take_bounded_time(document: dict[str, Any]) -> None:
    started = time.perf_counter()
    checked = schema.check(document)
    assert schema.enforcement(checked, LLGUIDANCE, Bounds()).kind == "llguidance"
    own = schema.enforcement(checked, EngineCapabilities(json_schema=True))
    assert len(json.dumps(own.fields)) < 100_000
    assert time.perf_counter() - started < 20


def test_a_schema_too_deep_to_judge_is_refused() -> None:
    with pytest.raises(LLMInvalidRequestError, match="nested more than 512 deep"):
        schema.check(deep(300))
    given = {**deep(200), "$defs": {"x": {"$id": "https://example.com/x"}}}
    with pytest.raises(LLMInvalidRequestError, match="Recursion limit"):
        schema.check(given)


def test_what_no_grammar_expresses_is_still_json() -> None:
    """Never unconstrained: the nearest grammar is JSON of the right type."""
    document = {"type": "string", "pattern": "^([a-z][0-9])+$", "minLength": 10_000}
    found = schema.enforcement(schema.check(document), LLGUIDANCE, Bounds())
    assert found.kind == "llguidance"
    assert found.validated_only
    assert '"type": "string"' in str(found.fields["grammar"])
