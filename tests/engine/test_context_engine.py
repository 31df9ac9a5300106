"""What is said of a prompt is what the engine makes of it: its length, its fit, what is reused."""

from __future__ import annotations

import json
import random
import statistics
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from runtime import (
    ContextOverflowError,
    LlamaClient,
    LLMBadResponseError,
    LLMChatParams,
    LLMMessage,
    LLMRequest,
    ToolSpec,
)
from runtime.testing.tiny_model import build_tiny_model
from tests.conftest import ENGINES
from tests.engine.test_client_engine import LLAMA_CPP, options_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.engine

CONTEXT = 2048
EXAMPLES = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)
DIGIT: dict[str, object] = {"type": "integer", "minimum": 0, "maximum": 9}
SUM = ToolSpec(
    name="add",
    description="Adds two digits.",
    input_schema={
        "type": "object",
        "properties": {"x": DIGIT, "y": DIGIT},
        "required": ["x", "y"],
        "additionalProperties": False,
    },
    output_schema={},
)


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["prompted", "native"])
def client(
    request: pytest.FixtureRequest, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaClient]:
    """A client of a model whose template knows tools, or does not."""
    home = tmp_path_factory.mktemp("home")
    path = build_tiny_model(home / "model.gguf", tools=request.param)
    options = options_of(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_RUNTIME_HOME", str(home))
        patch.delenv("LLAMA_RUNTIME_ENGINE_PATH", raising=False)
        made = LlamaClient(str(path), ctx_size=CONTEXT, threads=1, max_retries=0, **options)
    with made:
        yield made


def message(role: str, content: str, **more: Any) -> Any:
    return SimpleNamespace(role=role, content=content, **more)


def tokens_of(reply: Any) -> int:
    found: int = reply.usage.prompt_tokens
    return found


texts = st.text(st.sampled_from("the small {}\"'\n<|>ü日🦙"), min_size=1, max_size=40)
calls = st.builds(
    lambda x, content, result: [
        message(
            "assistant",
            content,
            tool_calls=[
                SimpleNamespace(name="add", call_id="c", arguments_json=json.dumps({"x": x}))
            ],
        ),
        message("tool", result, tool_call_id="c", tool_name="add"),
    ],
    st.integers(0, 9), st.just(""), texts,
)  # fmt: skip
turns = st.one_of(
    st.builds(lambda a, q: [message("assistant", a), message("user", q)], texts, texts),
    calls,
)
conversations = st.builds(
    lambda system, first, rest: [
        *([message("system", system)] if system else []),
        message("user", first),
        *(each for turn in rest for each in turn),
    ],
    st.one_of(st.none(), texts), texts, st.lists(turns, max_size=3),
)  # fmt: skip


@EXAMPLES
@given(
    messages=conversations,
    tools=st.sampled_from([(), (SUM,)]),
    schema=st.sampled_from([None, SUM.input_schema]),
)
def test_as_many_tokens_are_counted_as_the_answer_says(
    client: LlamaClient, messages: list[Any], tools: Any, schema: Any
) -> None:
    request = LLMRequest(
        messages=messages,
        tools=tools,
        response_schema=None if tools else schema,
        max_tokens=100,
        provider_options={"seed": 1},
    )
    counted = client.count_tokens(request)
    try:
        reply = client.generate(request)
    except LLMBadResponseError:
        reject()  # llama-cpp-python's grammar lets through what is refused here
    assert counted == tokens_of(reply)
    params = LLMChatParams(response_schema=request.response_schema)
    assert counted == client.count_tokens(messages, tools=tools, params=params)


def test_tools_and_parameters_count(client: LlamaClient) -> None:
    plain = client.count_tokens("hi", params=LLMChatParams())
    assert plain == client.count_tokens([message("user", "hi")]) > client.count_tokens("hi")
    assert client.count_tokens("hi", tools=[SUM]) > plain + 20


def filled(client: LlamaClient, tokens: int) -> list[Any]:
    """A conversation of exactly so many tokens."""

    def words(count: int) -> list[Any]:
        return [message("user", "the" + " the" * count)]

    count = tokens - client.count_tokens(words(0))
    assert client.count_tokens(words(count)) == tokens
    return words(count)


def test_to_the_last_token_it_is_said_what_the_context_bounds(
    client: LlamaClient, kind: str
) -> None:
    def said(messages: list[Any], **params: Any) -> Any:
        made = LLMChatParams(temperature=0.0, provider_options={"seed": 1}, **params)
        return client.chat(messages, params=made)

    full = filled(client, CONTEXT)
    with pytest.raises(ContextOverflowError) as caught:
        said(full, max_tokens=1)
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (CONTEXT, CONTEXT)
    some = filled(client, CONTEXT - 20)
    for bound, limit in ((20, "max_tokens"), (21, "context"), (None, "context")):
        reply = said(some, max_tokens=bound)
        assert reply.finish_reason == "length"
        assert reply.usage.completion_tokens == 20, "no context is shifted"
        assert reply.raw["length_limit"] == limit
    if kind in LLAMA_CPP:
        short = said([message("user", "hi")], response_schema=SUM.input_schema)
        assert "length_limit" not in short.raw


def history() -> list[Any]:
    made = [message("system", "Be brief.")]
    for number in range(12):
        made += [
            message("user", f"Question {number}: " + "the small model " * 12),
            message("assistant", f"Answer {number}: " + "the quick client " * 12),
        ]
    return [*made, message("user", "And now?")]


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_fit_is_dropped_and_told(client: LlamaClient, stream: bool) -> None:
    messages = history()
    before = client.count_tokens(messages)
    options: dict[str, object] = {"fit": "drop_oldest", "seed": 1}
    room = CONTEXT - before // 2
    params = LLMChatParams(max_tokens=room, provider_options=options)
    if stream:
        *_, last = client.stream_chat(messages, params=params)
        reply: Any = last.response
    else:
        reply = client.chat(messages, params=params)
    fit = reply.raw["fit"]
    dropped = [each["index"] for each in fit["dropped"]]
    assert dropped == list(range(1, 1 + len(dropped)))
    assert [each["role"] for each in fit["dropped"]] == ["user", "assistant"] * (len(dropped) // 2)
    assert (fit["tokens_before"], fit["room"], fit["context"]) == (before, room, CONTEXT)
    if reply.usage is not None:  # llama-cpp-python does not tell in a stream
        assert fit["tokens_after"] == tokens_of(reply)
    assert fit["tokens_after"] + room <= CONTEXT
    one_more = [m for n, m in enumerate(messages) if n not in dropped[:-2]]
    assert client.count_tokens(one_more) + room > CONTEXT, "no more than must go"
    with pytest.raises(ContextOverflowError) as caught:
        client.chat(messages, params=LLMChatParams(max_tokens=CONTEXT, provider_options=options))
    assert caught.value.prompt_tokens == client.count_tokens([messages[0], messages[-1]])
    assert str(CONTEXT) in caught.value.message


def test_what_fits_is_left_as_it_is(client: LlamaClient) -> None:
    params = LLMChatParams(max_tokens=4, provider_options={"fit": "drop_oldest"})
    raw: Any = client.chat("hi", params=params).raw
    tokens = client.count_tokens([message("user", "hi")])
    assert raw["fit"] == {
        "dropped": [], "tokens_before": tokens, "tokens_after": tokens, "room": 4,
        "context": CONTEXT,
    }  # fmt: skip


# --- the prompt cache -------------------------------------------------------------------------


def test_four_agents_in_turn_each_find_their_own_prompt_again(
    client: LlamaClient, kind: str
) -> None:
    """They begin alike, and each appends calls, JSON results, texts and questions."""
    if kind not in LLAMA_CPP:
        raw: Any = client.chat("hi", params=LLMChatParams(max_tokens=2)).raw
        assert raw["cache"] is None, "it does not tell"
        return
    chance = random.Random(7)
    system = "You are a careful agent. " + "Follow the rules of the house. " * 8
    agents = [
        [message("system", system), message("user", f"Task {number}: begin.")]
        for number in range(4)
    ]
    seen = [0] * 4
    shares = []
    for turn in range(10):
        for number in chance.sample(range(4), 4):
            reply: Any = client.generate(
                LLMRequest(
                    messages=agents[number],
                    tools=[SUM],
                    max_tokens=100,
                    provider_options={"seed": turn, "tool_choice": "auto"},
                )
            )
            cache = reply.raw["cache"]
            assert cache["reused"] + cache["processed"] == tokens_of(reply)
            if turn:
                shares.append(cache["reused"] / seen[number])
            seen[number] = tokens_of(reply)
            agents[number] += [
                message("assistant", reply.text, tool_calls=reply.tool_calls),
                *(
                    message("tool", json.dumps({"sum": turn}), tool_call_id=c.call_id)
                    for c in reply.tool_calls
                ),
            ]
            if not reply.tool_calls:
                agents[number].append(message("user", f"Go on, step {turn}."))
    assert len(shares) == 36
    assert min(shares) >= 0.95
    *_, last = client.stream_chat([LLMMessage(role="user", content="hi")])
    assert last.response is not None
    assert last.response.raw is not None
    assert last.response.raw["cache"]


@pytest.mark.parametrize("agents", [4, 9])
def test_more_agents_than_slots_with_one_system_prompt_each_find_their_turns_again(
    kind: str, agents: int, tiny_model_path: Path
) -> None:
    """In turns of changing order on two slots, some of them two at once."""
    if kind not in LLAMA_CPP:
        pytest.skip("it does not tell what it reused")
    chance = random.Random(7)
    system = "You are a careful agent. " + "Follow the rules of the house. " * 30
    talks = [[message("system", system), message("user", f"Task {n}.")] for n in range(agents)]
    seen, turns = [0] * agents, 5
    shares: list[float] = []

    def turn(number: int) -> None:
        reply: Any = own.chat(
            talks[number],
            params=LLMChatParams(temperature=0, max_tokens=8, provider_options={"seed": 1}),
        )
        cache = reply.raw["cache"]
        if seen[number]:
            shares.append(cache["reused"] / seen[number])
        seen[number] = cache["reused"] + cache["processed"]
        talks[number] += [message("assistant", reply.text), message("user", "Go on, " * 12)]

    options = options_of(kind)
    with LlamaClient(
        str(tiny_model_path), ctx_size=CONTEXT, parallel=2, threads=1, **options
    ) as own:
        for number in range(turns):
            order = chance.sample(range(agents), agents)
            if number < turns - 1:
                for agent in order:
                    turn(agent)
        assert min(shares) >= 0.95
        count = len(shares)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(turn, chance.sample(range(agents), agents)))
    # Two at once may push aside a copy that the other is about to look for: its last turns are
    # computed again, and seldom.
    assert statistics.mean(shares[count:]) >= 0.85
    assert min(shares[count:]) >= 0.5
    assert len(shares) == agents * (turns - 1)
