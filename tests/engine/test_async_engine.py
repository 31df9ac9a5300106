"""AsyncLlamaClient and the queue on a real engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from runtime import AsyncLlamaClient, LlamaClient, LLMChatParams
from tests.conftest import ENGINES, is_gone, wait_until
from tests.engine.test_client_engine import LLAMA_CPP, busy_slots, options_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from runtime import LLMStreamEvent
    from runtime.client._stream import AsyncAnswerStream

KINDS = [kind for kind in ENGINES if kind in LLAMA_CPP]
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not KINDS, reason="no engine that shows its slots"),
]

SLOTS = 4
PROMPT = "Tell me about the sea."
LONG_PROMPT = 20 * PROMPT
STORY = LLMChatParams(temperature=0.8, max_tokens=24, provider_options={"seed": 5})
ENDLESS = LLMChatParams(max_tokens=4000)


@pytest.fixture(scope="module", params=KINDS[:1])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def owner(
    kind: str, tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaClient]:
    """Who runs the engine that these tests attach to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_RUNTIME_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("LLAMA_RUNTIME_ENGINE_PATH", raising=False)
        made = LlamaClient(
            str(tiny_model_path),
            ctx_size=4096,
            threads=1,
            parallel=SLOTS,
            batch_size=32,  # answers are then the same alone and in company: docs/recovery.md
            **options_of(kind),
        )
    with made:
        yield made


def attached(owner: LlamaClient) -> AsyncLlamaClient:
    server = owner.server
    assert server is not None
    return AsyncLlamaClient(base_url=server.base_url, api_key=server.api_key)


async def every(pause_s: float) -> AsyncIterator[None]:
    """Paces a loop that looks at something; the test's own timeout bounds it."""
    while True:
        yield
        await asyncio.sleep(pause_s)


async def told(client: AsyncLlamaClient) -> str:
    texts = [event.delta_text or "" async for event in client.stream_chat(PROMPT, params=STORY)]
    return "".join(texts)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_works_under_either_event_loop(owner: LlamaClient, backend: str) -> None:
    whole = owner.chat(PROMPT, params=STORY).text

    async def work() -> None:
        texts: list[str] = []
        async with attached(owner) as client:

            async def one() -> None:
                texts.append(await told(client))

            async with anyio.create_task_group() as group:
                for _ in range(2 * SLOTS):
                    group.start_soon(one)
            with anyio.move_on_after(0.2) as scope:
                await client.chat(PROMPT, params=ENDLESS)
            assert scope.cancelled_caught
            texts.append((await client.chat(PROMPT, params=STORY)).text)
        assert texts == [whole] * (2 * SLOTS + 1)

    anyio.run(work, backend=backend)
    wait_until("every slot is free", lambda: busy_slots(owner) == 0)


def test_200_streams_share_4_slots_and_cancelling_half_leaves_the_others_alone(
    owner: LlamaClient,
) -> None:
    async def all_of_them() -> tuple[str, list[object], list[object]]:
        async with attached(owner) as client:
            alone = await told(client)
            tasks = [asyncio.create_task(told(client)) for _ in range(200)]
            async for _ in every(0.002):
                if 0 < client._source.queue.counts.waiting < 150:  # a fourth has been served
                    break
            for task in tasks[::2]:
                task.cancel()
            outcomes: list[object] = list(await asyncio.gather(*tasks, return_exceptions=True))
            counts = client._source.queue.counts
            assert (counts.running, counts.waiting) == (0, 0)
            return alone, outcomes[::2], outcomes[1::2]

    alone, cancelled, others = asyncio.run(all_of_them())
    assert others == [alone] * 100
    assert sum(isinstance(each, asyncio.CancelledError) for each in cancelled) > 50
    assert {each for each in cancelled if isinstance(each, str)} <= {alone}
    wait_until("every slot is free", lambda: busy_slots(owner) == 0)


def test_64_threads_on_4_slots_all_finish_with_their_own_answers(owner: LlamaClient) -> None:
    def ask(number: int) -> tuple[str, Any]:
        reply = owner.chat(f"{number % 4}", params=STORY)
        return reply.text, (reply.raw or {}).get("queue")

    alone = [ask(number)[0] for number in range(4)]
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(128)))
    assert [text for text, _ in answers] == alone * 32
    assert any(note for _, note in answers)


def test_four_that_come_at_once_are_all_under_way_before_one_has_ended(
    kind: str, tiny_model_path: Path
) -> None:
    """Two long prompts are begun at a time, and the next when a slot has one, not when it ends."""

    async def begin(client: AsyncLlamaClient) -> AsyncAnswerStream[LLMStreamEvent]:
        stream = client.stream_chat(LONG_PROMPT, params=ENDLESS)
        await anext(stream)
        return stream

    async def work() -> None:
        async with AsyncLlamaClient(
            str(tiny_model_path), ctx_size=4096, threads=1, parallel=SLOTS, **options_of(kind)
        ) as client:
            assert client.server
            told: Any = client.server.snapshot().performance["prompts_at_once"]
            assert told["value"] == 2
            async with asyncio.timeout(20):
                streams = await asyncio.gather(*(begin(client) for _ in range(SLOTS)))
            queue = client._source.queue.counts
            assert (queue.running, queue.waiting) == (SLOTS, 0)
            for stream in streams:
                await stream.close()
            reply = await client.chat(LONG_PROMPT, params=STORY)
            assert "queue" not in (reply.raw or {})

    asyncio.run(work())


