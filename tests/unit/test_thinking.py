"""Models that think aloud: their thoughts are kept apart, and admitted by grammars."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark

from runtime import LlamaClient, LLMChatParams, ThoughtEvent
from runtime.contracts import LLMMessage, LLMRequest, ToolSpec
from runtime.engines.thinking import Thinking, is_separated, separation_trial, thinking_of
from runtime.errors import CutOffError
from runtime.inference.thinking import ThoughtReader, admitted
from tests.fakes.openai_server import FakeServer, event, events_of, piece, says, streams

OPENED = Thinking(opened=True)
SCHEMA: dict[str, object] = {"type": "object", "additionalProperties": {"type": "integer"}}
TOOL = ToolSpec(name="add", description="", input_schema={"type": "object"}, output_schema={})


@pytest.mark.parametrize(
    ("template", "prompt", "found"),
    [
        (None, None, None),
        ("{{ messages }}", "user\n", None),
        ("a </think> b", "assistant\n", Thinking()),
        ("a </think> b", "assistant\n<think>\n", OPENED),
        ("a </think> b", "assistant\n<think>\n\n</think>\n\n", Thinking()),
        ("no closing tag", "<think>", OPENED),
        ("</seed:think>", None, Thinking(opening="<seed:think>", closing="</seed:think>")),
    ],
)
def test_template_and_prompt_tell_whether_a_model_thinks(
    template: object, prompt: object, found: Thinking | None
) -> None:
    assert thinking_of(template, prompt) == found


def test_a_trial_shows_who_keeps_thoughts_apart() -> None:
    assert separation_trial(OPENED)["grammar"] == 'root ::= "q</think>z"'
    assert separation_trial(Thinking())["grammar"] == 'root ::= "<think>q</think>z"'
    assert is_separated({"content": "z", "reasoning_content": "q\n"})
    assert not is_separated({"content": "<think>q</think>z"})
    assert not is_separated(None)


def admits(grammar: str, text: str) -> bool:
    lark = grammar if grammar.startswith("%") else gbnf_to_lark(grammar)
    compiled = LLMatcher.grammar_from_lark(lark)
    matcher = LLMatcher(LLTokenizer("byte"), compiled)
    data = list(text.encode())
    return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())


@pytest.mark.parametrize("grammar", ['%llguidance {}\nstart: "{}"', 'root ::= "{}"'])
@pytest.mark.parametrize(
    ("text", "offered", "opened"),
    [
        ("{}", True, False),
        ("<think>\nhm, {} < </b </i>\n</think>\n\n{}", True, None),
        ("hm\n</think>\n\n{}", False, True),
        ("</think>{}", False, True),
        ("<think>hm {}", False, False),
        ("hm {}", False, False),
        ("hm</think>no", False, False),
    ],
)
def test_a_grammar_admits_thoughts_before_what_it_demands(
    grammar: str, text: str, offered: bool, opened: bool | None
) -> None:
    assert admits(admitted(grammar, Thinking()), text) is offered
    if opened is not None:
        assert admits(admitted(grammar, OPENED), text) is opened


@given(
    thought=st.text(alphabet="ab </thinkq>\n", max_size=30).filter(lambda t: "think>" not in t),
    answer=st.text(alphabet="ab <{", max_size=10),
    form=st.sampled_from(["opened", "repeated", "offered"]),
    data=st.data(),
)
def test_thoughts_are_told_from_the_answer_however_they_are_cut(
    thought: str, answer: str, form: str, data: st.DataObject
) -> None:
    thought = f"\n{thought}\n"
    whole = f"{'' if form == 'opened' else '<think>'}{thought}</think>\n\n{answer}"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    reader = ThoughtReader(None if form == "offered" else OPENED)
    got = [reader.feed(whole[a:b]) for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    got.append(reader.end())
    assert "".join(each for each, _ in got) == thought
    assert "".join(each for _, each in got) == answer.lstrip()


@given(st.lists(st.text(alphabet="ab <think>", max_size=6), max_size=6))
def test_no_character_of_a_plain_answer_is_lost(pieces: list[str]) -> None:
    whole = "".join(pieces)
    reader = ThoughtReader(None)
    got = [*map(reader.feed, pieces), reader.end()]
    if not whole.lstrip().startswith("<think>"):
        assert "".join(text for _, text in got) == whole
        assert not any(thought for thought, _ in got)


Way = Literal["apart", "within"]


def thinks(way: Way, thought: str, *pieces: str, reason: str = "stop") -> Any:
    """An answer after a thought, as a server sends it that keeps them apart, or does not."""
    if way == "apart":
        head = [event(piece({"reasoning_content": thought}))]
        return streams(*head, *events_of(pieces, reason=reason))
    ending = ["</thi", "nk>\n\n"] if pieces or reason == "stop" else []
    return streams(*events_of([thought, *ending, *pieces], reason=reason))


@pytest.fixture(params=["apart", "within"])
def way(request: pytest.FixtureRequest) -> Any:
    return request.param


def server_of(way: Way) -> FakeServer:
    return FakeServer(prompt_end="<think>\n", separates=way == "apart")


def test_thoughts_are_no_part_of_text_json_or_calls(way: Way) -> None:
    with server_of(way) as server, LlamaClient(base_url=server.url) as client:
        server.will(*[thinks(way, "I muse.", "It ", "is.")] * 2)
        reply = client.chat("hi")
        assert reply.text == "It is."
        assert reply.raw is not None
        assert str(reply.raw["reasoning"]).strip() == "I muse."
        events = list(client.stream_chat("hi"))
        assert "".join(each.delta_text or "" for each in events) == "It is."
        server.will(thinks(way, "{} no", '{"a"', ": 1}"))
        assert client.chat("hi", params=LLMChatParams(response_schema=SCHEMA)).text == '{"a": 1}'
        assert "start: thought gap answer" in server.chats[-1].body["grammar"]
        server.will(thinks(way, "call it", '{"name": "add", ', '"arguments": {}}'))
        messages = [LLMMessage(role="user", content="hi")]
        request = LLMRequest(
            messages=messages, tools=[TOOL], provider_options={"tool_choice": "required"}
        )
        reply = client.generate(request)
        assert [call.arguments_json for call in reply.tool_calls] == ["{}"]
        assert reply.raw is not None
        assert reply.raw["reasoning"]


def test_a_budget_that_ended_in_thoughts_is_stated(way: Way) -> None:
    with server_of(way) as server, LlamaClient(base_url=server.url) as client:
        server.will(thinks(way, "I mu", reason="length"))
        reply = client.chat("hi")
        assert (reply.text, reply.finish_reason) == ("", "length")
        assert reply.raw is not None
        assert reply.raw["empty_text"] == "The token budget ended the thinking."
        server.will(thinks(way, "I mu", reason="length"))
        with pytest.raises(CutOffError, match="the JSON had not begun"):
            client.chat("hi", params=LLMChatParams(response_schema=SCHEMA))
        server.will(thinks(way, "I mu", reason="length"))
        closing: dict[str, object] = {"on_truncation": "close"}
        params = LLMChatParams(response_schema=SCHEMA, provider_options=closing)
        reply = client.chat("hi", params=params)
        assert json.loads(reply.text) == {}
        noted: Any = (reply.raw or {})["structured_output"]
        assert (noted["closed"]["start"], noted["closed"]["text"]) == (0, "{}")


def test_where_thinking_is_switched_off_the_grammar_admits_none() -> None:
    off: dict[str, object] = {"chat_template_kwargs": {"enable_thinking": False}}
    with server_of("apart") as server, LlamaClient(base_url=server.url) as client:
        server.will(says("{}"))
        client.chat("hi", params=LLMChatParams(response_schema=SCHEMA, provider_options=off))
        assert "thought" not in server.chats[-1].body["grammar"]


def test_a_server_of_another_kind_may_call_it_reasoning_or_leave_it_in_the_text() -> None:
    with FakeServer(llama_cpp=False) as server, LlamaClient(base_url=server.url) as client:
        head = event(piece({"reasoning": "I muse."}))
        for answer in (streams(head, *events_of(["Yes."])), says("<think>", "I muse.</think>Yes.")):
            server.will(answer)
            *_, last = client.stream_chat("hi")
            assert last.response is not None
            assert last.response.text == "Yes."
            assert (last.response.raw or {})["reasoning"] == "I muse."


def thought(text: str) -> bytes:
    return event(piece({"reasoning_content": text}))


def test_thoughts_come_as_they_are_thought_to_those_who_ask() -> None:
    """Others get the same stream as ever; what breaks off in a thought repeats none of it."""
    opening, *rest = events_of(["Yes", "."])
    whole = (opening, thought("Let me"), thought(" see."), *rest)
    with FakeServer() as server, LlamaClient(base_url=server.url) as client:
        server.will(streams(opening, thought("Let me"), end=False), streams(*whole))
        with client.stream_thinking("Well?") as thinking:
            events = list(thinking)
        server.will(streams(*whole), streams(*whole))
        plain = list(client.stream_chat("Well?"))
        request = LLMRequest(messages=[LLMMessage(role="user", content="Well?")])
        deltas = list(client.stream(request))
    told = [each.thought if isinstance(each, ThoughtEvent) else each.delta_text for each in events]
    assert told == ["Let me", " see.", "Yes", ".", None]
    assert [each.kind for each in events] == ["delta"] * 4 + ["completed"]
    assert [each.delta_text for each in plain] == ["Yes", ".", None]
    assert [delta.text_delta for delta in deltas if delta.usage_delta is None] == ["Yes", "."]
