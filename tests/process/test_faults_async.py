"""Fault battery: the async client's requests while their engine dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime import AsyncLlamaClient, LLMChatParams, RestartPolicy
from runtime.server.lifecycle import State
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from runtime import LLMResponse

    Saw = Callable[[object], None]

pytestmark = pytest.mark.process

SOON = RestartPolicy(backoff_base_s=0.0, max_restarts=20)
PIECES = 40
AT_ONCE = 4
EACH_HAS_SAID = 1
TOKENS = 800


def a_story(number: int, temperature: float) -> LLMChatParams:
    return LLMChatParams(
        temperature=temperature,
        max_tokens=TOKENS,
        provider_options={"seed": 11 + number, "ignore_eos": True, "id_slot": number},
    )


async def heard(
    client: AsyncLlamaClient, number: int, temperature: float, came: Callable[[int], None]
) -> LLMResponse:
    """An answer's response, once what was handed out is seen to be the same."""
    text, response = "", None
    prompt = f"Tell me story {number}."
    async for event in client.stream_chat(prompt, params=a_story(number, temperature)):
        text += event.delta_text or ""
        response = event.response or response
        came(number)
    assert response is not None
    assert text == response.text
    return response


@pytest.mark.engine
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.faults("xllamacpp: SIGKILL under four async streams", "ready", "the same answers")
def test_async_streams_go_on_where_they_were(
    tiny_model_path: Path, saw: Saw, temperature: float
) -> None:
    """The kill comes when each has begun and none is over."""

    async def all_of_them(client: AsyncLlamaClient, *, kill: bool) -> Sequence[LLMResponse]:
        counts = [0] * AT_ONCE
        server = client.server
        assert server is not None
        pid = server.pid or 0

        def came(number: int) -> None:
            nonlocal kill
            counts[number] += 1
            if kill and min(counts) >= EACH_HAS_SAID:
                kill = False
                os.kill(pid, signal.SIGKILL)

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(heard(client, number, temperature, came))
                for number in range(AT_ONCE)
            ]
        assert not kill
        return [task.result() for task in tasks]

    async def twice() -> tuple[Sequence[LLMResponse], Sequence[LLMResponse]]:
        async with AsyncLlamaClient(
            str(tiny_model_path),
            engine="xllamacpp",
            ctx_size=1024 * AT_ONCE,
            parallel=AT_ONCE,
            threads=1,
            restart=SOON,
        ) as client:
            return await all_of_them(client, kill=False), await all_of_them(client, kill=True)

    undisturbed, recovered = asyncio.run(twice())
    # A fast engine may have sent the end of one before the slowest had said enough.
    notes: list[Any] = [note for each in recovered if (note := (each.raw or {}).get("recovery"))]
    saw([note["interruptions"][0]["token"] for note in notes])
    assert notes
    assert [each.text for each in recovered] == [each.text for each in undisturbed]
    assert all(note["exact"] and note["interruptions"][0]["token"] > 0 for note in notes)
    assert not any("recovery" in (each.raw or {}) for each in undisturbed)


@pytest.mark.faults("an async task is cancelled while its engine starts again", "ready", "at once")
def test_an_async_task_that_waits_for_an_engine_can_be_cancelled(
    fake_binary: Path, tiny_model_path: Path
) -> None:
    """The other one's answer is whole all the same."""

    async def one_of_two() -> tuple[float, str]:
        fake = {"story": PIECES, "loading_s": 1.0}
        async with AsyncLlamaClient(
            str(tiny_model_path),
            engine="llama-server",
            engine_path=str(fake_binary),
            env={"FAKE": json.dumps(fake)},
            restart=SOON,
        ) as client:
            begun = asyncio.Event()

            async def listen(about: str) -> str:
                text = ""
                async for event in client.stream_chat(about):
                    text += event.delta_text or ""
                    begun.set()
                return text

            left, stays = (asyncio.create_task(listen(about)) for about in ("the sea", "the sky"))
            await begun.wait()
            server = client.server
            assert server is not None
            os.kill(server.pid or 0, signal.SIGKILL)
            await asyncio.to_thread(
                wait_until, "it starts again", lambda: server.state is State.LOADING
            )
            left_at = time.monotonic()
            left.cancel()
            await asyncio.wait([left])
            took_s = time.monotonic() - left_at
            assert left.cancelled()
            assert server.state is State.LOADING
            assert client._source.queue.counts.running == 1
            return took_s, await stays

    took_s, text = asyncio.run(one_of_two())
    assert took_s < 0.2
    assert text == "".join(f"the sky {number}. " for number in range(PIECES))
