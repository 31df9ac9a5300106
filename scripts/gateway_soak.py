"""Put the gateway under mixed load, and watch its memory and its answers.

Whole answers, streams, streams that are left, JSON, tool calls and embeddings, from many clients at
once, on a tiny model. Each kind of request is always the same, seed included, and its answer is
compared with the first. With ``--kill-every`` the engine is killed meanwhile.

Exits with 1 when a request fails, an answer is another one, or the gateway's memory or descriptors
grow.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx2
import openai
import psutil

from runtime.testing.tiny_model import build_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator

READY_WITHIN_S: Final = 60.0
FIRST_KILL_S: Final = 20.0
MOST_GROWTH: Final = 0.1
"""Of the gateway's memory, from the second quarter of the time to the last one."""
MOST_NEW_DESCRIPTORS: Final = 4

PLACE: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"kind": {"enum": ["city", "river"]}, "size": {"type": "integer", "maximum": 99}},
    "required": ["kind", "size"],
    "additionalProperties": False,
}
TOOL: Final[Any] = {
    "type": "function",
    "function": {"name": "look_up", "description": "Looks up a place.", "parameters": PLACE},
}
KINDS: Final = ("whole", "stream", "left", "json", "tool", "embed")


@dataclass(slots=True)
class Load:
    """What has been asked and seen.

    Attributes:
        client: The client that all requests go through.
        first: The first answer to each request.
        done: Answers by kind.
        wrong: Requests that failed or were answered otherwise than before.
        slowest_s: The longest that a request took.
    """

    client: openai.AsyncOpenAI
    first: dict[tuple[str, int], object] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    async def ask(self, kind: str, number: int) -> None:
        """Send a request and compare its answer."""
        began = time.monotonic()
        try:
            said = await self._said(kind, number)
        except openai.OpenAIError as exc:
            self.wrong.append(f"{kind} {number}: {type(exc).__name__}: {exc}")
            return
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        self.done[kind] += 1
        expected = self.first.setdefault((kind, number), said)
        if said != expected:
            self.wrong.append(f"{kind} {number}: {said!r} instead of {expected!r}")

    async def _said(self, kind: str, number: int) -> object:
        if kind == "embed":
            texts = [f"text {number}", f"another text, {number}"]
            made = await self.client.embeddings.create(model="tiny-chat", input=texts)
            return [len(each.embedding) for each in made.data]
        asked: dict[str, Any] = {
            "model": "tiny-chat",
            "messages": [{"role": "user", "content": f"Tell me about the number {number}."}],
            "max_tokens": 24 + number,
            "seed": number,
            "temperature": 0.8,
        }
        if kind == "json":
            schema = {"name": "place", "schema": PLACE}
            asked["response_format"] = {"type": "json_schema", "json_schema": schema}
            asked["max_tokens"] = 100
        elif kind == "tool":
            asked |= {"tools": [TOOL], "tool_choice": "required", "max_tokens": 200}
        if kind not in {"stream", "left"}:
            reply = await self.client.chat.completions.create(**asked)
            message = reply.choices[0].message
            calls = [each.function.arguments for each in message.tool_calls or ()]
            return message.content, calls, reply.usage and reply.usage.completion_tokens
        text, pieces = "", 0
        async with await self.client.chat.completions.create(**asked, stream=True) as stream:
            async for chunk in stream:
                pieces += 1
                if kind == "left" and pieces > 3:
                    return "left"
                text += chunk.choices[0].delta.content or ""
        return text


