"""What the gateway offers besides chat, and how it behaves under pressure, before a real engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import openai
import pytest

from runtime.testing.tiny_model import build_tiny_model
from tests.conftest import ENGINES, is_gone, wait_until
from tests.gateways import Gateway, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.engine, pytest.mark.process]

HELLO: Any = [{"role": "user", "content": "Hello there."}]


@pytest.fixture(scope="module")
def models(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models, the first of which is the default."""
    second = tmp_path_factory.mktemp("second") / "second.gguf"
    build_tiny_model(second)
    return [str(tiny_model_path), str(second)]


@pytest.fixture(scope="module")
def gateway(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("home")
    # With a small batch answers are the same alone and in company: docs/recovery.md.
    slots = ("--parallel", "4", "--batch-size", "32")
    with serving("--models", ",".join(models), "--ctx-size", "2048", *slots, home=home) as running:
        yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with gateway.client(max_retries=0) as made:
        yield made


def states(gateway: Gateway) -> dict[str, str]:
    found: dict[str, str] = gateway.get("/health").body["models"]
    return found


# --- other endpoints ----------------------------------------------------------------------------


def test_completions_go_on_with_a_text(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny-chat", "prompt": "Once upon", "max_tokens": 8, "seed": 4}
    whole = client.completions.create(**asked, echo=True)
    text = whole.choices[0].text
    assert text.startswith("Once upon")
    assert whole.usage
    assert whole.usage.completion_tokens == 8
    pieces = client.completions.create(**asked, stream=True)
    assert "Once upon" + "".join(piece.choices[0].text for piece in pieces) == text
    assert client.completions.create(model="tiny-chat", prompt="Once").usage.completion_tokens <= 16  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "more", [{"suffix": "."}, {"logprobs": 2}, {"n": 3}, {"prompt": ["a", "b"]}, {"prompt": [1]}]
)
def test_what_completions_cannot_do_is_refused(client: openai.OpenAI, more: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "tiny-chat", "prompt": "Once", **more})
    assert caught.value.param == next(iter(more))


def test_embeddings_in_both_encodings(client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model="tiny-chat", input=["one", "two"])  # base64 by default
    plain = client.embeddings.create(
        model="tiny-chat", input=["one", "two"], encoding_format="float"
    )
    assert [each.index for each in packed.data] == [0, 1]
    for ours, theirs in zip(packed.data, plain.data, strict=True):
        assert ours.embedding == pytest.approx(theirs.embedding, abs=1e-6)
    assert packed.usage.prompt_tokens == plain.usage.prompt_tokens > 0
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="tiny-chat", input="one", dimensions=7)
    assert caught.value.param == "dimensions"


def test_texts_become_tokens_and_texts_again(gateway: Gateway) -> None:
    found = gateway.post("/tokenize", {"content": "hello there"}).body
    assert found["count"] == len(found["tokens"]) > 0
    back = gateway.post("/detokenize", {"tokens": found["tokens"]}).body
    assert back["content"] == "hello there"


