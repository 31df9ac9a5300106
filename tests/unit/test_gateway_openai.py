"""OpenAI's dialects: bodies in, answers, streams and errors out; no network, no engine."""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING, Any, cast

import pytest

from runtime.contracts import LLMDelta, LLMResponse, ToolCall, ToolCallDelta, Usage
from runtime.errors import (
    ConnectionLostError,
    ContextOverflowError,
    CrashingRequestError,
    EngineStartError,
    LLMAuthError,
    LLMBadResponseError,
    LLMCapabilityError,
    LLMError,
    LLMInvalidRequestError,
    ModelNotFoundError,
    ModelTooLargeError,
    QueueFullError,
    RequestTimeoutError,
    TooManyRequestsError,
)
from runtime.gateway import openai, openai_embeddings, openai_text
from runtime.gateway.connection import CorkedTransport
from runtime.gateway.dialect import FOREVER, InvalidFieldError, keep_alive
from runtime.gateway.health import health_of
from runtime.gateway.models import Standing
from runtime.gateway.statuses import headers_of, is_fault
from runtime.inference.scores import ScoredDelta

if TYPE_CHECKING:
    from runtime.gateway.dialect import Call

HELLO = {"role": "user", "content": "Hello"}


def chat(**fields: Any) -> Call:
    return openai.request({"messages": [HELLO], **fields})


def response(**fields: Any) -> LLMResponse:
    usage = Usage(prompt_tokens=7, completion_tokens=2, total_tokens=9)
    raw = {"seed": 5, "cache": {"reused": 3, "processed": 4}, "reasoning": "hm"}
    given: dict[str, Any] = {"text": "Hi", "model": "m", "finish_reason": "stop", "usage": usage}
    return LLMResponse(**{**given, "raw": raw, **fields})


def events(data: bytes) -> list[Any]:
    lines = [line for line in data.decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [
        "[DONE]" if line == "data: [DONE]" else json.loads(line.removeprefix("data: "))
        for line in lines
    ]


# --- requests -----------------------------------------------------------------------------------


def test_a_conversation_with_every_kind_of_message() -> None:
    function = {"name": "f", "arguments": '{"a": 1}'}
    call = openai.request(
        {
            "model": "m",
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c1", "type": "function", "function": function}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "2"},
            ],
        }
    )
    system, user, assistant, tool = call.request.messages
    assert (system.role, user.content, assistant.content) == ("system", "ab", "")
    assert cast("Any", assistant).tool_calls == (
        ToolCall(name="f", arguments_json='{"a": 1}', call_id="c1"),
    )
    assert tool.tool_call_id == "c1"
    assert call.model == "m"
    assert call.request.model is None, "which one is meant is for the gateway to find"


def test_what_is_not_openai_s_goes_to_the_engine_and_null_is_nothing() -> None:
    call = chat(top_k=5, min_p=0.1, seed=None, stop=["x"], user="me", max_completion_tokens=9)
    options = call.request.provider_options
    assert options == {
        "top_k": 5,
        "min_p": 0.1,
        "stop": ["x"],
        "user": "me",
        "on_truncation": "keep",
    }
    assert call.request.max_tokens == 9
    assert chat(on_truncation="close").request.provider_options["on_truncation"] == "close"


def test_a_tool_without_parameters_takes_none() -> None:
    call = chat(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="required")
    (tool,) = call.request.tools
    assert tool.input_schema == {"type": "object", "properties": {}}
    assert call.request.provider_options["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"functions": []}, "functions"),
        ({"audio": {}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [HELLO, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"keep_alive": "soon"}, "keep_alive"),
    ],
)
def test_what_is_refused_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        chat(**fields)
    status, body = openai.error(caught.value)
    problem = cast("dict[str, Any]", body["error"])
    assert (status, problem["param"], problem["type"]) == (400, param, "invalid_request_error")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None), (0, 0), (90, 90), ("5m", 300), ("1.5h", 5400), ("250ms", 0.25), ("30", 30),
        (-1, FOREVER), ("-1", FOREVER), ("-1s", FOREVER),
    ],
)  # fmt: skip
def test_keep_alive_is_written_as_ollama_does(given: object, seconds: float | None) -> None:
    assert keep_alive(given) == seconds


@pytest.mark.parametrize("given", ["", "5 m", "m", True, [], math.nan])
def test_what_is_no_duration(given: object) -> None:
    with pytest.raises(InvalidFieldError):
        keep_alive(given)


