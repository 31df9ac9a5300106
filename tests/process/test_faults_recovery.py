"""Fault battery: requests under way while their engine dies, stands still, or is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime import CrashingRequestError, LlamaClient, LLMChatParams, RestartPolicy
from runtime.server.lifecycle import State
from runtime.server.probe import ask
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    Saw = Callable[[object], None]

pytestmark = pytest.mark.process

BENCH = Path(__file__).parents[2] / "scripts" / "recovery_bench.py"
SOON = RestartPolicy(backoff_base_s=0.0, max_restarts=20)
PIECES = 40


def fake_client(binary: Path, model: Path, **fake: Any) -> LlamaClient:
    return LlamaClient(
        str(model),
        engine="llama-server",
        engine_path=str(binary),
        env={"FAKE": json.dumps(fake)},
        restart=SOON,
    )


def story(about: str) -> str:
    return "".join(f"{about} {number}. " for number in range(PIECES))


def heard(client: LlamaClient, prompt: str) -> str:
    return "".join(event.delta_text or "" for event in client.stream_chat(prompt))


@pytest.mark.faults("a request that kills the engine, among others", "ready", "given up alone")
def test_a_request_that_kills_the_engine_is_given_up_alone(
    fake_binary: Path, tiny_model_path: Path, saw: Saw
) -> None:
    """All are at work at the first two deaths; the third one names the cause."""
    with fake_client(fake_binary, tiny_model_path, story=PIECES) as client:
        good = ["the sea", "the sky", "the sun"]
        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(heard, client, about) for about in good]
            poisoned = pool.submit(heard, client, "poison")
            with pytest.raises(CrashingRequestError) as caught:
                poisoned.result(60)
            assert [each.result(60) for each in others] == [story(about) for about in good]
        saw(caught.value.message)
        assert set(caught.value.endings) == {"SIGSEGV"}
        assert 2 <= caught.value.crashes <= 3
        assert story("poison").startswith(caught.value.partial_text or "")
        assert len(caught.value.partial_text or "") >= len("poison 0. ") * 4
        assert client.server is not None
        assert client.server.snapshot().restarts == caught.value.crashes


@pytest.mark.faults("a request alone that kills the engine", "ready", "given up after two deaths")
def test_a_request_alone_is_given_up_after_two_deaths(
    fake_binary: Path, tiny_model_path: Path, saw: Saw
) -> None:
    with fake_client(fake_binary, tiny_model_path, story=PIECES) as client:
        with pytest.raises(CrashingRequestError) as caught:
            client.chat("poison")
        saw(caught.value.message)
        assert caught.value.crashes == 2
        assert client.chat("the sea").text == story("the sea")


@pytest.mark.faults("a stream is left while its engine starts again", "ready", "at once")
def test_a_stream_that_waits_for_an_engine_can_be_left(
    fake_binary: Path, tiny_model_path: Path
) -> None:
    with fake_client(fake_binary, tiny_model_path, story=PIECES, loading_s=1.5) as client:
        server = client.server
        assert server is not None
        stream = client.stream_chat("the sea")
        next(stream)
        os.kill(server.pid or 0, signal.SIGKILL)
        thread = threading.Thread(target=lambda: list(stream))
        thread.start()
        wait_until("it starts again", lambda: server.state is State.LOADING)
        left_at = time.monotonic()
        stream.close()
        assert time.monotonic() - left_at < 0.1
        thread.join(5)
        assert time.monotonic() - left_at < 0.5
        assert not thread.is_alive()


ENGINE: dict[str, Any] = {"engine": "xllamacpp", "ctx_size": 8192, "parallel": 2, "threads": 1}
LONG = LLMChatParams(
    temperature=0.8, max_tokens=8000, provider_options={"seed": 3, "ignore_eos": True}
)


def busy(client: LlamaClient) -> int:
    """Slots at work, as the engine tells."""
    server = client.server
    assert server is not None
    slots: Any = ask(server.base_url or "", "/slots", api_key=server.api_key, timeout_s=5).body
    return sum(slot["is_processing"] for slot in slots)


@pytest.mark.engine
@pytest.mark.parametrize("how", ["close", "close elsewhere", "drop", "interrupt"])
def test_leaving_a_stream_frees_its_slot_at_once(tiny_model_path: Path, how: str) -> None:
    with LlamaClient(str(tiny_model_path), **ENGINE) as client:
        streams = [client.stream_chat("Tell me more.", params=LONG) for _ in range(2)]
        for stream in streams:
            next(stream)
        waiting = threading.Thread(target=lambda: list(streams[0]))
        if how == "close elsewhere":
            waiting.start()
        assert busy(client) == 2
        left_at = time.monotonic()
        if how == "drop":
            del streams[0], stream
        elif how == "interrupt":
            with pytest.raises(KeyboardInterrupt):
                interrupted(streams[0])
        else:
            streams[0].close()
        wait_until("its slot is free", lambda: busy(client) == 1, timeout_s=5)
        assert time.monotonic() - left_at < (0.2 if how != "interrupt" else 0.4)
        if how == "close elsewhere":
            waiting.join(5)
            assert not waiting.is_alive()
        next(streams[-1])  # the other one is none the wiser


def interrupted(stream: Any) -> None:
    """Ctrl-C while the next piece is waited for."""
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in stream:
            pass
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.engine
@pytest.mark.faults("xllamacpp: SIGSTOP in mid-stream", "ready", "the same answer", long=True)
def test_a_stopped_engine_costs_a_stream_time_and_nothing_else(
    tiny_model_path: Path, saw: Saw
) -> None:
    asked = LLMChatParams(temperature=0.8, max_tokens=400, provider_options=LONG.provider_options)
    with LlamaClient(str(tiny_model_path), wedge_timeout_s=2.0, **ENGINE) as client:
        expected = client.chat("Tell me more.", params=asked)
        server = client.server
        assert server is not None
        text, response = "", None
        for number, event in enumerate(client.stream_chat("Tell me more.", params=asked)):
            text += event.delta_text or ""
            response = event.response
            if number == 5:
                os.kill(server.pid or 0, signal.SIGSTOP)
        assert response is not None
        assert text == response.text == expected.text
        recovery: Any = (response.raw or {})["recovery"]
        saw(recovery)
        assert recovery["exact"]


@pytest.mark.engine
@pytest.mark.faults("xllamacpp: kills under load", "ready", "nothing lost, doubled or wrong")
def test_kills_under_load_lose_nothing(tmp_path: Path, saw: Saw) -> None:
    """The short form of scripts/recovery_bench.py."""
    said = tmp_path / "said.json"
    sizes = ["--streams", "3", "--structured", "2", "--stops", "0", "--requests", "300"]
    done = subprocess.run(
        [sys.executable, str(BENCH), "--model", "tiny", *sizes, "--tokens", "120", "--threads", "1",
         "--at-once", "16", "--kill-every", "0.3", "--json", str(said)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows: Any = json.loads(said.read_text("utf-8"))
    saw({name: row["same"] for name, row in rows.items()})
    assert rows["(a) temperature 0.8"]["breaks"] >= 1
    assert rows["(c) requests"]["breaks"] >= 1
    assert all(row["wrong"] == row["others"] == row["inexact"] == 0 for row in rows.values())