def test_four_threads_are_all_under_way_before_one_has_ended(
    kind: str, tiny_model_path: Path
) -> None:
    together = threading.Barrier(SLOTS, timeout=20)

    def begin(client: LlamaClient) -> None:
        with client.stream_chat(LONG_PROMPT, params=ENDLESS) as stream:
            next(stream)
            together.wait()

    with (
        LlamaClient(
            str(tiny_model_path), ctx_size=4096, threads=1, parallel=SLOTS, **options_of(kind)
        ) as client,
        ThreadPoolExecutor(SLOTS) as pool,
    ):
        for done in [pool.submit(begin, client) for _ in range(SLOTS)]:
            done.result()


async def by_closing(stream: AsyncAnswerStream[LLMStreamEvent]) -> None:
    await stream.close()


async def by_cancelling(stream: AsyncAnswerStream[LLMStreamEvent]) -> None:
    async def listen() -> None:
        async for _ in stream:
            pass

    task = asyncio.create_task(listen())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def by_leaving_it_lie(stream: AsyncAnswerStream[LLMStreamEvent]) -> None:
    del stream


@pytest.mark.parametrize("leave", [by_closing, by_cancelling, by_leaving_it_lie])
def test_leaving_a_stream_frees_its_slot_within_200_ms(
    owner: LlamaClient, leave: Callable[[AsyncAnswerStream[LLMStreamEvent]], Awaitable[None]]
) -> None:
    async def seconds_until_free(client: AsyncLlamaClient) -> float:
        streams = [client.stream_chat(PROMPT, params=ENDLESS)]
        await anext(streams[0])
        assert await asyncio.to_thread(busy_slots, owner) == 1
        left_at = time.monotonic()
        await leave(streams.pop())
        while await asyncio.to_thread(busy_slots, owner):
            assert time.monotonic() - left_at < 5
        return time.monotonic() - left_at

    async def best_of_three() -> float:
        async with attached(owner) as client:
            return min([await seconds_until_free(client) for _ in range(3)])

    assert asyncio.run(best_of_three()) < 0.2


def test_starting_does_not_hold_up_the_loop(kind: str, tiny_model_path: Path) -> None:
    async def start() -> tuple[float, float, str]:
        client = AsyncLlamaClient(str(tiny_model_path), threads=1, **options_of(kind))
        begun = last = time.monotonic()
        silence = 0.0
        starting = asyncio.create_task(client.start())
        while not starting.done():
            await asyncio.sleep(0.002)
            last, before = time.monotonic(), last
            silence = max(silence, last - before)
        took = time.monotonic() - begun
        await starting
        reply = await client.chat(PROMPT, params=STORY)
        await client.close()
        return silence, took, reply.text

    silence, took, text = asyncio.run(start())
    assert text
    assert silence < took / 2


@pytest.mark.parametrize("after_s", [0.02, 0.15])
def test_a_start_that_is_cancelled_leaves_no_engine(
    kind: str, tiny_model_path: Path, after_s: float
) -> None:
    """The fixture that looks for processes left behind is the judge."""

    async def start() -> None:
        client = AsyncLlamaClient(str(tiny_model_path), threads=1, **options_of(kind))
        assert client.server is not None
        try:
            async with asyncio.timeout(after_s):
                await client.start()
        except TimeoutError:
            assert client.server.pid is None
        else:
            await client.close()  # it was faster

    asyncio.run(start())


INTERRUPTED = """
import asyncio, json, sys
from runtime import AsyncLlamaClient, LLMChatParams

async def main():
    options = json.loads(sys.argv[2])
    async with AsyncLlamaClient(sys.argv[1], threads=1, ctx_size=4096, **options) as client:
        async def listen():
            async for _ in client.stream_chat("hi", params=LLMChatParams(max_tokens=4000)):
                pass
        tasks = [asyncio.create_task(listen()) for _ in range(6)]
        await anext(client.stream_chat("hi", params=LLMChatParams(max_tokens=4000)))
        print(client.server.pid, flush=True)
        await asyncio.gather(*tasks)

asyncio.run(main())
"""


def test_ctrl_c_ends_everything_and_leaves_no_word_but_its_own(
    kind: str, tiny_model_path: Path
) -> None:
    child = subprocess.Popen(
        [
            *(sys.executable, "-X", "dev", "-W", "error", "-c", INTERRUPTED),
            *(str(tiny_model_path), json.dumps(options_of(kind))),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert child.returncode == -signal.SIGINT
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "never retrieved" not in said
    assert "Warning" not in said
    assert is_gone(pid)
