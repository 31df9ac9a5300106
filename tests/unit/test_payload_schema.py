"""Schemas: checked before, turned into grammars, and judged by afterwards."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.contracts import LLMMessage, LLMRequest, ToolCall, ToolSpec
from runtime.engines.base import Endpoint, EngineCapabilities
from runtime.errors import (
    LLMBadResponseError,
    LLMInvalidRequestError,
    SchemaViolationError,
    UnenforceableSchemaError,
)
from runtime.inference import closing, follow_ups, payload, schema, strictness, tools, wishes
from runtime.inference.bounds import Bounds
from tests.fakes.openai_server import FakeServer

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z]"},
        "mail": {"type": "string", "format": "email"},
        "a/b~c": {"type": "array", "items": {"minimum": 3}},
    },
    "required": ["name"],
    "additionalProperties": False,
}
LLGUIDANCE = EngineCapabilities(llguidance=True, json_schema=True)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (True, "response_schema is bool"),
        ([], "response_schema is list"),
        ("{}", "response_schema is str"),
        ({"type": "thing"}, r"at /type\)"),
        ({"properties": {"a": {"minimum": "3"}}}, r"at /properties/a/minimum\)"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"$ref": "#/$defs/nope"}, "not a valid JSON Schema"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "not a valid JSON Schema"),
        ({"$schema": "urn:unknown"}, "not a valid JSON Schema"),
        ({"const": object()}, "is not JSON"),
        ({"const": float("nan")}, "is not JSON"),
    ],
)
def test_an_invalid_schema_is_refused_with_the_place(document: Any, said: str) -> None:
    with pytest.raises(LLMInvalidRequestError, match=said):
        schema.check(document)


def test_nothing_is_fetched_for_a_schema() -> None:
    with FakeServer() as server:
        with pytest.raises(LLMInvalidRequestError, match="not a valid JSON Schema"):
            schema.check({"$ref": f"{server.url}/v1/models"})
        assert server.requests == []


def test_a_schema_too_deep_to_write_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"not": deep}
    with pytest.raises(LLMInvalidRequestError, match="nested more than 512 deep"):
        schema.check(deep)


@pytest.mark.parametrize("keyword", ["properties", "items", "not", "anyOf"])
def test_a_schema_of_200_levels_is_checked_and_enforced(keyword: str) -> None:
    """jsonschema-rs reads 255 containers within one another, serde_json 128."""
    deep: dict[str, Any] = {"type": "integer"}
    good, bad = "1", '"x"'
    for _ in range(200):
        match keyword:
            case "properties":
                deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
                good, bad = f'{{"a": {good}}}', f'{{"a": {bad}}}'
            case "items":
                deep = {"type": "array", "items": deep}
                good, bad = f"[{good}]", f"[{bad}]"
            case "not":
                deep = {"not": deep}
            case _:
                deep = {"anyOf": [deep, {"const": 1}]}
    checked = schema.check(deep)
    schema.judge(good, checked)
    with pytest.raises(SchemaViolationError):
        schema.judge(bad, checked)
    found = schema.enforcement(checked, LLGUIDANCE, Bounds())
    assert (found.validated_only is None) == (keyword != "not")


def test_what_a_deep_schema_refers_to_is_still_found() -> None:
    deep: dict[str, Any] = {"$ref": "#/$defs/n"}
    for _ in range(150):
        deep = {"properties": {"a": deep}}
    text = '{"a": ' * 150 + "%s" + "}" * 150
    checked = schema.check({**deep, "$defs": {"n": {"type": "integer"}}})
    schema.judge(text % "1", checked)
    with pytest.raises(SchemaViolationError):
        schema.judge(text % "null", checked)


def test_references_without_end_are_refused() -> None:
    """A chain of 3,000 overflows the stack of the compilers, and ends the process."""

    def chain(length: int) -> dict[str, Any]:
        steps: dict[str, Any] = {f"r{n}": {"$ref": f"#/$defs/r{n + 1}"} for n in range(length)}
        return {"$ref": "#/$defs/r0", "$defs": {**steps, f"r{length}": {"type": "integer"}}}

    schema.judge("1", schema.check(chain(200)))
    with pytest.raises(LLMInvalidRequestError, match="more than 256 references"):
        schema.check(chain(5000))


@pytest.mark.parametrize(
    "draft",
    ["", "http://json-schema.org/draft-07/schema#", "http://json-schema.org/draft-04/schema#"],
)
def test_schemas_that_are_given_are_referred_to(draft: str) -> None:
    place = "definitions" if draft else "$defs"
    document: dict[str, Any] = {
        "type": "object",
        "properties": {
            "a": {"$ref": "https://example.com/kind.json"},
            "b": {"$ref": f"https://example.com/kind.json#/{place}/n"},
        },
        "required": ["a", "b"],
    }
    if draft:
        document["$schema"] = draft
    with pytest.raises(LLMInvalidRequestError, match="not a valid JSON Schema") as caught:
        schema.check(document)
    assert '"schemas"' in str(caught.value.hint)
    kind = {"enum": ["x", "y"], place: {"n": {"type": "integer", "minimum": 3}}}
    request = LLMRequest(
        messages=[LLMMessage(role="user", content="x")],
        response_schema=document,
        provider_options={"schemas": {"https://example.com/kind.json": kind}},
    )
    wish = wishes.from_request(request)
    assert wish.schema is not None
    assert "schemas" not in wish.options
    assert schema.judge('{"a": "x", "b": 3}', wish.schema)
    for wrong in ('{"a": "z", "b": 3}', '{"a": "x", "b": 2}'):
        with pytest.raises(SchemaViolationError):
            schema.judge(wrong, wish.schema)
    found = schema.enforcement(wish.schema, LLGUIDANCE, Bounds())
    assert found.validated_only is None
    made = closing.close("", wish.schema)
    assert made is not None
    assert json.loads(made.text) == {"a": "x", "b": 3}


@pytest.mark.parametrize("wrong", [3, {"kind.json": {}}, {3: {}}, {"http://x/y#z": {}}, {"u:a": 1}])
def test_schemas_that_cannot_be_referred_to_are_refused(wrong: Any) -> None:
    request = LLMRequest(
        messages=[LLMMessage(role="user", content="x")],
        response_schema={"type": "object"},
        provider_options={"schemas": wrong},
    )
    with pytest.raises(LLMInvalidRequestError, match="schemas"):
        wishes.from_request(request)


def test_a_schema_is_compiled_once() -> None:
    assert schema.check(dict(PERSON)).validator is schema.check(dict(PERSON)).validator


def test_drafts_are_told_apart() -> None:
    """In draft 7 an array of ``items`` is a tuple; in 2020-12 it is no schema at all."""
    listed = {"items": [{"type": "integer"}]}
    old = schema.check({"$schema": "http://json-schema.org/draft-07/schema#", **listed})
    assert schema.judge("[1]", old) == [1]
    with pytest.raises(SchemaViolationError):
        schema.judge('["x"]', old)
    with pytest.raises(LLMInvalidRequestError):
        schema.check(listed)


@pytest.mark.parametrize(
    ("text", "at", "reason"),
    [
        ("", "", "Expecting value"),
        ("no", "", "Expecting value"),
        ('{"name": "Ann"', "", "delimiter"),
        ('{"name": "Ann"} x', "", "Extra data"),
        ('{"name": "Ann", "name": "Bob"}', "", "'name' occurs twice"),
        ("NaN", "", "NaN is not JSON"),
        ("[" * 100_000, "", "recursion"),
        ('{"name": "A\\ud800"}', "", "surrogates"),
        ('{"name": "A", "\\uDFFF": 1}', "", "surrogates"),
        ("3", "", "not of type"),
        ("{}", "", "required"),
        ('{"name": "ann"}', "/name", "does not match"),
        ('{"name": "A", "mail": "x"}', "/mail", "email"),
        ('{"name": "A", "a/b~c": [3, 1]}', "/a~1b~0c/1", "minimum"),
        ('{"name": "A", "x": 1}', "", "Additional"),
    ],
)
def test_a_violation_names_the_place_and_the_reason(text: str, at: str, reason: str) -> None:
    with pytest.raises(SchemaViolationError) as caught:
        schema.judge(text, schema.check(PERSON))
    assert caught.value.pointer == at
    assert reason in caught.value.reason
    assert caught.value.partial_text == text
    assert isinstance(caught.value, LLMBadResponseError)


def test_a_valid_answer_is_its_value() -> None:
    text = ' {"name": "Ann", "a/b~c": [3]}\n'
    assert schema.judge(text, schema.check(PERSON)) == {"name": "Ann", "a/b~c": [3]}


@pytest.mark.parametrize(
    ("text", "whole"),
    [("12", False), ("-1.5 ", False), ("1e5", False), ('"a1"', True), ("{}", True), ("true", True)],
)
def test_only_a_number_might_have_gone_on(text: str, whole: bool) -> None:
    assert schema.ends_by_itself(text) is whole


def test_llguidance_takes_the_callers_schema_with_compact_whitespace() -> None:
    found = schema.enforcement(schema.check(PERSON), LLGUIDANCE)
    assert found.kind == "llguidance"
    head, _, document = str(found.fields["grammar"]).partition("start: %json ")
    assert head == "%llguidance {}\n"
    options = json.loads(document)["x-guidance"]
    assert options == {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
    assert {**json.loads(document), "x-guidance": None} == {**PERSON, "x-guidance": None}
    assert found.instruction is None


@pytest.mark.parametrize("extra", [{"not": {"const": 3}}, {"contains": {}}, {"uniqueItems": True}])
def test_what_llguidance_cannot_compile_is_decoded_leniently_and_said(
    extra: dict[str, Any],
) -> None:
    """The engine would decode freely, and say nothing."""
    found = schema.enforcement(schema.check({"type": "array", **extra}), LLGUIDANCE)
    assert found.kind == "llguidance"
    assert '"lenient": true' in str(found.fields["grammar"])
    assert next(iter(extra)) in str(found.validated_only)


def test_a_grammar_that_compiles_as_it_is_leaves_nothing_to_validation() -> None:
    exact = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}}
    assert schema.enforcement(schema.check(exact), LLGUIDANCE).validated_only is None


def test_without_llguidance_the_engines_own_converter_is_asked() -> None:
    for known in (True, None):
        capabilities = EngineCapabilities(json_schema=known)
        found = schema.enforcement(schema.check(PERSON), capabilities)
        assert found.kind == "json_schema"
        assert found.fields["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": PERSON, "strict": True},
        }
        assert found.validated_only


@pytest.mark.parametrize(
    ("inner", "place"),
    [
        ({"not": {"const": 3}}, "'not' at /properties/a~1b/not"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems' at /properties/a~1b/uniqueItems"),
        ({"oneOf": [{"type": "string"}, {"minLength": 3}]}, "'oneOf' at /properties/a~1b/oneOf"),
        ({"type": "string", "format": "byte"}, "'format' at /properties/a~1b/format"),
    ],
)
def test_strict_refuses_what_cannot_be_enforced_and_names_it(
    inner: dict[str, Any], place: str
) -> None:
    document = {"type": "object", "properties": {"x": {"type": "integer"}, "a/b": inner}}
    checked = schema.check(document)
    with pytest.raises(LLMInvalidRequestError, match=place):
        strictness.demand(checked, schema.enforcement(checked, LLGUIDANCE))


def test_strict_names_every_complaint() -> None:
    parts: dict[str, Any] = {
        "a": {"type": "string", "format": "byte", "not": {"const": "x"}},
        "b": {"type": "string", "format": "uri"},
        "c": {"type": "string", "pattern": "(?=a)a"},
        "d": {"type": "array", "items": {"not": {"type": "null"}}, "uniqueItems": True},
        "e": {"oneOf": [{"type": "string"}, {"minLength": 3}]},
        "f": {"type": "integer", "minimum": 3},
    }
    checked = schema.check({"type": "object", "properties": parts})
    with pytest.raises(UnenforceableSchemaError) as caught:
        strictness.demand(checked, schema.enforcement(checked, LLGUIDANCE))
    assert caught.value.places == (
        ("/properties/a/format", "format"),
        ("/properties/a/not", "not"),
        ("/properties/b/format", "format"),
        ("/properties/c/pattern", "pattern"),
        ("/properties/d/uniqueItems", "uniqueItems"),
        ("/properties/d/items/not", "not"),
        ("/properties/e/oneOf", "oneOf"),
    )
    for place, keyword in caught.value.places:
        assert f"{keyword!r} at {place}" in caught.value.message
    many = schema.check({"anyOf": [{"not": {"const": n}} for n in range(50)]})
    with pytest.raises(UnenforceableSchemaError, match="and 30 more") as caught:
        strictness.demand(many, schema.enforcement(many, LLGUIDANCE))
    assert len(caught.value.places) == 50


def test_formats_that_engines_may_not_know_are_left_to_validation() -> None:
    """The llguidance in xllamacpp is older than the package: it ignores the whole grammar."""
    document = {"type": "object", "properties": {"at": {"type": "string", "format": "uri"}}}
    found = schema.enforcement(schema.check(document), LLGUIDANCE)
    assert '"uri"' not in str(found.fields["grammar"])
    assert "uri" in str(found.validated_only)
    named = {"type": "object", "properties": {"format": {"const": "uri"}}}
    exact = schema.enforcement(schema.check(named), LLGUIDANCE)
    assert exact.validated_only is None


def test_what_contains_implies_is_enforced() -> None:
    document = {"type": "array", "contains": {"const": 1}, "minContains": 2}
    assert '"minItems": 2' in str(schema.enforcement(schema.check(document), LLGUIDANCE).fields)


def test_a_pattern_that_cannot_be_compiled_costs_no_other_constraint() -> None:
    document = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "(?=a)a"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    found = schema.enforcement(schema.check(document), LLGUIDANCE)
    assert '"integer"' in str(found.fields["grammar"])
    assert found.validated_only


def test_strict_takes_what_is_enforced() -> None:
    exact = schema.check({"type": "object", "properties": {"a": {"minimum": 3}}})
    strictness.demand(exact, schema.enforcement(exact, LLGUIDANCE))
    own = EngineCapabilities(json_schema=True)
    with pytest.raises(LLMInvalidRequestError, match="'minimum' at /properties/a/minimum"):
        strictness.demand(exact, schema.enforcement(exact, own))
    none = EngineCapabilities(json_schema=False)
    with pytest.raises(LLMInvalidRequestError, match="everything at its root"):
        strictness.demand(exact, schema.enforcement(exact, none))


def test_strictness_is_the_requests_own_wish() -> None:
    request = LLMRequest(
        messages=[LLMMessage(role="user", content="x")],
        response_schema={"not": {"type": "string"}},
        provider_options={"enforcement": "strict"},
    )
    endpoint = Endpoint(
        base_url="", api_key=None, kind="xllamacpp", model="m", capabilities=LLGUIDANCE,
        context_tokens=64,
    )  # fmt: skip
    with pytest.raises(LLMInvalidRequestError, match="'not' at /not"):
        payload.body(wishes.from_request(request), endpoint, seed=1, stream=True)
    with pytest.raises(LLMInvalidRequestError, match="enforcement is 'most'"):
        wishes.from_request(
            LLMRequest(messages=request.messages, provider_options={"enforcement": "most"})
        )


def test_where_nothing_is_enforced_the_model_is_told() -> None:
    capabilities = EngineCapabilities(json_schema=False)
    found = schema.enforcement(schema.check(PERSON), capabilities)
    assert found.kind == "prompt"
    assert not found.fields
    assert json.dumps(PERSON) in str(found.instruction)

    at = Endpoint(
        base_url="", api_key=None, kind="openai", model="m", capabilities=capabilities,
        context_tokens=None,
    )  # fmt: skip
    told = wishes.from_request(
        LLMRequest(messages=[LLMMessage(role="system", content="be brief")], response_schema=PERSON)
    )
    body, _ = payload.body(told, at, seed=1, stream=False)
    assert str(body["messages"]).startswith(
        "[{'role': 'system', 'content': 'be brief\\n\\nAnswer with one JSON value"
    )


@pytest.mark.parametrize(
    "document",
    [PERSON, {"type": "string", "pattern": "^a$"}, {"type": "object", "properties": {"x": True}}],
)
def test_where_there_is_only_gbnf_it_is_made_here(document: dict[str, Any]) -> None:
    """Engines' own converters leave things out; llama-cpp-python dies of some schemas."""
    capabilities = EngineCapabilities(json_schema=True, grammar=True)
    found = schema.enforcement(schema.check(document), capabilities, Bounds())
    assert found.kind == "gbnf"
    assert found.fields.keys() == {"grammar"}
    assert str(found.fields["grammar"]).startswith("root ::= ")
    assert found.validated_only


