"""LlamaClient on every real engine that is present."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest

from runtime import (
    ConnectionLostError,
    ContextOverflowError,
    LlamaClient,
    LLMAuthError,
    LLMBadResponseError,
    LLMChatParams,
    LLMMessage,
    LLMRequest,
    ModelNotFoundError,
    RestartPolicy,
    SchemaViolationError,
    TextTooLongError,
    ToolSpec,
    TruncatedText,
    Usage,
)
from runtime.client._stream import AnswerStream
from runtime.inference import schema as schemas
from runtime.inference.vectors import Vectors
from runtime.testing.tiny_model import build_tiny_model
from tests.conftest import ENGINES, is_gone, wait_until
from tests.fakes.openai_server import closing_chunks, events_of, piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from runtime import LLMStreamEvent

pytestmark = pytest.mark.engine

CONTEXT = 768
LONG_CONTEXT = 8192
TEXTS = int(os.environ.get("TEST_TEXTS", "3000"))
STREAMS = int(os.environ.get("TEST_STREAMS", "200"))
MESSAGES = [LLMMessage(role="user", content="Tell me about the sea.")]
LLAMA_CPP = {"xllamacpp", "llama-server"}
ADD = ToolSpec(
    name="add",
    description="Adds two numbers.",
    input_schema={
        "type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
        "required": ["x", "y"],
        "additionalProperties": False,
    },
    output_schema={},
)
_SMALL = {"type": "integer", "minimum": -9, "maximum": 99}
NARROW: dict[str, object] = {
    "type": "object",
    "properties": {"x": _SMALL, "y": _SMALL},
    "required": ["x", "y"],
    "additionalProperties": False,
}


# Taken before any test changes the environment: a native binary may be named by the caller.
NATIVE = os.environ.get("LLAMA_RUNTIME_ENGINE_PATH")
HOME = os.environ.get("LLAMA_RUNTIME_HOME")


def options_of(kind: str) -> dict[str, Any]:
    named = {"engine_path": NATIVE} if kind == "llama-server" and NATIVE else {}
    return {"engine": kind, **named}


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def client(
    kind: str, tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaClient]:
    """One client for all tests that do no harm to its engine."""
    options = options_of(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_RUNTIME_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("LLAMA_RUNTIME_ENGINE_PATH", raising=False)
        # One thread: two that wait for one another crawl while the machine is busy.
        made = LlamaClient(str(tiny_model_path), ctx_size=CONTEXT, threads=1, **options)
    with made:
        yield made


def params(**values: Any) -> LLMChatParams:
    options = {"seed": values.pop("seed", 7)}
    return LLMChatParams(**{"max_tokens": 12, "provider_options": options, **values})


# --- answers ----------------------------------------------------------------------------------


def test_a_chat_is_answered(client: LlamaClient, kind: str) -> None:
    reply = client.chat(MESSAGES, params=params())
    assert reply.text
    assert reply.finish_reason in {"stop", "length"}
    assert reply.model == client.default_model()
    assert reply.usage is not None
    usage: Any = reply.usage
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
    assert 0 < usage.completion_tokens <= 12
    assert reply.provenance is not None
    assert reply.provenance.backend_kind == kind
    assert reply.raw is not None
    assert reply.raw["seed"] == 7
    if kind in LLAMA_CPP:
        cache: Any = reply.raw["cache"]
        assert cache["reused"] + cache["processed"] == usage.prompt_tokens
    json.dumps(reply.raw_output)


def test_a_stream_says_the_same_as_a_chat_with_its_seed(client: LlamaClient) -> None:
    """So any answer can be replayed from what `raw` says."""
    chosen = client.chat(MESSAGES, params=LLMChatParams(temperature=0.8, max_tokens=24))
    assert chosen.raw is not None
    again = params(temperature=0.8, max_tokens=24, seed=chosen.raw["seed"])
    *deltas, last = client.stream_chat(MESSAGES, params=again)
    assert last.response is not None
    assert last.response.text == chosen.text == "".join(d.delta_text or "" for d in deltas)
    assert last.response.finish_reason == chosen.finish_reason
    assert len(deltas) > 3, "token by token"


def test_seeds_that_are_chosen_make_different_answers(client: LlamaClient) -> None:
    free = LLMChatParams(temperature=1.0, max_tokens=16)
    assert len({client.chat(MESSAGES, params=free).text for _ in range(4)}) > 1


def test_an_answer_without_a_bound_ends_with_the_context(client: LlamaClient) -> None:
    """The tiny model does not stop by itself."""
    reply = client.chat(MESSAGES)
    usage: Any = reply.usage
    assert reply.finish_reason == "length"
    assert usage.total_tokens is None or CONTEXT - 2 <= usage.total_tokens <= CONTEXT


def test_a_prompt_longer_than_the_context_is_named_with_both_numbers(client: LlamaClient) -> None:
    for call in (
        lambda: client.chat("word " * 2 * CONTEXT, params=params()),
        lambda: list(client.stream_chat("word " * 2 * CONTEXT, params=params())),
    ):
        with pytest.raises(ContextOverflowError) as caught:
            call()
        assert caught.value.context_tokens == CONTEXT
        assert caught.value.prompt_tokens is not None
        assert caught.value.prompt_tokens > CONTEXT
        assert str(CONTEXT) in caught.value.message


def test_an_unknown_model_is_refused(client: LlamaClient) -> None:
    with pytest.raises(ModelNotFoundError, match="gpt-4"):
        client.chat("hi", model="gpt-4")
    for name in (client.default_model(), str(client.config_snapshot()["model"])):
        assert client.chat("hi", model=name, params=params()).text


def test_many_threads_share_one_engine(client: LlamaClient) -> None:
    alone = client.chat(MESSAGES, params=params()).text
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: client.chat(MESSAGES, params=params()).text, range(24)))
    assert set(texts) == {alone}


def test_many_streams_one_after_another_never_fail(client: LlamaClient) -> None:
    for number in range(STREAMS):
        events = list(client.stream_chat(f"{number}", params=params(max_tokens=2, seed=number)))
        assert events[-1].kind == "completed"


def busy_slots(client: LlamaClient) -> int:
    endpoint = client._source.current
    address = urlsplit(endpoint.base_url)
    connection = http.client.HTTPConnection(address.netloc, timeout=5)
    connection.request("GET", "/slots", headers={"Authorization": f"Bearer {endpoint.api_key}"})
    slots = json.loads(connection.getresponse().read())
    connection.close()
    return sum(slot["is_processing"] for slot in slots)


def test_leaving_a_stream_frees_its_slot_within_200_ms(own_client: LlamaClient, kind: str) -> None:
    if kind not in LLAMA_CPP:
        pytest.skip("it does not show its slots")

    def leave_in_another_thread(stream: AnswerStream[LLMStreamEvent]) -> None:
        reader = threading.Thread(target=list, args=(stream,))
        reader.start()
        stream.close()
        reader.join()

    def seconds_until_free(leave: Callable[[AnswerStream[LLMStreamEvent]], None]) -> float:
        stream = own_client.stream_chat(MESSAGES, params=params(max_tokens=LONG_CONTEXT))
        next(stream)
        assert busy_slots(own_client) == 1
        left_at = time.monotonic()
        leave(stream)
        del stream
        wait_until("the slot is free", lambda: busy_slots(own_client) == 0, timeout_s=5)
        return time.monotonic() - left_at

    for leave in (AnswerStream.close, leave_in_another_thread, lambda _: None):
        # The best of three: the machine may be busy with something else at one of them.
        assert min(seconds_until_free(leave) for _ in range(3)) < 0.2


# --- structured answers and tools -------------------------------------------------------------


def test_a_structured_answer_validates(client: LlamaClient) -> None:
    wanted: dict[str, object] = {
        "type": "object",
        "properties": {"answer": {"enum": ["yes", "no"]}, "sure": {"type": "boolean"}},
        "required": ["answer", "sure"],
        "additionalProperties": False,
    }
    for seed in range(3):
        asked = params(response_schema=wanted, max_tokens=100, temperature=1.0, seed=seed)
        reply = client.chat(MESSAGES, params=asked)
        assert schemas.judge(reply.text, schemas.check(wanted))["answer"] in {"yes", "no"}


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
        {"type": "number", "minimum": 0.5, "maximum": 0.6},
        {"type": "object", "minProperties": 2, "maxProperties": 2,
         "additionalProperties": {"type": "integer", "multipleOf": 7, "maximum": 700}},
        {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 2},
        {"type": "string", "format": "email", "maxLength": 20},
    ],
)  # fmt: skip
def test_what_is_returned_as_a_success_is_one(
    client: LlamaClient, kind: str, wanted: dict[str, object]
) -> None:
    """Engines drop such constraints silently; a violation is an error, never an answer."""
    asked = params(response_schema=wanted, max_tokens=60, temperature=1.0)
    try:
        reply = client.chat(MESSAGES, params=asked)
    except LLMBadResponseError as exc:
        assert exc.partial_text is not None  # noqa: PT017 - either is right
        assert kind != "xllamacpp" or "uniqueItems" in wanted
    else:
        schemas.judge(reply.text, schemas.check(wanted))


def test_any_json_object_is_an_object(client: LlamaClient) -> None:
    request = LLMRequest(
        messages=MESSAGES,
        response_format={"type": "json_object"},
        max_tokens=200,
        provider_options={"seed": 1},
    )
    try:
        text = client.generate(request).text
    except LLMBadResponseError as exc:
        assert exc.partial_text  # noqa: PT017 - cut off is an honest end for a random model
    else:
        assert isinstance(json.loads(text), dict)


def test_tools_are_told_to_a_template_that_knows_none(tiny_model_path: Path, kind: str) -> None:
    """Whatever a random model writes under the grammar is a call to the tool it was given."""
    tool = replace(ADD, input_schema=NARROW)
    history = [LLMMessage(role="user", content="go")]
    options = options_of(kind)
    with LlamaClient(str(tiny_model_path), ctx_size=4096, threads=1, **options) as client:
        assert client.capabilities().tool_calling == "best_effort"
        for seed in range(5):
            request = LLMRequest(
                messages=history,
                tools=[tool],
                max_tokens=120,
                provider_options={"tool_choice": "required", "seed": seed},
            )
            try:
                reply = client.generate(request)
            except LLMBadResponseError:
                assert kind != "xllamacpp"
                return
            (call,) = reply.tool_calls
            assert (call.name, reply.finish_reason) == ("add", "tool_calls")
            schemas.judge(call.arguments_json, schemas.check(NARROW))
            result = LLMMessage(
                role="tool", content="3", tool_call_id=call.call_id, tool_name=call.name
            )
            history += [LLMMessage(role="assistant", content=""), result]


@pytest.mark.parametrize("max_tokens", [1, 7, 40])
def test_what_was_cut_off_is_closed(client: LlamaClient, max_tokens: int) -> None:
    """Whatever the model wrote, and wherever it was cut: the answer validates."""
    wanted: dict[str, object] = {
        "type": "object",
        "properties": {
            "names": {"type": "array", "items": {"type": "string"}, "minItems": 2},
            "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
            "more": {"$ref": "#"},
        },
        "required": ["names", "code"],
        "additionalProperties": False,
    }
    for seed in range(4):
        asked = params(response_schema=wanted, max_tokens=max_tokens, temperature=1.0, seed=seed)
        asked.provider_options["on_truncation"] = "close"
        try:
            reply = client.chat(MESSAGES, params=asked)
        except SchemaViolationError:
            # It ended by itself, not by the budget: so it can where no grammar knows the pattern.
            assert client.server is not None
            assert not client.server.endpoint().capabilities.llguidance
            continue
        schemas.judge(reply.text, schemas.check(wanted))
        assert reply.raw is not None
        noted = reply.raw["structured_output"]
        assert isinstance(noted, dict)
        if reply.finish_reason == "length":
            assert noted["closed"]


def test_tools_are_called_where_the_template_knows_them(kind: str, tmp_path: Path) -> None:
    if kind not in LLAMA_CPP:
        pytest.skip("it has no native tool calls for this template")
    model = build_tiny_model(tmp_path / "tools.gguf", tools=True)
    request = LLMRequest(
        messages=MESSAGES,
        tools=[ADD],
        max_tokens=300,
        provider_options={"tool_choice": "required", "seed": 3},
    )
    with LlamaClient(str(model), ctx_size=1024, **options_of(kind)) as client:
        assert client.capabilities().tool_calling == "native"
        reply = client.generate(request)
        deltas = [delta.tool_call_delta for delta in client.stream(request)]
        (call,) = reply.tool_calls[:1]
        turns = [
            *MESSAGES,
            LLMMessage(role="assistant", content=""),
            LLMMessage(role="tool", content="3", tool_call_id=call.call_id, tool_name=call.name),
        ]
        answer = client.chat(turns, params=params())
    assert reply.finish_reason == "tool_calls"
    assert call.name == "add"
    assert set(json.loads(call.arguments_json)) == {"x", "y"}
    assert call.call_id
    pieces = [delta for delta in deltas if delta]
    assert pieces[0].name == "add"
    assert len(pieces) > 2
    joined = "".join(each.arguments_json_delta or "" for each in pieces)
    assert joined == call.arguments_json
    assert answer.text


# --- embeddings and counting ------------------------------------------------------------------


def test_chat_and_embeddings_come_from_one_engine(client: LlamaClient) -> None:
    texts = ["the sea", "a ship on the waves", "tax law", "the sea"]
    result = client.embed(texts)
    assert len(result.vectors) == 4
    assert all(math.isclose(math.hypot(*v), 1, abs_tol=1e-4) for v in result.vectors)
    first, _, third, last = result.vectors
    likeness = sum(a * b for a, b in zip(first, last, strict=True))
    assert math.isclose(likeness, 1, abs_tol=1e-3)
    assert first != third
    assert result.usage is not None
    assert (result.usage.prompt_tokens or 0) >= 4
    assert client.chat(MESSAGES, params=params()).text


@pytest.fixture(scope="module")
def embedder(
    kind: str, tiny_embedding_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaClient]:
    """A client of a model that only embeds; three slots divide no power of two."""
    options = options_of(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_RUNTIME_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("LLAMA_RUNTIME_ENGINE_PATH", raising=False)
        made = LlamaClient(str(tiny_embedding_path), parallel=3, threads=1, **options)
    with made:
        yield made


@pytest.mark.parametrize("own_model", [False, True])
def test_texts_that_are_too_long_are_named_or_truncated(
    client: LlamaClient, embedder: LlamaClient, own_model: bool
) -> None:
    """To the token: what is one shorter is embedded whole."""
    client = embedder if own_model else client
    with pytest.raises(TextTooLongError) as caught:
        client.embed(["the engine", words(900), "a", "\N{SNOWMAN}" * 1000])
    limit = caught.value.limit
    assert limit == 512
    assert {1} <= set(caught.value.too_long) <= {1, 3}
    with pytest.raises(TextTooLongError) as caught:
        client.embed([words(limit)])
    excess = (caught.value.too_long[0] or 0) - limit
    usage = client.embed([words(limit - excess)]).usage
    assert usage == Usage(prompt_tokens=limit, total_tokens=limit)
    with pytest.raises(TextTooLongError) as caught:
        client.embed([words(limit - excess + 1)])
    assert caught.value.too_long == {0: limit + 1}
    made = client.embed(["x", words(limit + 90), "y"], truncate=True)
    assert made.truncated == (TruncatedText(index=1, tokens=limit + 90 + excess, kept=limit),)
    assert alike(made.vectors[1], client.embed([words(limit - excess)]).vectors[0])


def words(count: int) -> str:
    """So many words of one token each, the first included."""
    return "the" + " the" * (count - 1)


def alike(one: Sequence[float], other: Sequence[float]) -> bool:
    return sum(a * b for a, b in zip(one, other, strict=True)) > 0.999


def test_thousands_of_texts_take_no_more_memory_than_their_vectors(
    embedder: LlamaClient, kind: str
) -> None:
    texts = [f"text number {number}" for number in range(TEXTS if kind in LLAMA_CPP else 500)]
    embedder.embed(texts[:200])
    process = psutil.Process()
    before = process.memory_info().rss
    result = embedder.embed(texts)
    grown = process.memory_info().rss - before
    assert isinstance(result.vectors, Vectors)
    assert len(result.vectors) == len(texts)
    assert grown < result.vectors.matrix.nbytes + 4 * 1024**2
    for number in (0, 63, 64, len(texts) // 2, len(texts) - 1):
        assert alike(embedder.embed([texts[number]]).vectors[0], result.vectors[number])


def test_a_chat_counts_as_many_tokens_as_its_usage_says(client: LlamaClient) -> None:
    assert client.count_tokens("") == 0
    assert 0 < client.count_tokens("one two three") < client.count_tokens("one two three " * 3)
    usage: Any = client.chat(MESSAGES, params=params()).usage
    assert client.count_tokens(MESSAGES) == usage.prompt_tokens


def test_an_embedding_model_of_its_own_is_started_when_first_needed(
    kind: str, tiny_model_path: Path, tiny_embedding_path: Path
) -> None:
    with LlamaClient(
        str(tiny_model_path),
        embedding_model=str(tiny_embedding_path),
        embeddings=False,
        ctx_size=CONTEXT,
        **options_of(kind),
    ) as client:
        pid = client.server.pid if client.server else None
        engines = {process.pid for process in psutil.Process().children(recursive=True)}
        assert pid in engines
        result = client.embed(["a", "b"])
        assert result.model_id != client.default_model()
        started = {process.pid for process in psutil.Process().children(recursive=True)} - engines
        assert started
        client.embed(["c"])
        assert client.chat(MESSAGES, params=params()).text
    wait_until("both engines are gone", lambda: all(map(is_gone, started)))


def test_the_default_model_is_sampled_as_its_authors_recommend(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the prompt cache is at work."""
    if HOME is None:
        monkeypatch.delenv("LLAMA_RUNTIME_HOME")
    else:
        monkeypatch.setenv("LLAMA_RUNTIME_HOME", HOME)
    with LlamaClient(ctx_size=1024, offline=True, threads=1) as client:
        assert client.default_model() == "smollm2-135m"
        question = "What is the capital of France?"
        reply = client.chat(question, params=params(max_tokens=24))
        assert reply.text
        notes: Any = reply.raw
        assert notes["recommended_sampling"] == {"temperature": 0.2, "top_p": 0.9}
        turns = [
            LLMMessage(role="user", content=question),
            LLMMessage(role="assistant", content=reply.text),
            LLMMessage(role="user", content="And of Italy?"),
        ]
        notes = client.chat(turns, params=params(temperature=0.0, max_tokens=4)).raw
        assert notes["recommended_sampling"] == {"top_p": 0.9}
        assert notes["cache"]["reused"] > notes["cache"]["processed"]