def test_a_text_has_openai_s_short_bound() -> None:
    call = openai_text.request({"prompt": ["Once"]})
    assert call.raw
    assert call.request.max_tokens == 16
    assert openai_text.request({"prompt": "Once", "max_tokens": 3}).request.max_tokens == 3


def test_tokens_are_no_texts_to_embed() -> None:
    assert openai_embeddings.request({"input": "a"}).texts == ("a",)
    with pytest.raises(InvalidFieldError, match="check_embedding_ctx_length"):
        openai_embeddings.request({"input": [[1, 2]]})


# --- answers ------------------------------------------------------------------------------------


def test_an_answer_tells_its_counts_its_thoughts_and_its_notes() -> None:
    made = cast("Any", openai.answer(response(), chat()))
    (choice,) = made["choices"]
    assert choice["message"]["content"] == "Hi"
    assert choice["message"]["reasoning_content"] == "hm"
    assert made["usage"]["total_tokens"] == 9
    assert made["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert made["runtime"]["seed"] == 5
    assert "reasoning" not in made["runtime"]


def test_an_answer_that_calls_has_no_content() -> None:
    call = ToolCall(name="f", arguments_json="{}", call_id="c")
    made = cast("Any", openai.answer(response(text="", tool_calls=(call,)), chat()))
    message = made["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


def test_a_stream_is_pieces_then_the_reason_then_the_usage() -> None:
    encoder = openai.encoder(chat(stream=True, stream_options={"include_usage": True}))
    written = encoder.begin("m")
    for text in ("a\n", '"\u2028', "é"):
        written += encoder.piece(LLMDelta(text_delta=text))
    written += encoder.piece(LLMDelta(usage_delta=Usage(prompt_tokens=1)))
    made = events(written + encoder.end(response()))
    deltas = [chunk["choices"][0]["delta"] for chunk in made[:5]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == 'a\n"\u2028é'
    assert made[4]["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["usage"] is None for chunk in made[:5])
    assert (made[5]["choices"], made[5]["usage"]["completion_tokens"]) == ([], 2)
    assert made[6] == "[DONE]"
    assert len({chunk["id"] for chunk in made[:6]}) == 1


def test_calls_in_a_stream_have_their_places() -> None:
    encoder = openai.encoder(chat(stream=True))
    encoder.begin("m")
    deltas = [("a", "f", "{"), ("a", None, "}"), ("b", "g", "{}")]
    made = [
        events(
            encoder.piece(
                LLMDelta(
                    tool_call_delta=ToolCallDelta(
                        call_id=call_id, name=name, arguments_json_delta=arguments
                    )
                )
            )
        )[0]["choices"][0]["delta"]["tool_calls"][0]
        for call_id, name, arguments in deltas
    ]
    assert [each["index"] for each in made] == [0, 0, 1]
    assert [each.get("id") for each in made] == ["a", None, "b"]
    assert made[1]["function"] == {"arguments": "}"}


def test_an_error_within_a_stream_is_an_event_and_no_done() -> None:
    for encoder in (
        openai.encoder(chat()),
        openai_text.encoder(openai_text.request({"prompt": "a"})),
    ):
        encoder.begin("m")
        (event,) = events(encoder.failed(ConnectionLostError("It broke.")))
        assert event["error"]["message"] == "It broke."


# --- errors -------------------------------------------------------------------------------------

_ERRORS: list[tuple[LLMError, int, str | None, dict[str, str]]] = [
    (LLMInvalidRequestError("x"), 400, None, {}),
    (LLMCapabilityError("x"), 400, "unsupported", {}),
    (
        ContextOverflowError("x", prompt_tokens=9, context_tokens=8),
        400,
        "context_length_exceeded",
        {},
    ),
    (ModelNotFoundError("x", reference="y"), 404, "model_not_found", {}),
    (LLMAuthError("x"), 403, None, {}),
    (
        QueueFullError("x", waiting=1, running=1, max_queue=1),
        429,
        "queue_full",
        {"retry-after": "1"},
    ),
    (
        QueueFullError("x", waiting=1, running=1, max_queue=1, retry_after_s=300),
        429,
        "queue_full",
        {"retry-after": "60"},
    ),
    (TooManyRequestsError("x", retry_after_s=2.2), 429, None, {"retry-after": "3"}),
    (
        CrashingRequestError("x", endings=("SIGSEGV",)),
        500,
        "engine_crashed",
        {"x-should-retry": "false"},
    ),
    (LLMBadResponseError("x"), 502, "bad_response", {"x-should-retry": "false"}),
    (ConnectionLostError("x"), 502, None, {}),
    (EngineStartError("x"), 503, None, {"retry-after": "5"}),
    (
        ModelTooLargeError("x", needed_bytes=2, available_bytes=1),
        503,
        None,
        {"x-should-retry": "false"},
    ),
    (RequestTimeoutError("x", phase="total", after_s=1), 504, "timeout", {}),
]


@pytest.mark.parametrize(("exc", "status", "code", "headers"), _ERRORS)
def test_each_class_of_error_has_its_status(
    exc: LLMError, status: int, code: str | None, headers: dict[str, str]
) -> None:
    told, body = openai.error(exc)
    problem = cast("dict[str, Any]", body["error"])
    assert (told, problem["code"], headers_of(exc)) == (status, code, headers)
    assert is_fault(exc) == (status >= 500)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("seed is -7.", "seed"),
        ("tools[0] has the name 'x y'.", "tools[0]"),
        ("A tool choice is wrong.", None),
        ("The request cannot be written as JSON.", None),
    ],
)
def test_the_core_s_messages_name_their_field(message: str, param: str | None) -> None:
    _, body = openai.error(LLMInvalidRequestError(message, hint="So."))
    problem = cast("dict[str, Any]", body["error"])
    assert problem["param"] == param
    assert problem["message"] == f"{message} So."


# --- health -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        ("ready", "unloaded", "ready"),
        ("unloaded", "unloaded", "ready"),
        ("waiting", "unloaded", "loading"),
        ("loading", "unloaded", "loading"),
        ("ready", "loading", "ready"),
        ("*backoff", "unloaded", "degraded"),
        ("*resolving", "unloaded", "degraded"),
        ("*starting", "unloaded", "degraded"),
        ("*loading", "unloaded", "degraded"),
        ("*suspect", "ready", "degraded"),
        ("failed", "ready", "degraded"),
        ("ready", "failed", "degraded"),
        ("failed", "unloaded", "failed"),
        ("*failed", "unloaded", "failed"),
        ("failed", "failed", "failed"),
    ],
)
def test_health_of_two_models(first: str, second: str, status: str) -> None:
    """An asterisk: the engine was ready before."""
    standings = [
        Standing(
            name=name,
            names=(name,),
            state=state.lstrip("*"),
            loaded=state.startswith("*") or state == "ready",
            counters={},
        )
        for name, state in (("a", first), ("b", second))
    ]
    health = health_of(standings, default="a")
    assert health.status == status
    assert health.serving == (status in {"ready", "degraded"})


