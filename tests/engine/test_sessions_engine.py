"""A conversation that is put away and brought back goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from runtime import (
    AsyncLlamaClient,
    IntegrityError,
    LlamaClient,
    LLMCapabilityError,
    LLMChatParams,
    LLMInvalidRequestError,
    LLMMessage,
    LLMRequest,
    RestartPolicy,
    SessionMismatchError,
    SessionNotFoundError,
    SessionStore,
    ToolSpec,
)
from runtime.settings import directories
from runtime.testing.tiny_model import build_tiny_model
from tests.conftest import ENGINES, wait_until
from tests.engine.test_client_engine import LLAMA_CPP, options_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.engine

GREEDY = LLMChatParams(temperature=0, max_tokens=12, provider_options={"seed": 1})
SYSTEM = "You are a careful agent. " + "Follow the rules of the house. " * 30
ADD = ToolSpec(
    name="add",
    description="Adds.",
    input_schema={"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    output_schema={},
)


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param not in LLAMA_CPP:
        pytest.skip("it cannot save what it has computed")
    return str(request.param)


def client_of(kind: str, model: Path, **options: Any) -> LlamaClient:
    settings: dict[str, Any] = {"ctx_size": 1024, "parallel": 2, "threads": 1, **options_of(kind)}
    return LlamaClient(str(model), **(settings | options))


def say(role: Any, content: str) -> LLMMessage:
    return LLMMessage(role=role, content=content)


def begun(client: LlamaClient, task: str = "Begin.") -> list[LLMMessage]:
    """A conversation with one answer."""
    messages = [say("system", SYSTEM), say("user", task)]
    return [*messages, say("assistant", client.chat(messages, params=GREEDY).text)]


def gone_on(client: LlamaClient, messages: Any) -> tuple[str, float]:
    """The next answer, and the share of the conversation so far that was reused."""
    reply: Any = client.chat([*messages, say("user", "Go on.")], params=GREEDY)
    cache = reply.raw["cache"]
    return reply.text, cache["reused"] / (cache["reused"] + cache["processed"])


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_restored_conversation_goes_on_in_another_process(
    kind: str, tiny_model_path: Path, parallel: int
) -> None:
    with client_of(kind, tiny_model_path, parallel=parallel) as client:
        messages = begun(client)
        saved = client.save_session("talk", messages)
        uninterrupted = gone_on(client, messages)
    assert uninterrupted[1] > 0.9, "saving took nothing away"
    assert saved.path.stat().st_mode & 0o777 == 0o600
    assert saved.path.parent.stat().st_mode & 0o777 == 0o700
    with client_of(kind, tiny_model_path, parallel=parallel) as client:
        client.chat("Something else.", params=GREEDY)
        restored = client.restore_session("talk")
        assert restored.tokens == saved.tokens
        assert restored.reused >= 0.95 * saved.tokens
        assert [(m.role, m.content) for m in restored.messages] == [
            (m.role, m.content) for m in messages
        ]
        assert gone_on(client, restored.messages) == uninterrupted
        folder = client._source.current.slot_folder
        assert folder
        assert list(folder.iterdir()) == []
    assert not folder.exists(), "it ends with the server"


def test_what_the_engine_had_dropped_is_computed_and_saved(
    kind: str, tiny_model_path: Path
) -> None:
    with client_of(kind, tiny_model_path) as client:
        messages = begun(client)
        for number in range(5):
            begun(client, f"Another task, number {number}.")
        saved = client.save_session("talk", messages)
        assert saved.reused >= 0.95 * (saved.reused + saved.processed - 1)
        begun(client, "One more.")
        client.restore_session("talk")
        assert gone_on(client, messages)[1] > 0.9


def test_tools_and_their_calls_come_back(kind: str, tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "tools.gguf", tools=True)
    options: dict[str, object] = {"seed": 1, "tool_choice": "required"}
    asked = [say("system", SYSTEM), say("user", "Add.")]
    request = LLMRequest(
        messages=asked, tools=[ADD], max_tokens=40, temperature=0, provider_options=options
    )
    with client_of(kind, model) as client:
        reply = client.generate(request)
        called: Any = SimpleCall(reply.text, reply.tool_calls)
        client.save_session("calls", [*asked, called], tools=[ADD])
    with client_of(kind, model) as client:
        restored = client.restore_session("calls")
        assert restored.messages[-1].tool_calls == reply.tool_calls
        call_id = reply.tool_calls[0].call_id
        result = LLMMessage(role="tool", content="3", tool_call_id=call_id, tool_name="add")
        further = LLMRequest(
            messages=[*restored.messages, result],
            tools=[ADD],
            max_tokens=8,
            provider_options={"seed": 1},
        )
        cache: Any = (client.generate(further).raw or {})["cache"]
        assert cache["reused"] > cache["processed"]


class SimpleCall:
    """An assistant's message as agents hold it."""

    role = "assistant"

    def __init__(self, content: str, tool_calls: Any) -> None:
        self.content = content
        self.tool_calls = tool_calls