# --- the server behind it ---------------------------------------------------------------------


def test_a_second_client_attaches_to_the_server_of_the_first(
    client: LlamaClient, kind: str
) -> None:
    server = client.server
    assert server is not None
    with LlamaClient(base_url=f"{server.base_url}/v1", api_key=server.api_key) as guest:
        assert guest.server_snapshot() is None
        assert guest.default_model() == client.default_model()
        assert guest.chat(MESSAGES, params=params()).text == (
            client.chat(MESSAGES, params=params()).text
        )
        assert guest.healthcheck().ok
        if kind in LLAMA_CPP:
            assert guest.capabilities() == client.capabilities()
            known = client._source.current.capabilities
            assert guest._source.current.capabilities.llguidance == known.llguidance
    assert client.healthcheck().ok, "it is not the guest's to stop"
    with pytest.raises(LLMAuthError):
        LlamaClient(base_url=server.base_url, api_key="wrong")


def test_the_snapshots_are_json_without_the_key(client: LlamaClient) -> None:
    server = client.server
    assert server is not None
    described = json.dumps(client.describe())
    assert server.api_key
    assert server.api_key not in described
    snapshot = client.server_snapshot()
    assert snapshot is not None
    assert {
        "host", "port", "base_url", "model", "hf_model_repo_id", "api_model",
        "startup_timeout_seconds", "poll_interval_seconds", "python_executable",
        "extra_server_args",
    } <= set(snapshot)  # fmt: skip
    assert client.capabilities().max_context_tokens == CONTEXT