def test_what_is_too_large_for_gbnf_is_enforced_in_outline() -> None:
    properties = {f"member-{n}": {"type": "string", "maxLength": n} for n in range(6000)}
    large = schema.check({"type": "object", "properties": properties})
    found = schema.enforcement(large, EngineCapabilities(grammar=True), Bounds())
    outline = schema.enforcement(
        schema.check({"type": "object"}), EngineCapabilities(grammar=True), Bounds()
    )
    assert found.fields == outline.fields
    assert "member-0" not in str(found.fields)


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object"},
        {"type": "json_object", "schema": {"type": "object"}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    ],
)
def test_response_formats_of_openai_are_schemas(form: dict[str, object]) -> None:
    """The engine itself ignores json_object."""
    made = wishes.from_request(
        LLMRequest(messages=[LLMMessage(role="user", content="x")], response_format=form)
    )
    assert made.schema is not None
    assert made.schema.document == {"type": "object"}
    in_options = wishes.from_request(
        LLMRequest(
            messages=[LLMMessage(role="user", content="x")],
            provider_options={"response_format": form},
        )
    )
    assert in_options.schema == made.schema


def test_a_text_format_is_no_schema() -> None:
    request = LLMRequest(
        messages=[LLMMessage(role="user", content="x")], response_format={"type": "text"}
    )
    assert wishes.from_request(request).schema is None


