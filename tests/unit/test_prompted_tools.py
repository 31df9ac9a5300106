"""Tools in the prompt: the grammar admits only calls, the reader tells calls from text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from runtime.contracts import ToolSpec
from runtime.engines.base import EngineCapabilities
from runtime.inference import prompted_tools, tools
from runtime.inference.histories import with_tools, without_tools

LLGUIDANCE = EngineCapabilities(llguidance=True, grammar=True, tools=False)


def spec(name: str, **properties: Any) -> ToolSpec:
    document: dict[str, object] = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    return ToolSpec(name=name, description="Does.", input_schema=document, output_schema={})


ADD = spec("add", x={"type": "integer", "maximum": 9}, y={"$ref": "#/properties/x"})
SAY = spec("say.it", text={"type": "string", "not": {"const": "no"}})


def made(choice: object, *, several: bool = False, **known: Any) -> dict[str, Any]:
    box = tools.toolbox([ADD, SAY], choice)
    assert box is not None
    capabilities = EngineCapabilities(**known) if known else LLGUIDANCE
    user = {"role": "user", "content": "hi"}
    return prompted_tools.body(box, [user], capabilities, several=several)


def admits(grammar: str, text: str) -> bool:
    compiled = LLMatcher.grammar_from_lark(grammar)
    problem = LLMatcher.validate_grammar(compiled)
    assert not problem or problem.startswith("WARNING"), problem
    matcher = LLMatcher(LLTokenizer("byte"), compiled)
    data = text.encode()
    return bool(matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting())


ONE = '{"name": "add", "arguments": {"x": 3, "y": 4}}'
OTHER = '{"name": "say.it", "arguments": {"text": "{\\"}"}}'


@pytest.mark.parametrize(
    ("choice", "several", "text", "admitted"),
    [
        ("required", False, ONE, True),
        ("required", False, OTHER, True),
        ("required", False, "Hello.", False),
        ("required", False, '{"name": "sub", "arguments": {}}', False),
        ("required", False, '{"name": "add", "arguments": {"x": 10, "y": 1}}', False),
        ("required", False, '{"name": "add", "arguments": {"x": 1, "y": 10}}', False),
        ("required", False, '{"name": "add", "arguments": {}}', False),
        ("required", False, f"{ONE}\n{OTHER}", False),
        ("required", True, f"{ONE}\n{OTHER}", True),
        ("required", True, "\n".join([ONE] * 8), True),
        ("required", True, "\n".join([ONE] * 9), False),
        ("auto", False, ONE, True),
        ("auto", False, "Hello {you}.\n\nÉ", True),
        ("auto", False, "{you}", False),
        ("auto", False, "", False),
        ("add", False, ONE, True),
        ("add", False, OTHER, False),
        ("add", False, "Hello.", False),
    ],
)
def test_the_grammar_admits_calls_alone(
    choice: str, several: bool, text: str, admitted: bool
) -> None:
    assert admits(made(choice, several=several)["grammar"], text) is admitted


def test_without_llguidance_the_names_and_the_form_are_enforced() -> None:
    grammar = made("required", grammar=True)["grammar"]
    first, second, *_ = grammar.splitlines()
    assert first == "root ::= call"
    assert r'"{\"name\": \"add\", \"arguments\": "' in second
    assert "| text" not in grammar
    assert "call | text" in made("auto", grammar=True)["grammar"]
    assert "grammar" not in made("auto", grammar=False)


def test_the_prompt_tells_the_tools_that_may_be_called() -> None:
    said = made("say.it")["messages"][0]
    assert said["role"] == "system"
    assert "say.it" in said["content"]
    assert '"add"' not in said["content"]
    assert "plain text" not in said["content"]
    assert "plain text" in made("auto")["messages"][0]["content"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    values=st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), min_size=1, max_size=3),
    name=st.text(min_size=1, max_size=5),
    data=st.data(),
)
def test_calls_are_read_however_they_are_cut(
    values: list[Any], name: str, data: st.DataObject
) -> None:
    lines = [json.dumps({"name": name, "arguments": value}) for value in values]
    text = "\n".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    reader = prompted_tools.CallReader()
    calls: dict[int, list[str]] = {}
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        for piece in reader.feed(text[start:end]):
            assert not isinstance(piece, str)
            call = calls.setdefault(piece["index"], ["", ""])
            call[0] += piece["function"]["name"]
            call[1] += piece["function"]["arguments"]
    assert [name for name, _ in calls.values()] == [name] * len(values)
    assert [json.loads(arguments) for _, arguments in calls.values()] == values


@given(pieces=st.lists(st.text(max_size=6), max_size=6))
def test_no_character_of_a_text_is_lost(pieces: list[str]) -> None:
    reader = prompted_tools.CallReader()
    text = "".join(str(piece) for each in pieces for piece in reader.feed(each))
    assert text + reader.waiting == "".join(pieces)


def call(arguments: str, call_id: str = "c1") -> dict[str, Any]:
    function = {"name": "add", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


USER = {"role": "user", "content": "hi"}
RESULT = {"role": "tool", "content": "7", "tool_call_id": "c1", "name": "add"}


def test_a_history_becomes_plain_turns_for_a_template_without_tools() -> None:
    turn = {"role": "assistant", "content": "", "tool_calls": [call('{"x": 3}'), call("{oops")]}
    assert without_tools([USER, turn, RESULT, {**RESULT, "name": None}, USER]) == [
        USER,
        {
            "role": "assistant",
            "content": '{"name": "add", "arguments": {"x": 3}}\n'
            '{"name": "add", "arguments": {"malformed": "{oops"}}',
        },
        {"role": "user", "content": "Result of add: 7\nResult of the call: 7\nhi"},
    ]
    empty = {"role": "assistant", "content": ""}
    assert without_tools([USER, empty, RESULT]) == [
        {"role": "user", "content": "hi\nResult of add: 7"}
    ]
    plain = [USER, {"role": "assistant", "content": "ho"}, USER]
    assert without_tools(plain) == plain


def test_a_history_is_repaired_for_a_template_with_tools() -> None:
    turn = {"role": "assistant", "content": "", "tool_calls": [call("[1]")]}
    repaired = call('{"malformed": "[1]"}')
    assert with_tools([USER, turn, RESULT]) == [USER, {**turn, "tool_calls": [repaired]}, RESULT]
    good = {**turn, "tool_calls": [call('{"x": 1}')]}
    assert with_tools([USER, good, RESULT]) == [USER, good, RESULT]


def test_a_result_without_its_call_gets_one() -> None:
    """The contract's messages do not carry the calls that an assistant made."""
    bare = {"role": "assistant", "content": ""}
    second = {**RESULT, "tool_call_id": "c2"}
    expected = [call("{}"), call("{}", "c2")]
    assert with_tools([USER, bare, RESULT, second]) == [
        USER, {**bare, "tool_calls": expected}, RESULT, second,
    ]  # fmt: skip
    orphan = with_tools([USER, {"role": "tool", "content": "7"}])
    assert [message["role"] for message in orphan] == ["user", "assistant", "tool"]
    assert orphan[2]["tool_call_id"] == "call_0"
