"""Clients that use a gateway and lose it in the middle of an answer."""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from runtime import (
    AsyncLlamaClient,
    ConnectionLostError,
    EngineNotRunningError,
    LlamaClient,
    LLMChatParams,
    ModelStore,
)
from tests.conftest import wait_until
from tests.fakes.hub import FakeHub
from tests.gateways import Gateway, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.outside, pytest.mark.engine, pytest.mark.process]

MODEL = "acme/tiny"
SEEDED = LLMChatParams(
    max_tokens=1500, provider_options={"seed": 7, "ignore_eos": True}, temperature=0.8
)
BRIEF = LLMChatParams(max_tokens=2)


@pytest.fixture
def gateway(
    tiny_model_path: Path, isolated_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Gateway]:
    """Serves a model that clients of this home can also start by themselves."""
    with FakeHub() as hub:
        hub.add(MODEL, {"tiny-Q8_0.gguf": tiny_model_path.read_bytes()})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        ModelStore(offline=False).pull(MODEL)
    with serving(MODEL, home=isolated_home) as running:
        yield running


def end(gateway: Gateway, how: str) -> None:
    if how == "kill":
        gateway.process.kill()
    else:
        gateway.process.send_signal(signal.SIGTERM)
        gateway.process.send_signal(signal.SIGINT)  # the second one does not wait for streams


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_stream_goes_on_from_a_server_of_the_client_s_own(gateway: Gateway, how: str) -> None:
    with LlamaClient(MODEL, use_gateway=True) as client:
        assert client.describe()["gateway"]
        assert client.server is None
        whole = client.chat("Say something.", params=SEEDED).text
        said = ""
        for event in client.stream_chat("Say something.", params=SEEDED):
            if not said:
                end(gateway, how)
            said += event.delta_text or ""
        assert said == whole
        assert event.response
        assert event.response.raw
        recovery: Any = event.response.raw["recovery"]
        assert recovery["exact"]
        assert {each["how"] for each in recovery["interruptions"]} == {"replayed"}
        assert client.chat("Hi", params=BRIEF).text
        assert client.describe()["gateway"] is None
        assert client.server is not None


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_so_does_an_async_client_s(gateway: Gateway, how: str) -> None:
    async def talk() -> tuple[str, str, str]:
        async with AsyncLlamaClient(MODEL, use_gateway=True) as client:
            whole = await client.chat("Say something.", params=SEEDED)
            said = ""
            async for event in client.stream_chat("Say something.", params=SEEDED):
                if not said:
                    end(gateway, how)
                said += event.delta_text or ""
            return whole.text, said, (await client.chat("Hi", params=BRIEF)).text

    whole, said, more = asyncio.run(talk())
    assert said == whole
    assert more


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_where_there_is_no_such_model_the_error_says_so(
    tiny_model_path: Path, isolated_home: Path, how: str
) -> None:
    """``tiny-chat`` is a name that gateways alone know; the next one that does is used."""
    with serving(tiny_model_path, home=isolated_home) as gateway:
        client = LlamaClient("tiny-chat", use_gateway=True)
        pieces: list[str] = []

        def talk() -> None:
            for event in client.stream_chat("Say something.", params=SEEDED):
                if not pieces:
                    end(gateway, how)
                pieces.append(event.delta_text or "")

        with pytest.raises(ConnectionLostError) as broken:
            talk()
        assert broken.value.partial_text == "".join(pieces)
        with pytest.raises(EngineNotRunningError) as caught:
            client.chat("Hi", params=BRIEF)
        for error in (broken.value, caught.value):
            assert f"gateway at {gateway.url} is gone" in error.message
            assert "No model is called 'tiny-chat'" in error.message
            assert "llama-runtime serve" in str(error.hint)
    with serving(tiny_model_path, home=isolated_home) as gateway, client:
        assert client.chat("Hi", params=BRIEF).text
        used: Any = client.describe()["gateway"]
        assert used["pid"] == gateway.process.pid


def test_a_whole_answer_that_is_cut_off_comes_from_elsewhere(gateway: Gateway) -> None:
    options: dict[str, object] = {"seed": 7, "ignore_eos": True}
    long = LLMChatParams(max_tokens=4000, provider_options=options)
    with LlamaClient(MODEL, use_gateway=True) as client, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(client.chat, "Say something.", params=long) for _ in range(2)]
        wait_until("they are at work", lambda: _in_flight(gateway) == 2)
        end(gateway, "stop")
        first, second = (each.result(60) for each in asked)
        assert first.text == second.text
        assert client.server is not None


def _in_flight(gateway: Gateway) -> int:
    count: int = gateway.get("/snapshot").body["gateway"]["in_flight"]
    return count