ADD = ToolSpec(
    name="add",
    description="",
    input_schema={
        "type": "object",
        "properties": {"x": {"type": "integer"}},
        "required": ["x"],
    },
    output_schema={},
)


def call(name: str = "add", arguments: str = '{"x": 1}') -> ToolCall:
    return ToolCall(name=name, arguments_json=arguments, call_id="c")


def box(choice: object = None) -> tools.ToolBox:
    made = tools.toolbox([ADD], choice)
    assert made is not None
    return made


def test_calls_that_keep_to_their_tools_pass() -> None:
    for choice in ("auto", "required", "add"):
        tools.check_calls(box(choice), [call(), call()], text="")
    tools.check_calls(box("auto"), [], text="no need")
    tools.check_calls(box("none"), [], text="no need")


@pytest.mark.parametrize("choice", ["required", "add"])
def test_prose_where_a_call_is_required_is_a_bad_response(choice: str) -> None:
    with pytest.raises(LLMBadResponseError, match="answered with text") as caught:
        tools.check_calls(box(choice), [], text="The sum is 3.")
    assert caught.value.partial_text == "The sum is 3."


def test_a_call_to_a_tool_that_was_not_offered_is_a_bad_response() -> None:
    with pytest.raises(LLMBadResponseError, match="'sub', which it may not"):
        tools.check_calls(box(), [call("sub")], text="")
    with pytest.raises(LLMBadResponseError, match="'add', which it may not"):
        tools.check_calls(box("none"), [call()], text="")