@pytest.fixture
def own_client(kind: str, tiny_model_path: Path) -> Iterator[LlamaClient]:
    """A client whose engine may be harmed."""
    with LlamaClient(
        str(tiny_model_path),
        ctx_size=LONG_CONTEXT,
        threads=1,
        restart=RestartPolicy(backoff_base_s=0.01),
        **options_of(kind),
    ) as made:
        yield made


def kill_engine(client: LlamaClient) -> None:
    pid = client.server.pid if client.server else None
    assert pid
    os.kill(pid, signal.SIGKILL)


def test_a_stream_whose_engine_is_killed_is_an_error_where_nothing_may_be_sent_again(
    kind: str, tiny_model_path: Path
) -> None:
    with LlamaClient(
        str(tiny_model_path), ctx_size=LONG_CONTEXT, threads=1, max_retries=0, **options_of(kind)
    ) as client:
        stream = client.stream_chat(MESSAGES, params=params(max_tokens=LONG_CONTEXT))
        heard = [next(stream).delta_text or "" for _ in range(3)]
        kill_engine(client)
        with pytest.raises(ConnectionLostError) as caught:
            heard.extend(event.delta_text or "" for event in stream)
        assert str(caught.value.partial_text).startswith("".join(heard[:3]))


def test_a_stream_whose_engine_is_killed_goes_on_where_it_was(own_client: LlamaClient) -> None:
    asked = params(max_tokens=240, temperature=0.8)
    whole = own_client.chat(MESSAGES, params=asked)
    heard: list[str] = []
    last: Any = None
    for event in own_client.stream_chat(MESSAGES, params=asked):
        heard.append(event.delta_text or "")
        last = event.response
        if len(heard) in {5, 20}:
            with contextlib.suppress(ProcessLookupError):  # 20 had come before the first kill
                kill_engine(own_client)
    assert "".join(heard) == last.text == whole.text
    counts_streams = own_client._source.current.kind in LLAMA_CPP  # the others tell no usage there
    assert last.usage == (whole.usage if counts_streams else None)
    assert last.finish_reason == whole.finish_reason
    assert last.raw["recovery"]["count"] >= 1
    assert last.raw["recovery"]["exact"]
    assert whole.raw is not None
    assert "recovery" not in whole.raw