def test_another_model_context_or_cache_is_refused_by_name(
    kind: str, tiny_model_path: Path, tmp_path: Path
) -> None:
    with client_of(kind, tiny_model_path) as client:
        path = client.save_session(tmp_path / "talk.session", begun(client)).path
    other = build_tiny_model(tmp_path / "other.gguf", tools=True)
    cases: list[tuple[Any, dict[str, Any], set[str]]] = [
        (other, {}, {"model", "chat template"}),
        (tiny_model_path, {"ctx_size": 512}, {"context"}),
        (tiny_model_path, {"parallel": 1}, {"slots"}),
        (tiny_model_path, {"cache_type_k": "q8_0", "flash_attn": "on"},
         {"KV cache", "flash attention"}),
    ]  # fmt: skip
    for model, options, differing in cases:
        with client_of(kind, model, **options) as client:
            with pytest.raises(SessionMismatchError) as caught:
                client.restore_session(path)
            assert set(caught.value.differences) == differing
            for name in differing:
                assert name in caught.value.message
            assert client.chat("hi", params=GREEDY).text


def test_a_state_that_is_not_what_it_says_is_refused_by_its_proof(
    kind: str, tiny_model_path: Path
) -> None:
    """The file is whole, but the engine's bytes are another conversation's."""
    store = SessionStore()
    with client_of(kind, tiny_model_path) as client:
        client.save_session("one", begun(client))
        other = [say("user", "Something quite different. " * 20)]
        client.chat(other, params=GREEDY)
        client.save_session("two", other)
        state = directories().state / "bytes"
        store.extract("two", state)
        head = store.head("one")
        forged = replace(head, state_bytes=state.stat().st_size)
        store.write("forged", forged, state)
    with client_of(kind, tiny_model_path) as client:
        with pytest.raises(SessionMismatchError) as caught:
            client.restore_session("forged")
        assert "tokens reused" in caught.value.differences
        assert client.restore_session("one").tokens == head.tokens


