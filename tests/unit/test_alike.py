"""Tokens that are read without reading JSON: the same comes of them, or they are left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.contracts import LLMDelta
from runtime.inference.sse import SseDecoder
from runtime.inference.stream import Answer
from tests.fakes.openai_server import MODEL, event, events_of, piece
from tests.unit.test_recovery import Engine

texts = st.text(st.characters(codec=None), max_size=6)


def after(text: str, **more: Any) -> Answer:
    """An answer that has had a token."""
    answer = Answer()
    for data in SseDecoder().feed(event({**piece({"content": text}), **more})):
        answer.add_event(data)
    return answer


def written(text: str, *, ascii_only: bool) -> bytes:
    """A token's packet, by either way of writing JSON."""
    said = json.dumps(piece({"content": text}), ensure_ascii=ascii_only)
    return b"data: " + said.encode("utf-8", "surrogatepass") + b"\n\n"


@settings(max_examples=300, deadline=None)
@given(first=st.text(max_size=6), text=texts, ascii_only=st.booleans())
@example(first="a", text='say "\\n"\n', ascii_only=False)
@example(first="content", text='"content": "x"', ascii_only=False)
@example(first=MODEL, text="b", ascii_only=True)
def test_the_same_comes_of_a_token_or_it_is_left(first: str, text: str, ascii_only: bool) -> None:
    packet = written(text, ascii_only=ascii_only)
    (data,) = SseDecoder().feed(packet)
    short, long = after(first), after(first)
    delta = short.add_alike(packet)
    deltas = long.add_event(data)
    assert delta is None or [delta] == deltas
    assert short.text == (long.text if delta else after(first).text)


def test_most_tokens_are_taken_so() -> None:
    """Also those with a quote, a line break, or letters of any script."""
    answer = after("Once")
    rest = [" upon", ' "a"', "\n", " \u4e2d", "\U0001f600", "\\"]
    assert [answer.add_alike(written(text, ascii_only=False)) for text in rest] == [
        LLMDelta(text_delta=text) for text in rest
    ]
    assert answer.text == "Once" + "".join(rest)
    assert answer.tokens == 7


OTHERS: dict[str, bytes] = {
    "empty": b"",
    "cut": event(piece({"content": "b"}))[:-1],
    "two": event(piece({"content": "b"})) * 2,
    "with a line break": event(piece({"content": "b"})).replace(b"b", b"b\n", 1),
    "broken text": event(piece({"content": "b"})).replace(b'"b"', b'"\xff"', 1),
    "no text": event(piece({"content": None})),
    "nothing said": event(piece({"content": ""})),
    "the end": event(piece({}, "stop")),
    "a reason": event(piece({"content": "b"}, "length")),
    "a thought": event(piece({"reasoning_content": "b"})),
    "a call": event(piece({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]})),
    "usage": event({**piece({"content": "b"}), "usage": {"prompt_tokens": 1}}),
    "another's": event({**piece({"content": "b"}), "id": "another"}),
    "done": b"data: [DONE]\n\n",
    "an error": event({"error": {"message": "no"}}),
}


@pytest.mark.parametrize("packet", OTHERS.values(), ids=OTHERS.keys())
def test_what_says_anything_else_is_left(packet: bytes) -> None:
    answer = after("a")
    assert answer.add_alike(packet) is None
    assert answer.text == "a"


@pytest.mark.parametrize(
    "more",
    [
        {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [{}]}}]},
        {"choices": [{"index": 0, "delta": {"content": "a", "refusal": "b"}}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]},
        {"choices": []},
        {"timings": {"prompt_n": 3}},
        {"prompt_progress": {"processed": 1, "total": 2}},
    ],
    ids=str,
)
def test_nothing_is_like_a_token_that_says_more(more: dict[str, Any]) -> None:
    chunk = {**piece({"content": "a"}), **more}
    assert after("a", **more).add_alike(event(chunk)) is None


def test_text_that_may_be_a_thought_or_a_call_is_read_as_ever() -> None:
    thinking, calling, held = Answer(), Answer(), Answer()
    thinking.read_thoughts(None)
    calling.read_calls()
    held.hold_text()
    for answer in (thinking, calling, held):
        for text in ("<thi", "nk>hm"):
            assert answer.add_alike(event(piece({"content": text}))) is None
            for data in SseDecoder().feed(event(piece({"content": text}))):
                answer.add_event(data)
    assert thinking.reasoning == "hm"


@pytest.mark.parametrize("emit", [True, False])
def test_a_flow_is_not_woken_for_the_tokens_of_a_plain_answer(emit: bool) -> None:
    words = [f" {number}" for number in range(40)]
    engine = Engine(events_of(words))
    reply = engine.run(emit=emit)
    assert reply.text == "".join(words)
    assert engine.text == (reply.text if emit else "")
    assert engine.cut_short >= len(words) - 2