def test_prometheus_is_told_what_was_done(gateway: Gateway, client: openai.OpenAI) -> None:
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    def value(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(gateway.get("/metrics").body)
        samples = [sample for family in families for sample in family.samples]
        return sum(
            s.value for s in samples if s.name == name and labels.items() <= s.labels.items()
        )

    asked = {"model": "tiny-chat", "kind": "completion"}
    before = value("llama_runtime_model_tokens_total", **asked)
    client.chat.completions.create(model="tiny-chat", messages=HELLO, max_tokens=5)
    assert value("llama_runtime_model_tokens_total", **asked) == before + 5
    path = "/v1/chat/completions"
    count = value("llama_runtime_http_requests_total", path=path, status="200")
    assert count >= 1
    assert value("llama_runtime_http_request_duration_seconds_count", path=path) >= count
    assert value("llama_runtime_model_state", model="tiny-chat", state="ready") == 1


# --- several models -----------------------------------------------------------------------------


def test_a_second_model_is_loaded_when_asked_for_and_kept_as_long_as_was_said(
    gateway: Gateway, client: openai.OpenAI
) -> None:
    assert states(gateway)["second"] == "unloaded"
    reply = client.chat.completions.create(
        model="second", messages=HELLO, max_tokens=2, extra_body={"keep_alive": "10m"}
    )
    assert reply.model == "second"
    assert states(gateway) == {"tiny-chat": "ready", "second": "ready"}
    engine = gateway.engine_pid("second")
    client.chat.completions.create(
        model="second", messages=HELLO, max_tokens=2, extra_body={"keep_alive": 0}
    )
    wait_until("it is unloaded", lambda: states(gateway)["second"] == "unloaded")
    assert is_gone(engine)
    assert gateway.get("/health").body["status"] == "ready"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="second", messages=HELLO, extra_body={"keep_alive": "soon"}
        )
    assert caught.value.param == "keep_alive"


# --- pressure -----------------------------------------------------------------------------------


def seconds_until_free(gateway: Gateway) -> float:
    """After a client hangs up: a plain socket, so that nothing but its end tells of that."""
    address = urlsplit(gateway.url)
    body = json.dumps({"messages": HELLO, "max_tokens": 1900, "stream": True, "ignore_eos": True})
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert gateway.under_way() == 1
    left_at = time.monotonic()
    wait_until("the slot is free", lambda: gateway.under_way() == 0, timeout_s=2)
    return time.monotonic() - left_at


def test_a_client_that_goes_away_frees_its_slot_within_200_ms(gateway: Gateway) -> None:
    assert min(seconds_until_free(gateway) for _ in range(3)) < 0.2
    counts = gateway.get("/metrics").body
    assert 'http_requests_total{path="/v1/chat/completions",status="499"} 3.0' in counts
    assert 'answers_total{model="tiny-chat",outcome="cancelled"} 3.0' in counts


def test_64_clients_on_4_slots_without_an_error(gateway: Gateway) -> None:
    def ask(number: int) -> int:
        with gateway.client(max_retries=0) as each:
            reply = each.chat.completions.create(
                model="tiny-chat", messages=HELLO, max_tokens=4, seed=number
            )
        assert reply.usage
        return reply.usage.completion_tokens

    with ThreadPoolExecutor(64) as pool:
        counts = list(pool.map(ask, range(64)))
    assert len(counts) == 64
    assert gateway.under_way() == 0


