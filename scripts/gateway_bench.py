"""Measures the gateway against the engine behind it, in turns within one run.

    python scripts/gateway_bench.py [MODEL ...]

A pair is the same number of clients asking for answers of the same length, once of the engine and
once through the gateway, in changing order and each with prompts of one length that no cache knows.
Told is the median over all pairs, with the quartiles, of what the gateway has of the engine's
tokens per second, and of how much later its first token comes, that of all clients on average and
that of the last; of the latter two there are more pairs, with short answers. One client is asked in
four times as many pairs as four, for a pair of single answers tells less and takes less time.
Besides, what processor time a token costs in the gateway.
At last 64 clients at once share the slots, where every failed request counts.

Both ask the engine the same: prompts of the same tokens in number, and after the warm-up none that
names a slot, for no conversation is gone on with. So the engine takes the slot that was used least
lately, and saves it to its cache and looks there, for both. What the gateway asks for besides (how
far the prompt is, the slot it was in) is part of what it costs.

The engine has as many threads as it is given by default, unless ``--threads`` says otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

import psutil

from runtime.gateway.models import Models, Plan
from runtime.gateway.running import address_of, listen, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SLOTS: Final = 4
MOST_CLIENTS: Final = 64
SHORT: Final = 4
"""Tokens of an answer of which only the first matters."""

_TEXT: Final = re.compile(rb'"content":"[^"]')
_COUNT: Final = re.compile(rb'"completion_tokens":\s*(\d+)')
_numbers: Final = itertools.count(time.time_ns() % 10**9)


@dataclass(frozen=True)
class Target:
    """Somebody to ask."""

    url: str
    key: str | None = None


@dataclass(frozen=True)
class Served:
    """A gateway and the engine behind it."""

    gateway: Target
    engine: Target
    process: psutil.Process
    threads: int

    @property
    def spent_s(self) -> float:
        """Processor time that the gateway has used so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@dataclass(frozen=True)
class Round:
    """What some clients at once came to."""

    tokens: int
    tokens_per_s: float
    first_token_ms: float
    last_ms: float
    """Until the last of them had its first token."""
    errors: int


@dataclass(frozen=True)
class Pair:
    """The same asked of both."""

    engine: Round
    gateway: Round
    gateway_s: float
    """Processor time that the gateway used for it."""

    @property
    def share(self) -> float:
        """What the gateway has of the engine's tokens per second, percent."""
        return 100 * self.gateway.tokens_per_s / self.engine.tokens_per_s

    @property
    def later_ms(self) -> float:
        """How much later its first token came."""
        return self.gateway.first_token_ms - self.engine.first_token_ms

    @property
    def last_later_ms(self) -> float:
        """How much later the last of them had its own."""
        return self.gateway.last_ms - self.engine.last_ms


def serve(model: str, threads: int | None) -> None:
    """Serve in this process, and say on stdout where the gateway and its engine are."""
    listener = listen("127.0.0.1", 0)
    settings = {"ctx_size": 2048, "parallel": SLOTS}
    plan = Plan(models=(model,), settings=settings | ({"threads": threads} if threads else {}))
    models = Models(plan)

    def ready(*_: object) -> None:
        (standing,) = models.listed()
        assert standing.served
        server = standing.served.server
        assert server
        engine = {"url": server.base_url, "key": server.api_key}
        told = {"gateway": {"url": address_of(listener)}, "engine": engine}
        print(json.dumps(told | {"threads": server.snapshot().threads["actual"]}), flush=True)

    with listener:
        run(models, listener, ready=ready)


