"""Any schema and any grammar at all: the engine survives, and serves others meanwhile."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from runtime import (
    LlamaClient,
    LLMBadResponseError,
    LLMChatParams,
    LLMError,
    LLMInvalidRequestError,
    LLMRequest,
    ToolSpec,
)
from runtime.contracts import LLMMessage
from runtime.errors import ContextOverflowError
from runtime.inference import schema as schemas
from runtime.testing.tiny_model import TinyShape, build_tiny_model
from tests.conftest import ENGINES
from tests.engine.test_client_engine import options_of
from tests.unit.test_hostile_schemas import KEYWORDS, WILD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUEST_BOUND_S = 30.0
"""What any one request here may take, on a machine that does other things too."""


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def client(kind: str, tiny_model_path: Path) -> Iterator[LlamaClient]:
    options = options_of(kind)
    with LlamaClient(str(tiny_model_path), ctx_size=1024, parallel=2, threads=1, **options) as made:
        yield made


def nested(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        made = {"type": "object", "properties": {"a": made}, "required": ["a"]}
    return made


def members(count: int) -> dict[str, Any]:
    part = {"type": "object", "properties": {"x": {"type": "string", "maxLength": 9}}}
    return {"type": "object", "properties": {f"member-{n}": part for n in range(count)}}


HUGE: dict[str, dict[str, Any]] = {
    "an enum of 10,000": {"enum": [f"value-{n}" for n in range(10_000)]},
    "200 levels": nested(200),
    "a megabyte": members(12_000),
    "a format engines may not know": {"type": "string", "format": "uri"},
    "a tree": {"type": "array", "items": {"$ref": "#"}},
    "what is impossible": {"type": "string", "not": {"type": "string"}},
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_any_schema_is_answered_or_refused_in_time(
    client: LlamaClient, kind: str, name: str
) -> None:
    pid = client.server.pid if client.server else None
    options: dict[str, object] = {"on_truncation": "close", "seed": 1}
    params = LLMChatParams(response_schema=HUGE[name], max_tokens=8, provider_options=options)
    started = time.monotonic()
    try:
        reply = client.chat("Go.", params=params)
    except ContextOverflowError:
        assert kind == "llama-cpp-python"  # its model is only told of such schemas
    except LLMBadResponseError:
        assert name in {"what is impossible", "200 levels", "a format engines may not know"}
    else:
        schemas.judge(reply.text, schemas.check(HUGE[name]))
    assert time.monotonic() - started < REQUEST_BOUND_S
    assert client.server is not None
    assert client.server.pid == pid


TYPES = ["string", "object", "array", "integer", "number", "boolean", "null"]
PARTS = st.recursive(
    st.fixed_dictionaries(
        {"type": st.sampled_from(TYPES)},
        optional={
            "minLength": st.integers(0, 70),
            "pattern": st.sampled_from(["^a+$", "b", "^([a-z]+ )*$", "(?=x)", "^[0-9]{3,}$"]),
            "format": st.sampled_from(["date", "uri", "email", "no-such"]),
            "minimum": st.integers(-5, 5) | st.floats(-5, 5),
            "minItems": st.integers(0, 3),
            "uniqueItems": st.booleans(),
        },
    )
    | st.booleans()
    | st.builds(lambda values: {"enum": values}, st.lists(st.integers() | st.text(), min_size=1))
    | st.just({"$ref": "#"}),
    lambda inner: (
        st.builds(lambda part: {"type": "array", "items": part}, inner)
        | st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3))
        | st.builds(
            lambda parts, names: {"type": "object", "properties": parts, "required": names},
            st.dictionaries(st.text(max_size=3), inner, max_size=3),
            st.lists(st.sampled_from("ab"), max_size=2, unique=True),
        )
    ),
    max_leaves=5,
)
DOCUMENTS = PARTS | st.dictionaries(st.sampled_from(KEYWORDS), WILD, max_size=3)
"""Schemas, most of them valid, and what is none."""

ENDLESS: dict[str, dict[str, Any]] = {
    "text": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    "letters": {"type": "string", "pattern": "^[a-z]+$"},
    "nesting": {"type": "array", "items": {"$ref": "#"}},
    "list": {"type": "array", "items": {"const": "x"}, "minItems": 5},
}


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(document=DOCUMENTS)
def test_any_generated_schema_is_answered_or_refused(client: LlamaClient, document: Any) -> None:
    server = client.server
    assert server is not None
    pid = server.pid
    options: dict[str, object] = {"on_truncation": "close", "seed": 1}
    params = LLMChatParams(response_schema=document, max_tokens=6, provider_options=options)
    try:
        reply = client.chat("Go.", params=params)
    except LLMInvalidRequestError:
        with pytest.raises(LLMInvalidRequestError):  # it is no engine that refused it
            schemas.check(document)
    except LLMError as exc:
        event(type(exc).__name__)
    else:
        schemas.judge(reply.text, schemas.check(document))
    assert server.pid == pid


@pytest.mark.parametrize("name", ENDLESS)
def test_what_a_schema_leaves_open_ends_by_itself(client: LlamaClient, name: str) -> None:
    def ended(**bounds: int | None) -> str:
        options: dict[str, object] = {"seed": 1, "bounds": bounds, "on_truncation": "close"}
        params = LLMChatParams(
            response_schema=ENDLESS[name], max_tokens=200, temperature=0, provider_options=options
        )
        reply = client.chat("Go on and on.", params=params)
        schemas.judge(reply.text, schemas.check(ENDLESS[name]))
        return str(reply.finish_reason)

    assert ended(text_chars=40, items=6, depth=3) == "stop"
    if name == "letters":  # this model repeats itself, to the end of its budget
        assert ended(text_chars=None) == "length"


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= " + "(" * 500 + '"a"' + ")" * 500,
        "root ::= " + '"a"? ' * 500 + '"b"',
        "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1}\n" for n in range(4000)) + 'r4000 ::= "a"',
        "%llguidance {}\nstart: r0\n"
        + "".join(f"r{n}: r{n + 1}\n" for n in range(400))
        + 'r400: "a"',
    ],
)
def test_an_engine_survives_what_is_let_through(client: LlamaClient, grammar: str) -> None:
    pid = client.server.pid if client.server else None
    options: dict[str, object] = {"grammar": grammar}
    with contextlib.suppress(LLMError):  # an engine may refuse it, or take none of its kind
        client.chat("Go.", params=LLMChatParams(max_tokens=4, provider_options=options))
    assert client.chat("Go.", params=LLMChatParams(max_tokens=4)).text
    assert client.server is not None
    assert client.server.pid == pid


def test_an_engine_survives_arguments_nested_to_the_limit(client: LlamaClient) -> None:
    pid = client.server.pid if client.server else None
    tool = ToolSpec(name="f", description="", output_schema={}, input_schema=nested(100))
    request = LLMRequest(
        messages=[LLMMessage(role="user", content="Go.")],
        tools=[tool],
        max_tokens=4,
        provider_options={"tool_choice": "auto", "junk": json.loads("[" * 500 + "]" * 500)},
    )
    with contextlib.suppress(LLMError):  # cut off, or a field that the server does not know
        client.generate(request)
    assert client.chat("Go.", params=LLMChatParams(max_tokens=4)).text
    assert client.server is not None
    assert client.server.pid == pid


def test_a_large_schema_does_not_starve_a_stream(client: LlamaClient, kind: str) -> None:
    """Compiling happens beside the stream, and what an engine gets to compile is bounded."""
    if kind == "llama-cpp-python":
        pytest.skip("It answers one request at a time.")
    ended = threading.Event()

    def ask() -> None:
        params = LLMChatParams(
            response_schema=members(11_000),
            max_tokens=4,
            provider_options={"on_truncation": "close", "seed": 1},
        )
        client.chat("Go.", params=params)
        ended.set()

    other = threading.Thread(target=ask)
    gaps: list[float] = []
    params = LLMChatParams(max_tokens=900, temperature=0, provider_options={"ignore_eos": True})
    last = time.monotonic()
    for number, _ in enumerate(client.stream_chat("Go on.", params=params)):
        if number == 3:
            other.start()
        gaps.append(time.monotonic() - last)
        last = time.monotonic()
        if ended.is_set() and number > 10:
            break
    other.join()
    assert ended.is_set()
    assert max(gaps[1:]) < 2.0


def test_a_vocabulary_that_llguidance_fails_at_is_known(kind: str, tmp_path: Path) -> None:
    """One less than a multiple of 32: it panics, and the engine goes on without the grammar."""
    path = tmp_path / "odd.gguf"
    build_tiny_model(path, shape=TinyShape(vocabulary=607))
    options = options_of(kind)
    with LlamaClient(str(path), ctx_size=512, parallel=1, threads=1, **options) as made:
        server = made.server
        assert server is not None
        assert not server.endpoint(60).capabilities.llguidance
        params = LLMChatParams(
            response_schema={"type": "object", "required": ["a"]},
            max_tokens=8,
            provider_options={"on_truncation": "close", "seed": 1},
        )
        reply = made.chat("Go.", params=params)
        assert "a" in json.loads(reply.text)
        assert reply.text.startswith("{")