@contextlib.contextmanager
def gateway(model: Path, home: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A gateway that is ready, and its address; ended with the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "runtime", "serve", str(model), "--port", str(port)]
    # What makes an engine repeat itself to the last bit: docs/recovery.md.
    settings = ["--threads", "1", "--batch-size", "32", "--parallel", "4", "--ctx-size", "1024"]
    process = subprocess.Popen(
        [*command, *settings],
        env={**os.environ, "LLAMA_RUNTIME_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + READY_WITHIN_S
        with httpx2.Client(trust_env=False) as looking:
            while not _ready(looking, url):
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit(f"The gateway did not become ready; exit code {process.poll()}.")
                time.sleep(0.1)  # the pace of the polling
        yield psutil.Process(process.pid), url
    finally:
        process.terminate()
        process.wait(30)


def _ready(looking: httpx2.Client, url: str) -> bool:
    try:
        return looking.get(f"{url}/health").status_code == 200
    except httpx2.TransportError:
        return False


async def kill_on(url: str, every_s: float) -> None:
    """Kill the engine again and again, the first time soon."""
    pause_s = min(every_s, FIRST_KILL_S)
    async with httpx2.AsyncClient(trust_env=False) as looking:
        while True:
            await asyncio.sleep(pause_s)
            pause_s = every_s
            (model, *_) = (await looking.get(f"{url}/snapshot")).json()["models"]
            if pid := (model["snapshot"] or {}).get("pid"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


async def soak(process: psutil.Process, url: str, options: argparse.Namespace) -> int:
    """Load the gateway for the time asked for, and tell what came of it; the exit code."""
    levels: list[tuple[float, int]] = []
    began = time.monotonic()
    until = began + options.seconds
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        load = Load(client)

        async def one(number: int) -> None:
            chance = random.Random(number)
            while time.monotonic() < until:
                await load.ask(chance.choice(KINDS), chance.randrange(8))

        async def watch() -> None:
            shown = began
            while True:
                levels.append((process.memory_info().rss / 2**20, process.num_fds()))
                if time.monotonic() - shown > 15:
                    shown = time.monotonic()
                    print(
                        f"{shown - began:6.0f} s  {load.done.total():7} answers  "
                        f"{len(load.wrong)} wrong  {levels[-1][0]:.1f} MiB  {levels[-1][1]} fds",
                        flush=True,
                    )
                await asyncio.sleep(options.seconds / 200)

        aside = [asyncio.create_task(watch())]
        if options.kill_every:
            aside.append(asyncio.create_task(kill_on(url, options.kill_every)))
        await asyncio.gather(*(one(number) for number in range(options.clients)))
        for task in aside:
            task.cancel()
        ended = await asyncio.gather(*aside, return_exceptions=True)
        load.wrong += [repr(each) for each in ended if isinstance(each, Exception)]
    quarter = max(1, len(levels) // 4)
    parts = [levels[at : at + quarter] for at in range(0, 4 * quarter, quarter)]
    memory = [statistics.median(level[0] for level in part) for part in parts if part]
    descriptors = [statistics.median(level[1] for level in part) for part in parts if part]
    print(
        f"{load.done.total()} answers ({', '.join(f'{n} {k}' for k, n in load.done.items())}), "
        f"{len(load.wrong)} wrong; slowest {load.slowest_s:.1f} s; in the quarters of the time the "
        f"gateway's memory {', '.join(f'{each:.1f}' for each in memory)} MiB, descriptors "
        f"{', '.join(f'{each:.0f}' for each in descriptors)}"
    )
    for each in load.wrong[:10]:
        print(each[:500], file=sys.stderr)
    grown = memory[-1] > memory[1] * (1 + MOST_GROWTH)
    grown = grown or descriptors[-1] > descriptors[1] + MOST_NEW_DESCRIPTORS
    return 1 if load.wrong or grown or set(load.done) != set(KINDS) else 0


def main() -> int:
    """Run and print; 0 when nothing failed and nothing grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument(
        "--kill-every",
        type=float,
        default=0.0,
        help="seconds; 0: never. Five within 300 s are what the restart budget allows.",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny_model(Path(folder) / "tiny-chat.gguf")
        with gateway(model, Path(folder) / "home") as (process, url):
            return asyncio.run(soak(process, url, options))


if __name__ == "__main__":
    sys.exit(main())
