"""From requests in the contract's terms to what an engine takes, with no engine."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime.contracts import LLMChatParams, LLMMessage, LLMRequest, ToolSpec
from runtime.engines.base import Endpoint, EngineCapabilities
from runtime.errors import LLMError, LLMInvalidRequestError
from runtime.inference import payload, wishes

if TYPE_CHECKING:
    from runtime.inference.wishes import Wish

USER = LLMMessage(role="user", content="hi")
TOOL = ToolSpec(name="add", description="Adds.", input_schema={"type": "object"}, output_schema={})
OBJECT: dict[str, object] = {"type": "object"}


def endpoint(**changes: Any) -> Endpoint:
    made = Endpoint(
        base_url="http://127.0.0.1:1",
        api_key=None,
        kind="xllamacpp",
        model="m",
        capabilities=EngineCapabilities(tools=True, json_schema=True),
        context_tokens=512,
    )
    return dataclasses.replace(made, **changes)


def wish(**values: Any) -> Wish:
    return wishes.from_request(LLMRequest(**{"messages": [USER], **values}))


def body(made: Wish, at: Endpoint | None = None, *, stream: bool = False) -> dict[str, Any]:
    return payload.body(made, at or endpoint(), seed=7, stream=stream)[0]


def test_a_plain_string_is_one_user_message() -> None:
    made = wishes.from_chat("hi", model=None, params=None)
    assert made.messages == ({"role": "user", "content": "hi"},)


def test_the_body_says_everything_explicitly() -> None:
    made = wish(temperature=0.5, max_tokens=9, provider_options={"top_p": 0.9, "stop": ["x"]})
    assert body(made) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "max_tokens": 9,
        "seed": 7,
        "top_p": 0.9,
        "stop": ["x"],
    }
    streamed = body(made, stream=True)
    assert streamed["stream"] is True
    assert streamed["stream_options"] == {"include_usage": True}


def test_messages_keep_what_the_contract_has_for_them() -> None:
    messages = [
        LLMMessage(role="system", content="s"),
        LLMMessage(role="user", content="u", name="ann"),
        LLMMessage(role="assistant", content=""),
        LLMMessage(role="tool", content="3", tool_call_id="c1", tool_name="add"),
    ]
    assert wish(messages=messages).messages == (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u", "name": "ann"},
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"},
    )


def test_any_sequence_of_look_alikes_will_do() -> None:
    call = SimpleNamespace(name="add", arguments_json="{}", call_id="c1")
    messages = deque(
        [
            SimpleNamespace(role="user", content="u"),
            SimpleNamespace(role="assistant", content="", tool_calls=(call,)),
        ]
    )
    params = SimpleNamespace(
        temperature=0, max_tokens=3, response_schema=None, provider_options={"seed": 5}
    )
    made = wishes.from_chat(messages, model="m", params=params)
    assert (made.temperature, made.max_tokens, made.seed, made.model) == (0, 3, 5, "m")
    assert made.messages[1]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    ]
    request = SimpleNamespace(messages=messages)  # what it lacks is as if left out
    assert wishes.from_request(request).messages == made.messages


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages is empty"),
        ((), "messages is empty"),
        ("", "prompt is empty"),
        ("  \n", "prompt is empty"),
        (None, "NoneType, not a sequence"),
        (3, "int, not a sequence"),
        ({"role": "user"}, "dict, not a sequence"),
        ([SimpleNamespace(role="robot", content="x")], r"messages\[0\] has the role 'robot'"),
        ([USER, SimpleNamespace(role=None, content="x")], r"messages\[1\] has the role None"),
        ([{"role": "user", "content": "x"}], r"messages\[0\] has the role None"),
        ([SimpleNamespace(role="user", content=None)], r"messages\[0\] has content of type None"),
        ([SimpleNamespace(role="user", content=["x"])], r"messages\[0\] has content of type list"),
        ([LLMMessage(role="user", content="a\ud800b")], "cannot be written as JSON"),
    ],
)
def test_messages_that_cannot_be_right_are_refused(messages: Any, said: str) -> None:
    with pytest.raises(LLMInvalidRequestError, match=said):
        wishes.from_chat(messages, model=None, params=None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"model": ""}, "model is ''"),
        ({"model": 3}, "model is 3"),
        ({"provider_options": {"n_predict": -1}}, "max_tokens is -1"),
        ({"provider_options": {"seed": 2**32 - 1}}, "seed is 4294967295"),
        ({"provider_options": {"seed": -2}}, "seed is -2"),
        ({"provider_options": {"seed": "x"}}, "seed is 'x'"),
        ({"provider_options": {"seed": True}}, "seed is True"),
        ({"provider_options": {"messages": []}}, "cannot hold 'messages'"),
        ({"provider_options": {"stream": True}}, "cannot hold 'stream'"),
        ({"provider_options": {"json_schema": {}}}, "cannot hold 'json_schema'"),
        ({"provider_options": {"tools": []}}, "cannot hold 'tools'"),
        ({"provider_options": {"n": 2}}, "cannot hold 'n'"),
        ({"provider_options": {"model": "x"}}, "cannot hold 'model'"),
        ({"provider_options": ["x"]}, "provider_options is list"),
        ({"provider_options": {"x": object()}}, "cannot be written as JSON"),
        ({"provider_options": {"x": math.nan}}, "cannot be written as JSON"),
        ({"max_tokens": 3, "provider_options": {"max_completion_tokens": 4}}, "given twice: 3 and"),
        (
            {"temperature": 0.1, "provider_options": {"temperature": 1}},
            "temperature is given twice",
        ),
        ({"response_schema": OBJECT, "response_format": {"type": "json_object"}}, "exclude one"),
        ({"response_format": {"type": "xml"}}, "response_format is"),
        ({"response_format": {"type": "json_schema"}}, "response_format is"),
        ({"response_format": "json"}, "response_format is 'json'"),
        ({"response_schema": OBJECT, "tools": [TOOL]}, "exclude one another"),
        ({"response_format": {"type": "json_object"}, "tools": [TOOL]}, "exclude one another"),
        ({"response_schema": OBJECT, "provider_options": {"grammar": "x"}}, "grammar excludes"),
        ({"tools": [TOOL], "provider_options": {"grammar": "x"}}, "grammar excludes"),
    ],
)
def test_what_cannot_be_right_is_refused_before_any_request(
    values: dict[str, Any], said: str
) -> None:
    with pytest.raises(LLMInvalidRequestError, match=said):
        wish(**values)


def test_something_that_is_no_request_is_refused() -> None:
    with pytest.raises(LLMInvalidRequestError, match="LLMMessage has none"):
        wishes.from_request(USER)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_a_bound_by_another_name_is_the_bound(name: str) -> None:
    made = wish(provider_options={name: 4})
    assert body(made)["max_tokens"] == 4
    assert name == "max_tokens" or name not in body(made)


@pytest.mark.parametrize("value", [None, -1])
def test_no_seed_means_choose_one(value: int | None) -> None:
    assert wish(provider_options={"seed": value}).seed is None


def test_a_seed_of_zero_is_a_seed() -> None:
    assert wish(provider_options={"seed": 0}).seed == 0


def test_seeds_differ_by_attempt_and_are_the_same_every_time() -> None:
    seeds = [wishes.later_seed(5, attempt) for attempt in range(4)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 4
    assert seeds == [wishes.later_seed(5, attempt) for attempt in range(4)]
    assert all(0 <= wishes.later_seed(wishes.MAX_SEED, n) <= wishes.MAX_SEED for n in range(9))
    assert len({wishes.new_seed() for _ in range(50)}) > 40


@pytest.mark.parametrize(
    ("at", "bound"),
    [
        (endpoint(), 512),
        (endpoint(kind="llama-cpp-python"), 512),
        (endpoint(kind="openai"), 256),
        (endpoint(kind="openai", context_tokens=1_000_000), payload.FOREIGN_MAX_TOKENS),
        (endpoint(kind="openai", context_tokens=None), payload.FOREIGN_MAX_TOKENS),
    ],
)
def test_an_answer_is_always_bounded(at: Endpoint, bound: int) -> None:
    assert body(wish(), at)["max_tokens"] == bound
    assert body(wish(max_tokens=9999), at)["max_tokens"] == 9999


def test_only_a_trailing_assistant_message_is_continued() -> None:
    said = LLMMessage(role="assistant", content="one")
    assert wish(messages=[USER, said]).continued == "one"
    assert wish(messages=[said, USER]).continued == ""


def test_recommended_sampling_holds_where_the_caller_says_nothing() -> None:
    recommended = {"temperature": 0.2, "top_p": 0.9, "min_p": 0.1}

    def sampled(**values: Any) -> tuple[dict[str, Any], dict[str, float]]:
        made = dataclasses.replace(wish(**values), recommended=recommended)
        return {name: body(made)[name] for name in recommended}, payload.recommended_only(made)

    assert sampled() == (recommended, recommended)
    said, used = sampled(temperature=0, provider_options={"top_p": 0.5})
    assert said == {"temperature": 0, "top_p": 0.5, "min_p": 0.1}
    assert used == {"min_p": 0.1}


def test_tools_take_openais_form() -> None:
    made = body(wish(tools=[TOOL]))
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    assert made["tools"] == [{"type": "function", "function": function}]
    assert made["tool_choice"] == "auto"


def test_one_named_tool_is_required_in_llama_cpps_way_or_by_name() -> None:
    other = dataclasses.replace(TOOL, name="sub")
    named = {"type": "function", "function": {"name": "sub"}}
    for choice in ("sub", named):
        made = wish(tools=[TOOL, other], provider_options={"tool_choice": choice})
        ours = body(made)
        assert [tool["function"]["name"] for tool in ours["tools"]] == ["sub"]
        assert ours["tool_choice"] == "required"
        theirs = body(made, endpoint(kind="openai"))
        assert [tool["function"]["name"] for tool in theirs["tools"]] == ["add", "sub"]
        assert theirs["tool_choice"] == named


@pytest.mark.parametrize("choice", ["auto", "required", "none"])
def test_tool_choice_is_passed_on(choice: str) -> None:
    made = wish(tools=[TOOL], provider_options={"tool_choice": choice})
    assert body(made)["tool_choice"] == choice


@pytest.mark.parametrize(
    ("tools", "options", "said"),
    [
        ([TOOL, TOOL], {}, "Two tools have the name 'add'"),
        ([dataclasses.replace(TOOL, name="")], {}, "has the name ''"),
        ([dataclasses.replace(TOOL, name="a b")], {}, "has the name 'a b'"),
        ([dataclasses.replace(TOOL, name="x" * 129)], {}, "has the name"),
        ([SimpleNamespace()], {}, r"tools\[0\] has the name None"),
        ([dataclasses.replace(TOOL, input_schema={"type": "string"})], {}, "describes no object"),
        ([dataclasses.replace(TOOL, input_schema={"type": "x"})], {}, "not a valid JSON Schema"),
        ([dataclasses.replace(TOOL, input_schema=None)], {}, "not a JSON Schema object"),  # type: ignore[arg-type]
        ([TOOL], {"tool_choice": "sub"}, "tool_choice is 'sub'"),
        ([TOOL], {"tool_choice": {"type": "function"}}, "tool_choice is"),
        ([], {"tool_choice": "required"}, "there are no tools"),
        ([], {"tool_choice": {"type": "function", "function": {"name": "f"}}}, "there are no tool"),
    ],
)
def test_tools_that_cannot_be_right_are_refused(
    tools: list[Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(LLMInvalidRequestError, match=said):
        wish(tools=tools, provider_options=options)


def test_a_choice_without_tools_that_asks_for_none_is_nothing() -> None:
    for choice in (None, "auto", "none"):
        assert "tool_choice" not in body(wish(provider_options={"tool_choice": choice}))


def test_where_tools_cannot_be_seen_they_are_sent() -> None:
    unknown = endpoint(kind="openai", capabilities=EngineCapabilities(tools=None))
    assert body(wish(tools=[TOOL]), unknown)["tools"]


def test_every_refusal_has_a_message_that_is_a_sentence() -> None:
    with pytest.raises(LLMError) as caught:
        wishes.from_chat([], model=None, params=None)
    assert caught.value.hint
    assert str(caught.value).startswith("messages is empty.")


def test_chat_params_of_the_contract_are_read() -> None:
    params = LLMChatParams(temperature=0.25, max_tokens=2, response_schema=OBJECT)
    params.provider_options["seed"] = 3
    made = wishes.from_chat([USER], model=None, params=params)
    assert (made.temperature, made.max_tokens, made.seed) == (0.25, 2, 3)
    assert made.schema is not None
    assert made.schema.document == OBJECT


def test_bodies_are_json_in_utf8() -> None:
    assert json.loads(wishes.encode({"a": "é👍"})) == {"a": "é👍"}
    assert "é".encode() in wishes.encode({"a": "é"})