def test_damage_is_seen_before_the_engine_sees_the_file(kind: str, tiny_model_path: Path) -> None:
    with client_of(kind, tiny_model_path) as client:
        path = client.save_session("talk", begun(client)).path
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[-100_000] ^= 1
        for damaged in (whole[: len(whole) // 2], bytes(flipped), whole + b"x", b"", b"other"):
            path.write_bytes(damaged)
            with pytest.raises(IntegrityError):
                client.restore_session("talk")
        path.write_bytes(whole)
        assert client.restore_session("talk").tokens
        with pytest.raises(SessionNotFoundError):
            client.restore_session("none")
        for name in ("", "..", "a b", "-x", "x" * 101):
            with pytest.raises(LLMInvalidRequestError):
                client.save_session(name, "hi")


@pytest.mark.anyio
async def test_the_async_client_does_the_same(kind: str, tiny_model_path: Path) -> None:
    asked = [say("system", SYSTEM), say("user", "Begin.")]
    options: dict[str, Any] = {"ctx_size": 1024, "threads": 1, **options_of(kind)}
    async with AsyncLlamaClient(str(tiny_model_path), **options) as client:
        text = (await client.chat(asked, params=GREEDY)).text
        saved = await client.save_session("talk", [*asked, say("assistant", text)])
    async with AsyncLlamaClient(str(tiny_model_path), **options) as client:
        restored = await client.restore_session("talk")
        assert restored.tokens == saved.tokens
        turn = [*restored.messages, say("user", "Go on.")]
        cache: Any = ((await client.chat(turn, params=GREEDY)).raw or {})["cache"]
        assert cache["reused"] >= 0.95 * saved.tokens


def test_others_servers_and_other_engines_are_refused_by_name(
    kind: str, tiny_model_path: Path
) -> None:
    with client_of(kind, tiny_model_path) as client:
        server = client.server
        assert server
        assert server.base_url
        with (
            LlamaClient(base_url=server.base_url, api_key=server.api_key) as attached,
            pytest.raises(LLMCapabilityError, match="starts"),
        ):
            attached.save_session("talk", "hi")


@pytest.mark.skipif("llama-cpp-python" not in ENGINES, reason="it is not here")
def test_llama_cpp_python_cannot(tiny_model_path: Path) -> None:
    with (
        LlamaClient(str(tiny_model_path), engine="llama-cpp-python", threads=1) as client,
        pytest.raises(LLMCapabilityError, match="llama-cpp-python"),
    ):
        client.save_session("talk", "hi")


def test_a_restore_works_in_an_engine_that_was_started_again(
    kind: str, tiny_model_path: Path
) -> None:
    with client_of(kind, tiny_model_path) as client:
        messages = begun(client)
        client.save_session("talk", messages)
        uninterrupted = gone_on(client, messages)
        server = client.server
        assert server
        assert server.pid
        before = server.pid
        os.kill(before, signal.SIGKILL)
        wait_until("there is another engine", lambda: server.pid not in {None, before})
        server.wait_ready(20)
        client.restore_session("talk")
        assert gone_on(client, messages) == uninterrupted


def test_a_folder_left_by_a_dead_process_is_removed(kind: str, tiny_model_path: Path) -> None:
    left = directories().state / "slots" / "999999999-abcd1234"
    left.mkdir(parents=True)
    (left / "x.state").write_bytes(b"secret")
    with client_of(kind, tiny_model_path):
        assert not left.exists()
    shutil.rmtree(left, ignore_errors=True)


def test_an_engine_that_was_killed_gets_the_conversation_back_from_its_session(
    kind: str, tiny_model_path: Path
) -> None:
    """In the midst of an answer, and before the next one: nothing is computed again."""
    restart = RestartPolicy(backoff_base_s=0.01, backoff_max_s=0.01)
    with client_of(kind, tiny_model_path, batch_size=32, restart=restart) as client:
        messages = begun(client)
        client.save_session("talk", messages)
        asked = [*messages, say("user", "Go on.")]
        longer = replace(GREEDY, max_tokens=100)  # not over before it is killed
        undisturbed = client.chat(asked, params=longer)
        assert undisturbed.raw
        assert "session" not in undisturbed.raw, "the engine has it"

        def kill() -> None:
            assert client.server
            assert client.server.pid
            os.kill(client.server.pid, signal.SIGKILL)

        pace = client._backend.pace
        pace.learn(tokens=1000, seconds=100.0)
        last = None
        for number, event in enumerate(client.stream_chat(asked, params=longer)):
            last = event.response
            if number == 3:
                kill()
        assert last
        raw: Any = last.raw
        assert last.text == undisturbed.text
        assert raw["recovery"]["exact"]
        assert raw["session"]["tokens"] == raw["cache"]["reused"]

        asked = [*asked, say("assistant", last.text)]
        saved = client.save_session("talk", asked)  # what was saved before is no more
        asked.append(say("user", "And then?"))
        undisturbed = client.chat(asked, params=longer)
        kill()
        between: Any = client.chat(asked, params=longer)
        assert between.text == undisturbed.text
        assert between.raw["session"]["tokens"] == between.raw["cache"]["reused"] == saved.tokens

        for _ in range(40):
            pace.learn(tokens=1000, seconds=1e-6)
        kill()
        computed: Any = client.chat(asked, params=longer)
        assert computed.text == undisturbed.text
        assert "session" not in computed.raw, "computing it is faster"
        pace.learn(tokens=1000, seconds=100.0)
        SessionStore().path_of("talk").unlink()
        kill()
        without: Any = client.chat(asked, params=longer)
        assert without.text == undisturbed.text
        assert "session" not in without.raw, "its file is gone"


def test_an_async_client_gets_it_back_too(kind: str, tiny_model_path: Path) -> None:
    options: dict[str, Any] = {"ctx_size": 1024, "threads": 1, "batch_size": 32, **options_of(kind)}

    async def work() -> None:
        async with AsyncLlamaClient(str(tiny_model_path), parallel=1, **options) as client:
            messages = [say("system", SYSTEM), say("user", "Begin.")]
            messages.append(say("assistant", (await client.chat(messages, params=GREEDY)).text))
            await client.save_session("talk", messages)
            asked = [*messages, say("user", "Go on.")]
            before = await client.chat(asked, params=GREEDY)
            pid = client.server and client.server.pid
            assert pid
            os.kill(pid, signal.SIGKILL)
            after: Any = await client.chat(asked, params=GREEDY)
            assert after.text == before.text
            assert after.raw["session"]["tokens"] <= after.raw["cache"]["reused"]

    asyncio.run(work())