def test_a_request_that_finds_the_engine_dead_is_sent_to_the_next_one(
    own_client: LlamaClient,
) -> None:
    before, name = own_client._source.current, own_client.default_model()
    kill_engine(own_client)
    reply = own_client.chat(MESSAGES, params=params())
    assert reply.text
    after = own_client._source.current
    assert (after.generation, after.base_url) != (before.generation, before.base_url)
    assert own_client.default_model() == reply.model == name


def test_closing_the_client_ends_its_engine(own_client: LlamaClient) -> None:
    pid = own_client.server.pid if own_client.server else None
    assert pid
    own_client.close()
    wait_until("the engine is gone", lambda: not psutil.pid_exists(pid), timeout_s=2)
    assert not own_client.healthcheck().ok


# --- the protocol the fake speaks -------------------------------------------------------------


def test_the_fake_server_speaks_as_the_engine_does(client: LlamaClient, kind: str) -> None:
    """Event by event: what the fake sends is a part of what the engine sends, in its order."""
    if kind not in LLAMA_CPP:
        pytest.skip("the fake speaks llama.cpp's dialect")
    endpoint = client._source.current
    connection = http.client.HTTPConnection(urlsplit(endpoint.base_url).netloc, timeout=30)
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    assert response.headers.get_content_type() == "text/event-stream"
    events = response.read().split(b"\n\n")
    connection.close()
    assert events[-2:] == [events_of([])[-1].strip(), b""]
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-2]]
    faked = [piece({"role": "assistant", "content": None}), *closing_chunks("length")]
    for real, fake in zip([chunks[0], *chunks[-2:]], faked, strict=True):
        assert set(fake) <= set(real)
        assert set(fake.get("timings", {})) <= set(real.get("timings", {}))
        assert set(fake.get("usage", {})) <= set(real.get("usage", {}))
        for ours, theirs in zip(fake["choices"], real["choices"], strict=True):
            assert set(ours) <= set(theirs)
            assert (ours["finish_reason"], set(ours["delta"])) == (
                theirs["finish_reason"], set(theirs["delta"]),
            )  # fmt: skip
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in chunks[1:-2])