@pytest.mark.parametrize(
    ("arguments", "at"), [("{", ""), ("", ""), ("[]", ""), ("{}", ""), ('{"x": "1"}', "/x")]
)
def test_arguments_that_violate_the_tools_schema_are_a_bad_response(
    arguments: str, at: str
) -> None:
    with pytest.raises(SchemaViolationError, match="the call to 'add'") as caught:
        tools.check_calls(box(), [call(arguments=arguments)], text="")
    assert caught.value.pointer == at


def test_an_engine_s_own_converter_gets_no_reference_to_the_whole_document() -> None:
    """llama-server b11434 answers 400 to it; the type is enforced, the rest validated."""
    tree = schema.check({"type": "object", "properties": {"more": {"$ref": "#"}}})
    found = schema.enforcement(tree, EngineCapabilities(json_schema=True, llguidance=False))
    assert found.kind == "json_schema"
    assert "$ref" not in json.dumps(found.fields)
    assert found.validated_only


def test_a_repeated_key_narrows_the_next_grammar() -> None:
    members = {"a": {"type": "integer"}, "b": {"type": "object"}}
    document: dict[str, object] = {"type": "object", "properties": members}
    wish = wishes.from_request(
        LLMRequest(messages=[LLMMessage(role="user", content="x")], response_schema=document)
    )
    assert wish.schema is not None
    with pytest.raises(SchemaViolationError) as caught:
        schema.judge('{"c": 1, "c": 2}', wish.schema)
    assert caught.value.repeated_key == "c"
    again = follow_ups.corrected(wish, caught.value)
    assert again is not None
    assert again.policy.bounds.named_only
    endpoint = Endpoint(
        base_url="", api_key=None, kind="xllamacpp", model="m", capabilities=LLGUIDANCE,
        context_tokens=64,
    )  # fmt: skip
    wide, _ = payload.body(wish, endpoint, seed=1, stream=True)
    tight, _ = payload.body(again, endpoint, seed=1, stream=True)
    assert '"additionalProperties": false' not in str(wide["grammar"])
    assert '"additionalProperties": false' in str(tight["grammar"])
    assert '"maxProperties": 1' in str(tight["grammar"])
    with pytest.raises(SchemaViolationError) as other:
        schema.judge('{"a": "x"}', wish.schema)
    corrected = follow_ups.corrected(wish, other.value)
    assert corrected is not None
    assert not corrected.policy.bounds.named_only