# --- the connection -----------------------------------------------------------------------------


class _Recorder:
    def __init__(self) -> None:
        self.done: list[object] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.done


def test_what_is_written_in_one_turn_leaves_together() -> None:
    async def turns() -> list[object]:
        recorder = _Recorder()
        transport = CorkedTransport(cast("asyncio.Transport", recorder))
        transport.write(b"head ")
        transport.write(b"")
        transport.write(b"piece")
        assert recorder.done == []
        await asyncio.sleep(0)
        transport.write(b"last")
        transport.close()
        await asyncio.sleep(0)
        return recorder.done

    assert asyncio.run(turns()) == [b"head piece", b"last", "closed"]


@pytest.mark.parametrize("rivals", [0, 1])
def test_probabilities_come_with_their_pieces_and_rivals_when_asked_for(rivals: int) -> None:
    call = chat(logprobs=True, top_logprobs=rivals, stream=True)
    assert call.request.provider_options["top_logprobs"] == 1, "the engine tells 20 by default"
    tokens = [
        {"token": token, "logprob": -1.0, "bytes": [n], "top_logprobs": [{"token": "?"}]}
        for n, token in enumerate(["a", "b", "<end>"])
    ]
    expected = [{**each, "top_logprobs": each["top_logprobs"] if rivals else []} for each in tokens]
    whole = response(raw_output={"choices": [{"logprobs": {"content": tokens}}]})
    encoder = openai.encoder(call)
    data = encoder.begin("m") + encoder.piece(LLMDelta(text_delta="plain"))
    data += encoder.piece(ScoredDelta(text_delta="ab", logprobs=tuple(tokens[:2])))
    *chunks, _ = events(data + encoder.end(whole))
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert told[:2] == [None, None]
    assert [each["content"] for each in told[2:]] == [expected[:2], expected[2:]]
    assert openai.answer(whole, call)["choices"][0]["logprobs"]["content"] == expected  # type: ignore[index]