def test_streams_outlive_their_engine_and_health_answers_meanwhile(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    """20 streams, 4 at work and 16 in line, when the engine is killed.

    A restart that takes the spare is over within 50 ms. So the spare is held still at first, and
    what is said of the restart does not hang on who happens to look meanwhile.
    """
    options = ("--ctx-size", "2048", "--parallel", "4")
    with serving(tiny_model_path, *options, home=tmp_path) as gateway:
        asyncio.run(_kill_amid_20_streams(gateway))


async def _kill_amid_20_streams(gateway: Gateway) -> None:
    begun = asyncio.Event()
    seen: list[tuple[int, str]] = []
    took_s: list[float] = []

    def look() -> tuple[int, str]:
        began = time.monotonic()
        health = gateway.get("/health")
        took_s.append(time.monotonic() - began)
        seen.append((health.status, health.body["status"]))
        return seen[-1]

    # Of one event loop: 20 threads would keep the killer from its turn for longer than they stream.
    options: Any = {"base_url": f"{gateway.url}/v1", "api_key": "none", "max_retries": 0}
    async with openai.AsyncOpenAI(**options, timeout=60) as client:

        async def ask(number: int) -> tuple[str, list[str]]:
            said = ""
            scored: list[str] = []
            stream = await client.chat.completions.create(
                model="tiny-chat",
                messages=HELLO,
                max_tokens=400 + 200 * number,  # so that they never end all together
                seed=number,
                temperature=0.8,
                extra_body={"ignore_eos": True},
                stream=True,
                logprobs=number == 3,
            )
            async for chunk in stream:
                said += chunk.choices[0].delta.content or ""
                scores = chunk.choices[0].logprobs
                scored += [each.token for each in (scores and scores.content) or ()]
                if said:  # the first chunk comes before any token
                    begun.set()
            assert chunk.choices[0].finish_reason == "length"
            return said, scored

        undisturbed = [await ask(number) for number in range(4)]
        assert len(undisturbed[3][1]) > 400, "of nearly every token"
        begun.clear()
        wait_until("a spare waits", lambda: gateway.spare_pid() is not None)
        engine, spare = gateway.engine_pid(), gateway.spare_pid()
        assert spare is not None
        look()
        asked = [asyncio.create_task(ask(number % 4)) for number in range(20)]
        await begun.wait()
        os.kill(spare, signal.SIGSTOP)
        os.kill(engine, signal.SIGKILL)
        try:
            while await asyncio.to_thread(look) != (200, "degraded"):
                assert len(seen) < 1000, "its death is told"
            for _ in range(50):
                await asyncio.to_thread(look)
            assert not all(each.done() for each in asked), "they wait"
        finally:
            os.kill(spare, signal.SIGCONT)
        while not all(each.done() for each in asked):
            await asyncio.to_thread(look)
    assert [each.result() for each in asked] == [undisturbed[n % 4] for n in range(20)]
    told = [verdict for verdict, _ in groupby(seen)]
    assert told == [(200, "ready"), (200, "degraded"), (200, "ready")]
    assert max(took_s) < 1
    (model,) = gateway.get("/snapshot").body["models"]
    assert model["counters"]["recoveries"] > 0, "an answer was interrupted"
    assert model["counters"]["failed"] == 0
    assert model["snapshot"]["pid"] == spare


def test_the_engine_ends_with_a_gateway_that_is_killed(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    with serving(tiny_model_path, "--ctx-size", "256", home=tmp_path) as first:
        engine = first.engine_pid()
        first.process.kill()
        first.process.wait(5)
        wait_until("the engine is gone", lambda: is_gone(engine), timeout_s=1)
    with serving(tiny_model_path, "--ctx-size", "256", home=tmp_path) as second:
        assert second.get("/health").body["status"] == "ready"


@pytest.mark.skipif("llama-cpp-python" not in ENGINES, reason="it is not here")
def test_llama_cpp_python_serves_behind_it(tiny_model_path: Path, tmp_path: Path) -> None:
    """What this engine tells less of, or in another way, is no surprise to a client."""
    options = ("--engine", "llama-cpp-python", "--ctx-size", "512")
    with serving(tiny_model_path, *options, home=tmp_path) as running:
        with running.client(max_retries=0) as client:
            asked: Any = {"model": "tiny-chat", "messages": HELLO, "max_tokens": 4, "seed": 1}
            usage: Any = {"include_usage": True}
            *chunks, last = client.chat.completions.create(
                **asked, stream=True, stream_options=usage
            )
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert last.choices == []
            assert last.usage is None, "numbers or nothing"
            with pytest.raises(openai.BadRequestError, match="llama-cpp-python tells no logprobs"):
                client.chat.completions.create(**asked, logprobs=True)
            long = [{"role": "user", "content": "word " * 1000}]
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(**{**asked, "messages": long})
            assert caught.value.code == "context_length_exceeded"
        plain = running.post("/tokenize", {"content": "Hello"}).body["tokens"]
        whole = running.post("/tokenize", {"content": "Hello", "add_special": True}).body["tokens"]
        assert plain
        assert whole[len(whole) - len(plain) :] == plain
        assert running.post("/detokenize", {"tokens": plain}).body["content"].strip() == "Hello"
        pieces = running.post("/tokenize", {"content": "Hello", "with_pieces": True})
        assert pieces.status == 400