@contextlib.contextmanager
def served(command: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[Served]:
    """A gateway of its own process, by a command that calls :func:`serve`."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout
            told = json.loads(process.stdout.readline() or "{}")
            if not told:
                sys.exit("The gateway did not become ready.")
            yield Served(
                gateway=Target(**told["gateway"]),
                engine=Target(**told["engine"]),
                process=psutil.Process(process.pid),
                threads=told["threads"],
            )
        finally:
            process.terminate()


class _Answer(asyncio.Protocol):
    """Takes in one streamed answer at as little expense as there can be."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.first_at = 0.0
        self.pieces: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        if not self.first_at and _TEXT.search(data):
            self.first_at = time.perf_counter()
        self.pieces.append(data)

    def connection_lost(self, _: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def ask(target: Target, tokens: int) -> tuple[float, int]:
    """Seconds to the first token, and tokens of one streamed answer."""
    number = next(_numbers) % 10**9
    parts = urlsplit(target.url)
    text = f"{number:09} Tell me a story about the sea."  # digits are tokens of their own
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "temperature": 0.8,
            "seed": number % 1000,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    key = f"Authorization: Bearer {target.key}\r\n" if target.key else ""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n{key}Connection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    began = time.perf_counter()
    transport, answer = await asyncio.get_running_loop().create_connection(
        _Answer, parts.hostname or "", parts.port or 80
    )
    transport.write(head.encode() + body)
    await answer.ended
    said = b"".join(answer.pieces)
    counts = _COUNT.findall(said)
    if not counts or b"[DONE]" not in said:
        raise ConnectionError(said[-500:].decode(errors="replace"))
    return answer.first_at - began, int(counts[-1])


async def measure(target: Target, clients: int, tokens: int) -> Round:
    """One round."""
    began = time.perf_counter()
    asked = (ask(target, tokens) for _ in range(clients))
    got = await asyncio.gather(*asked, return_exceptions=True)
    took = time.perf_counter() - began
    good = [each for each in got if not isinstance(each, BaseException)]
    for bad in got:
        if isinstance(bad, BaseException):
            print(f"  {type(bad).__name__}: {bad}", file=sys.stderr)
    total = sum(count for _, count in good)
    return Round(
        tokens=total,
        tokens_per_s=total / took,
        first_token_ms=1000 * statistics.mean([first for first, _ in good] or [0.0]),
        last_ms=1000 * max([first for first, _ in good] or [0.0]),
        errors=clients - len(good),
    )


async def pair(there: Served, clients: int, tokens: int, number: int) -> Pair:
    """The same of both; which of them comes first changes with the number."""
    if number % 2:
        engine = await measure(there.engine, clients, tokens)
    spent_s = there.spent_s
    gateway = await measure(there.gateway, clients, tokens)
    spent_s = there.spent_s - spent_s
    if not number % 2:
        engine = await measure(there.engine, clients, tokens)
    return Pair(engine, gateway, spent_s)


def told(values: Sequence[float]) -> str:
    """A median with its quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def report(clients: int, long: Sequence[Pair], short: Sequence[Pair]) -> None:
    """Print what came of it."""
    every = [*long, *short]
    for name in ("engine", "gateway"):
        speed = told([cast("Round", getattr(each, name)).tokens_per_s for each in long])
        first = told([cast("Round", getattr(each, name)).first_token_ms for each in every])
        errors = sum(cast("Round", getattr(each, name)).errors for each in every)
        print(
            f"  {clients} at once  {name:8} {speed} tok/s, first token {first} ms, {errors} errors"
        )
    spent_us = (
        1e6 * sum(each.gateway_s for each in long) / sum(each.gateway.tokens for each in long)
    )
    print(
        f"  {clients} at once  gateway  {told([each.share for each in long])} % of the speed; "
        f"first token later by {told([each.later_ms for each in every])} ms, "
        f"the last one's by {told([each.last_later_ms for each in every])} ms; "
        f"{spent_us:.0f} us of processor time a token",
        flush=True,
    )


async def compare(there: Served, clients: int, options: argparse.Namespace) -> None:
    """Engine and gateway in turns; prints what the gateway costs."""
    for n in range(SLOTS):  # warms both up, and fills the slots
        await pair(there, clients, SHORT, n)
    rounds = options.rounds * SLOTS // clients
    long = [await pair(there, clients, options.tokens, n) for n in range(rounds)]
    short = [await pair(there, clients, SHORT, n) for n in range(2 * rounds)]
    report(clients, long, short)


def main() -> None:
    """Run the comparison for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["smollm2-135m"])
    parser.add_argument("--tokens", type=int, default=64, help="length of each answer")
    parser.add_argument("--rounds", type=int, default=12, help="pairs of four clients")
    parser.add_argument(
        "--threads", type=int, help="the engine's; by default as many as by default"
    )
    parser.add_argument("--serve", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.threads)
        return
    for model in options.models:
        command = [sys.executable, __file__, "--serve", model]
        if options.threads:
            command += ["--threads", str(options.threads)]
        with served(command, {**os.environ}) as there:
            print(
                f"{Path(model).name}, {there.threads} engine threads, {options.tokens} tokens, "
                f"{options.rounds * SLOTS} pairs of one client, {options.rounds} of {SLOTS}"
            )
            for clients in (1, SLOTS):
                asyncio.run(compare(there, clients, options))
            crowd = asyncio.run(measure(there.gateway, MOST_CLIENTS, 16))
            print(f"  {MOST_CLIENTS} clients on {SLOTS} slots: {crowd.errors} errors")


if __name__ == "__main__":
    main()
