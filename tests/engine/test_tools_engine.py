"""Tools, histories and thoughts on real engines, with chat templates of real models."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from runtime import (
    CutOffError,
    LlamaClient,
    LLMBadResponseError,
    LLMCapabilityError,
    LLMInvalidRequestError,
    LLMMessage,
    LLMRequest,
    ToolSpec,
)
from runtime.inference import payload, wishes
from runtime.inference import schema as schemas
from runtime.inference.clock import Clock, Limits
from runtime.inference.exchange import fetch, post
from runtime.testing.tiny_model import build_tiny_model
from tests.conftest import ENGINES
from tests.engine.test_client_engine import LLAMA_CPP, options_of
from tests.unit.test_histories import HISTORIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime import LLMResponse
    from runtime.engines.base import Endpoint
    from runtime.inference.effects import HttpRequest

pytestmark = pytest.mark.engine

TEMPLATES = Path(__file__).parent / "templates"


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text("utf-8")


def tool(name: str, **properties: Any) -> ToolSpec:
    document: dict[str, object] = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    return ToolSpec(name=name, description=f"Can {name}.", input_schema=document, output_schema={})


SMALL = {"type": "integer", "minimum": 0, "maximum": 99}
ADD = tool("add", x=SMALL, y=SMALL)
ORDER = tool("order", code={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"})
TOOLS = [ADD, ORDER]


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["prompt", "qwen3"])
def smollm2(request: pytest.FixtureRequest, kind: str, smollm2_path: Path) -> Iterator[LlamaClient]:
    """The real model with its own template, which knows no tools, and with one that does."""
    native = request.param != "prompt"
    if native and kind not in LLAMA_CPP:
        pytest.skip("it knows no tools for this template")
    named: dict[str, Any] = {"chat_template": template(request.param)} if native else {}
    with LlamaClient(
        str(smollm2_path), ctx_size=2048, parallel=1, threads=1, **named, **options_of(kind)
    ) as client:
        assert client.capabilities().tool_calling == ("native" if native else "best_effort")
        yield client


def judged(reply: LLMResponse) -> None:
    """Whatever is called was offered, and its arguments are what its schema asks for."""
    box = {each.name: each for each in TOOLS}
    for call in reply.tool_calls:
        schemas.judge(call.arguments_json, schemas.check(box[call.name].input_schema))
        assert call.call_id
    assert reply.tool_calls or reply.finish_reason != "tool_calls"


def test_five_turns_with_results_fed_back(smollm2: LlamaClient) -> None:
    history = [LLMMessage(role="user", content="Add 3 and 4, and order that many.")]
    for choice in ("required", "auto", "order", "none", "required"):
        request = LLMRequest(
            messages=history,
            tools=TOOLS,
            max_tokens=48,
            temperature=0.7,
            provider_options={"tool_choice": choice, "seed": 5},
        )
        reply = smollm2.generate(request)
        judged(reply)
        assert bool(reply.tool_calls) or choice in {"auto", "none"}
        assert not (reply.tool_calls and choice == "none")
        assert choice != "order" or {call.name for call in reply.tool_calls} == {"order"}
        history.append(LLMMessage(role="assistant", content=reply.text))
        history += [
            LLMMessage(role="tool", content="done", tool_call_id=call.call_id, tool_name=call.name)
            for call in reply.tool_calls
        ]
        history.append(LLMMessage(role="user", content="Go on."))


def test_several_calls_are_streamed_one_after_another(smollm2: LlamaClient) -> None:
    if smollm2.capabilities().tool_calling == "native":
        pytest.skip("this model makes none in that form")

    def request(seed: int) -> LLMRequest:
        return LLMRequest(
            messages=[LLMMessage(role="user", content="Add 3 and 4. Add 5 and 6.")],
            tools=[ADD],
            max_tokens=70,
            temperature=0.8,
            provider_options={
                "tool_choice": "required",
                "parallel_tool_calls": True,
                "on_truncation": "close",
                "seed": seed,
            },
        )

    # How many it makes is the model's choice.
    made = ((seed, smollm2.generate(request(seed))) for seed in range(8))
    seed, whole = next(each for each in made if len(each[1].tool_calls) > 1)
    streamed: dict[str, list[str]] = {}
    for delta in smollm2.stream(request(seed)):
        if piece := delta.tool_call_delta:
            call = streamed.setdefault(str(piece.call_id), ["", ""])
            call[0] += piece.name or ""
            call[1] += piece.arguments_json_delta or ""
    assert streamed
    for name, arguments in streamed.values():
        assert name == "add"
        schemas.judge(arguments, schemas.check(ADD.input_schema))
    assert len({call.call_id for call in whole.tool_calls}) == len(whole.tool_calls)


@pytest.mark.parametrize("known", [True, False])
def test_a_call_cut_anywhere_is_closed_or_a_typed_error(
    kind: str, tmp_path: Path, known: bool
) -> None:
    if known and kind not in LLAMA_CPP:
        pytest.skip("it knows no tools for this template")
    model = build_tiny_model(tmp_path / "tiny.gguf", tools=known)
    narrow = replace(
        ADD,
        input_schema={
            **ADD.input_schema,
            "properties": {"x": {"type": "array", "items": {"type": "string"}}, "y": SMALL},
        },
    )
    closed = 0
    with LlamaClient(
        str(model), ctx_size=1024, parallel=1, threads=1, max_retries=0, **options_of(kind)
    ) as client:
        for max_tokens in range(2, 60, 4):
            request = LLMRequest(
                messages=[LLMMessage(role="user", content="go")],
                tools=[narrow],
                max_tokens=max_tokens,
                provider_options={
                    "tool_choice": "required",
                    "seed": max_tokens,
                    "on_truncation": "close",
                },
            )
            try:
                reply = client.generate(request)
            except CutOffError as exc:
                assert exc.partial_text is not None  # noqa: PT017 - it was cut before the call
                continue
            (call,) = reply.tool_calls
            schemas.judge(call.arguments_json, schemas.check(narrow.input_schema))
            noted: Any = (reply.raw or {})["tools"]
            assert reply.finish_reason == "length" or not noted["closed"]
            closed += bool(noted["closed"])
    assert closed


def test_raw_grammars_are_kept_to(kind: str, tiny_model_path: Path) -> None:
    gbnf, lark = 'root ::= ("ab" | "cd"){2}', "%llguidance {}\nstart: /[xy]{3}/"
    with LlamaClient(
        str(tiny_model_path), ctx_size=512, parallel=1, threads=1, **options_of(kind)
    ) as client:

        def ask(grammar: str, **more: Any) -> str:
            options = {"grammar": grammar, "seed": 1}
            messages = [LLMMessage(role="user", content="go")]
            wish = LLMRequest(messages=messages, max_tokens=20, provider_options=options, **more)
            return client.generate(wish).text

        assert set(ask(gbnf)) <= set("abcd")
        if kind == "xllamacpp":
            assert len(ask(lark)) == 3
        elif not client._source.current.capabilities.llguidance:
            with pytest.raises(LLMCapabilityError, match="llguidance"):
                ask(lark)
        with pytest.raises(LLMInvalidRequestError, match="excludes tools"):
            ask(gbnf, tools=[ADD])
        with pytest.raises(LLMInvalidRequestError, match="cannot be compiled"):
            ask("%llguidance {}\nstart: nothing")


# --- histories --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["mistral-nemo", "qwen3", "two-in-turn", None])
def speaking(
    request: pytest.FixtureRequest, kind: str, tiny_model_path: Path
) -> Iterator[LlamaClient]:
    """A client whose model has that template."""
    if kind not in LLAMA_CPP:
        pytest.skip("it renders no template on request")
    named: dict[str, Any] = {"chat_template": template(request.param)} if request.param else {}
    with LlamaClient(
        str(tiny_model_path), ctx_size=2048, parallel=1, threads=1, **named, **options_of(kind)
    ) as client:
        yield client


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=HISTORIES)
def test_every_history_is_brought_into_a_form_that_the_template_takes(
    speaking: LlamaClient, history: list[dict[str, Any]]
) -> None:
    endpoint = speaking._source.current
    wish = wishes.Wish(messages=tuple(history))
    for repair in (1, 2):
        body, _ = payload.body(replace(wish, repair=repair), endpoint, seed=1, stream=False)
        rendered = {"messages": body["messages"]}
        flow = fetch(partial(_rendering, rendered), Clock(Limits()))
        _, head, answer = speaking._run(flow)
        assert head.status == 200 or repair == 1, (answer, rendered)
        if head.status == 200:
            return
    raise AssertionError("no form was taken")


def _rendering(body: dict[str, object], endpoint: Endpoint) -> HttpRequest:
    return post(endpoint, "/apply-template", body)


def test_a_history_out_of_order_is_answered(speaking: LlamaClient) -> None:
    orphan = LLMMessage(role="tool", content="3", tool_call_id="gone", tool_name="add")
    history = [
        LLMMessage(role="assistant", content="Hello."),
        LLMMessage(role="user", content="a"),
        LLMMessage(role="user", content=""),
        LLMMessage(role="system", content="Be brief."),
        orphan,
        LLMMessage(role="user", content="b"),
    ]
    request = LLMRequest(messages=history, max_tokens=3, provider_options={"seed": 1})
    assert speaking.generate(request).finish_reason in {"length", "stop"}


# --- thoughts ---------------------------------------------------------------------------------

EXAMPLES = (
    "Think first, as here.\n2 plus 2?\n<think>\nI add 2 and 2.\n</think>\n\n4\n5 plus 1?\n"
    "<think>\nI add 5 and 1.\n</think>\n\n6\n3 plus 4?"
)


@pytest.fixture(scope="module", params=["offered", "opened"])
def thinker(request: pytest.FixtureRequest, kind: str, smollm2_path: Path) -> Iterator[LlamaClient]:
    """The real model made to think: where it likes to, and where its template begins it."""
    if kind not in LLAMA_CPP:
        pytest.skip("its templates cannot be set")
    text = template("qwen3")
    if request.param == "opened":
        begun = "{{- '<|im_start|>assistant\\n' }}"
        assert text.count(begun) == 1
        text = text.replace(begun, "{{- '<|im_start|>assistant\\n<think>\\n' }}")
    with LlamaClient(
        str(smollm2_path), ctx_size=1024, parallel=1, threads=1, chat_template=text,
        **options_of(kind),
    ) as client:  # fmt: skip
        thinking = client._source.current.capabilities.thinking
        assert thinking is not None
        assert thinking.opened == (request.param == "opened")
        yield client


def think(max_tokens: int = 60, **more: Any) -> LLMRequest:
    options = {"seed": 1, **more.pop("options", {})}
    messages = [LLMMessage(role="user", content=EXAMPLES)]
    return LLMRequest(
        messages=messages,
        max_tokens=max_tokens,
        temperature=0.0,
        provider_options=options,
        **more,
    )


def test_json_and_calls_follow_thoughts_that_are_kept_apart(thinker: LlamaClient) -> None:
    document: dict[str, object] = dict(ADD.input_schema)
    reply = thinker.generate(think(response_schema=document))
    schemas.judge(reply.text, schemas.check(document))
    assert "I add 3 and 4." in str((reply.raw or {})["reasoning"])
    request = think(tools=[ADD], options={"tool_choice": "required"})
    deltas = [delta.tool_call_delta for delta in thinker.stream(request)]
    arguments = "".join(delta.arguments_json_delta or "" for delta in deltas if delta)
    schemas.judge(arguments, schemas.check(document))


def test_a_budget_that_thinking_used_up_is_stated(thinker: LlamaClient) -> None:
    thinking = thinker._source.current.capabilities.thinking
    if thinking is None or not thinking.opened:
        return
    reply = thinker.generate(think(max_tokens=3))
    assert (reply.text, reply.finish_reason) == ("", "length")
    assert (reply.raw or {})["empty_text"] == "The token budget ended the thinking."
    with pytest.raises(LLMBadResponseError, match="the JSON had not begun"):
        thinker.generate(think(max_tokens=3, response_schema=dict(ADD.input_schema)))
