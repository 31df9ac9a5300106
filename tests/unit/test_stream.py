"""From bytes to events to answers, with no network."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.contracts import LLMDelta, ToolCallDelta, Usage
from runtime.errors import (
    ConnectionLostError,
    ContextOverflowError,
    LLMBadResponseError,
    LLMError,
    ServerStatusError,
)
from runtime.inference import sse
from runtime.inference.sse import SseDecoder
from runtime.inference.stream import DONE, Answer
from tests.fakes.openai_server import TIMINGS, USAGE, closing_chunks, events_of, piece


def decoded(data: bytes, sizes: list[int]) -> list[bytes]:
    decoder = SseDecoder()
    events: list[bytes] = []
    for size in sizes:
        events += decoder.feed(data[:size])
        data = data[size:]
    return events + decoder.feed(data)


def answer_of(*events: bytes) -> tuple[Answer, list[LLMDelta]]:
    answer = Answer()
    deltas = [delta for data in events for delta in answer.add_event(data)]
    return answer, deltas


def chunk(value: Any) -> bytes:
    return json.dumps(value).encode()


TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1, max_size=20
)


@given(texts=st.lists(TEXTS, max_size=6), sizes=st.lists(st.integers(0, 9), max_size=60))
def test_events_are_the_same_however_the_bytes_are_packed(
    texts: list[str], sizes: list[int]
) -> None:
    for end in (b"\n", b"\r\n", b"\r"):
        data = b"".join(b"data: " + text.encode() + end + end for text in texts) + b":" + end
        assert decoded(data, sizes) == [text.encode() for text in texts]


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
        (b"data: a\rdata: b\r\r:", [b"a\nb"]),
        (b": ping\n\n", []),
        (b": ping\ndata: a\n\n", [b"a"]),
        (b"event: x\nid: 3\nretry: 1\ndata: a\n\n", [b"a"]),
        (b"data\n\n", [b""]),
        (b"data: a\n", []),  # not ended
        (b"data: a\n\n\n\ndata: b\n\n", [b"a", b"b"]),
        (b'error: {"code":500}\n\n', [b'{"code":500}']),
    ],
)
def test_event_streams_are_read_as_the_standard_says(data: bytes, events: list[bytes]) -> None:
    assert decoded(data, []) == events
    assert decoded(data, [1] * len(data)) == events


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    with pytest.raises(LLMBadResponseError, match="1000 bytes"):
        decoded(b"data: xxxxxxxx\n" * 1000, [15] * 999)
    with pytest.raises(LLMBadResponseError, match="1000 bytes"):
        decoded(b"x" * 2000, [100] * 20)


def test_long_streams_of_short_events_are_not_endless_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    decoder = SseDecoder()
    assert sum(len(decoder.feed(b"data: xxxxxxxx\n\n")) for _ in range(1000)) == 1000


def test_a_recorded_answer_becomes_deltas_and_a_whole() -> None:
    decoder = SseDecoder()
    data = b"".join(events_of(["I", "'m", " glad"], reason="length"))
    answer, deltas = answer_of(*decoder.feed(data))

    usage = Usage(prompt_tokens=32, completion_tokens=3, total_tokens=35)
    assert deltas == [
        LLMDelta(text_delta="I"),
        LLMDelta(text_delta="'m"),
        LLMDelta(text_delta=" glad"),
        LLMDelta(usage_delta=usage),
    ]
    assert (answer.text, answer.finish_reason, answer.done) == ("I'm glad", "length", True)
    assert (answer.usage, answer.timings) == (usage, TIMINGS)
    assert answer.raw_output == {
        "id": "chatcmpl-fake",
        "created": 1795354021,
        "model": "fake-model",
        "system_fingerprint": "b0-unknown",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "finish_reason": "length",
                "message": {"role": "assistant", "content": "I'm glad"},
            }
        ],
        "usage": USAGE,
        "timings": TIMINGS,
    }


def test_an_answer_is_not_begun_by_its_role_alone() -> None:
    answer, deltas = answer_of(chunk(piece({"role": "assistant", "content": None})))
    assert not answer.begun
    assert deltas == []
    answer.add_event(chunk(piece({"content": "x"})))
    assert answer.begun


def test_tool_calls_are_put_together_from_their_pieces() -> None:
    def call(index: int, **parts: Any) -> bytes:
        return chunk(piece({"tool_calls": [{"index": index, **parts}]}))

    answer, deltas = answer_of(
        call(0, id="a", type="function", function={"name": "add", "arguments": ""}),
        call(0, function={"arguments": '{"x":'}),
        call(1, id="b", type="function", function={"name": "sub", "arguments": "{}"}),
        call(0, function={"arguments": "1}"}),
        chunk(piece({}, "tool_calls")),
    )
    assert [delta.tool_call_delta for delta in deltas] == [
        ToolCallDelta(call_id="a", name="add"),
        ToolCallDelta(call_id="a", arguments_json_delta='{"x":'),
        ToolCallDelta(call_id="b", name="sub", arguments_json_delta="{}"),
        ToolCallDelta(call_id="a", arguments_json_delta="1}"),
    ]
    assert [(each.call_id, each.name, each.arguments_json) for each in answer.tool_calls] == [
        ("a", "add", '{"x":1}'),
        ("b", "sub", "{}"),
    ]
    assert answer.finish_reason == "tool_calls"
    message = answer.raw_output["choices"][0]["message"]  # type: ignore[index]
    assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"x":1}'}


def test_a_call_without_an_id_is_given_one_of_its_own() -> None:
    def call(index: int) -> dict[str, Any]:
        return {"index": index, "id": "", "function": {"name": "f", "arguments": "{}"}}

    answer, _ = answer_of(chunk(piece({"tool_calls": [call(0), call(1)]})))
    first, second = answer.tool_calls
    assert first.call_id
    assert first.call_id != second.call_id


def test_thinking_is_kept_apart_from_the_text() -> None:
    answer, deltas = answer_of(
        chunk(piece({"reasoning_content": "hm"})), chunk(piece({"content": "yes"}))
    )
    assert (answer.reasoning, answer.text) == ("hm", "yes")
    assert deltas == [LLMDelta(text_delta="yes")]


def test_token_probabilities_are_collected() -> None:
    def with_logprobs(token: str) -> bytes:
        made = piece({"content": token})
        made["choices"][0]["logprobs"] = {"content": [{"token": token}]}
        return chunk(made)

    answer, _ = answer_of(with_logprobs("a"), with_logprobs("b"))
    choice = answer.raw_output["choices"][0]  # type: ignore[index]
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"{}",
        b'{"choices": 3}',
        b'{"choices": [3]}',
        b'{"choices": [{"delta": {"content": 3}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"function": 3}]}}]}',
        b'{"choices": [{"finish_reason": 3}]}',
    ],
)
def test_a_malformed_event_is_a_bad_response_with_what_had_come(data: bytes) -> None:
    answer, _ = answer_of(chunk(piece({"content": "so far"})))
    with pytest.raises(LLMBadResponseError, match="malformed") as caught:
        answer.add_event(data)
    assert caught.value.partial_text == "so far"


def test_an_error_event_before_any_text_is_what_its_status_says() -> None:
    error = {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8}
    with pytest.raises(ContextOverflowError) as caught:
        Answer().add_event(chunk({"error": {**error, "message": "too long"}}))
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (9, 8)
    with pytest.raises(ServerStatusError, match="boom"):
        Answer().add_event(chunk({"error": {"code": 500, "message": "boom"}}))


def test_an_error_event_after_text_carries_the_text() -> None:
    answer, _ = answer_of(chunk(piece({"content": "so far"})))
    with pytest.raises(ConnectionLostError, match="boom") as caught:
        answer.add_event(chunk({"error": {"code": 500, "message": "boom"}}))
    assert caught.value.partial_text == "so far"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "error", "message", "usage", "tool_calls", "index",
                 "function", "finish_reason", "code", "timings", "logprobs"]
            ),
            inner,
            max_size=4,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_no_event_breaks_the_answer_in_another_way_than_by_name(value: object) -> None:
    answer = Answer()
    with contextlib.suppress(LLMError):
        answer.add_event(json.dumps(value).encode())
        _ = answer.text, answer.tool_calls, answer.raw_output


def test_a_whole_completion_is_read_like_a_stream() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "hi", "tool_calls": [call]}
    whole = {
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "model": "m",
        "usage": USAGE,
        "timings": TIMINGS,
    }
    answer = Answer()
    deltas = answer.add_completion(json.dumps(whole).encode())
    assert [delta.text_delta for delta in deltas] == ["hi", None, None]
    assert (answer.text, answer.finish_reason, answer.model) == ("hi", "stop", "m")
    assert answer.usage == Usage(prompt_tokens=32, completion_tokens=3, total_tokens=35)
    assert answer.tool_calls[0].call_id == "a"
    assert answer.raw_output == whole
    assert answer.done


def test_the_continued_text_is_taken_off_a_whole_completion() -> None:
    """Engines repeat it there and leave it out of a stream."""
    whole = {"choices": [{"finish_reason": "stop", "message": {"content": "one two three"}}]}
    answer = Answer()
    answer.add_completion(json.dumps(whole).encode(), continued="one two")
    assert answer.text == " three"
    assert answer.raw_output["choices"][0]["message"]["content"] == " three"  # type: ignore[index]


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"null", b'{"choices": []}', b'{"choices": [{"message": null}]}',
     b'{"choices": [{"message": {"content": {}}}]}', b"\xff"],
)  # fmt: skip
def test_a_malformed_completion_is_a_bad_response(body: bytes) -> None:
    with pytest.raises(LLMBadResponseError, match="malformed"):
        Answer().add_completion(body)


def test_an_error_in_place_of_a_completion_is_what_it_says() -> None:
    with pytest.raises(ServerStatusError, match="boom"):
        Answer().add_completion(b'{"error": {"code": 500, "message": "boom"}}')


def test_an_answer_is_done_only_with_its_closing_mark() -> None:
    answer, _ = answer_of(*(chunk(each) for each in closing_chunks()))
    assert answer.finish_reason == "stop"
    assert not answer.done
    answer.add_event(DONE)
    done: bool = answer.done
    assert done
