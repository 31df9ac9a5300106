"""Measures the gateway against the engine behind it, in turns within one run.

    python scripts/gateway_bench.py [MODEL ...]

Each round asks the same number of clients for answers of the same length, once of the engine and
once through the gateway, in changing order and with a prompt that no cache knows. Told are the
medians: tokens per second of all clients together, and the time to the first token. At last 64
clients at once share the slots, where every failed request counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runtime.gateway.models import Models, Plan
from runtime.gateway.running import address_of, listen, run

SLOTS = 4
MOST_CLIENTS = 64


@dataclass(frozen=True)
class Target:
    """Somebody to ask."""

    name: str
    url: str
    key: str | None


@dataclass(frozen=True)
class Round:
    """What some clients at once came to."""

    tokens_per_s: float
    first_token_ms: float
    errors: int


def serve(model: str) -> None:
    """Serve in this process, and say on stdout where the gateway and its engine are."""
    listener = listen("127.0.0.1", 0)
    plan = Plan(models=(model,), settings={"ctx_size": 2048, "parallel": SLOTS})
    models = Models(plan)

    def ready(*_: object) -> None:
        (standing,) = models.listed()
        assert standing.served
        server = standing.served.server
        assert server
        engine = {"url": server.base_url, "key": server.api_key}
        print(json.dumps({"gateway": address_of(listener), "engine": engine}), flush=True)

    with listener:
        run(models, listener, ready=ready)


async def ask(target: Target, nonce: int, tokens: int) -> tuple[float, int]:
    """Seconds to the first token, and tokens of one streamed answer."""
    parts = urlsplit(target.url)
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": f"{nonce} Tell me a story about the sea."}],
            "max_tokens": tokens,
            "temperature": 0.8,
            "seed": nonce % 1000,
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
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    first = 0.0
    usage: dict[str, Any] = {}
    try:
        writer.write(head.encode() + body)
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            if not first and b'"content":"' in line and b'"content":""' not in line:
                first = time.perf_counter() - began
            if b'"completion_tokens"' in line:
                usage = json.loads(line[6:])["usage"]
    finally:
        writer.close()
    return first, int(usage["completion_tokens"])


async def measure(target: Target, clients: int, tokens: int, nonce: int) -> Round:
    """One round."""
    began = time.perf_counter()
    asked = (ask(target, nonce + number, tokens) for number in range(clients))
    got = await asyncio.gather(*asked, return_exceptions=True)
    took = time.perf_counter() - began
    good = [each for each in got if not isinstance(each, BaseException)]
    return Round(
        tokens_per_s=sum(count for _, count in good) / took,
        first_token_ms=1000 * statistics.median([first for first, _ in good] or [0.0]),
        errors=clients - len(good),
    )


async def compare(engine: Target, gateway: Target, clients: int, tokens: int, rounds: int) -> None:
    """Engine and gateway in turns; prints the medians and what the gateway costs."""
    found: dict[str, list[Round]] = {engine.name: [], gateway.name: []}
    for number in range(rounds):
        order = (engine, gateway) if number % 2 else (gateway, engine)
        for place, target in enumerate(order):
            nonce = time.time_ns() % 10**9 + place
            found[target.name].append(await measure(target, clients, tokens, nonce))
    speed, first = {}, {}
    for name, all_of_it in found.items():
        speed[name] = statistics.median(each.tokens_per_s for each in all_of_it)
        first[name] = statistics.median(each.first_token_ms for each in all_of_it)
        errors = sum(each.errors for each in all_of_it)
        print(
            f"  {clients} at once  {name:8} {speed[name]:8.1f} tok/s  first token "
            f"{first[name]:7.2f} ms  {errors} errors"
        )
    share = 100 * speed[gateway.name] / speed[engine.name]
    later = first[gateway.name] - first[engine.name]
    print(f"  {clients} at once  gateway: {share:.1f} % of the speed, first token {later:+.2f} ms")


def main() -> None:
    """Run the comparison for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=["smollm2-135m"])
    parser.add_argument("--tokens", type=int, default=64, help="length of each answer")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each kind")
    parser.add_argument("--serve", metavar="MODEL", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    for model in given.models:
        print(f"{Path(model).name}, {given.tokens} tokens, {given.rounds} rounds")
        command = [sys.executable, __file__, "--serve", model]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout
                told = json.loads(process.stdout.readline())
                engine = Target("engine", told["engine"]["url"], told["engine"]["key"])
                gateway = Target("gateway", told["gateway"], None)
                for clients in (1, SLOTS):
                    asyncio.run(compare(engine, gateway, clients, given.tokens, given.rounds))
                crowd = asyncio.run(measure(gateway, MOST_CLIENTS, 16, time.time_ns() % 10**9))
                print(f"  {MOST_CLIENTS} clients on {SLOTS} slots: {crowd.errors} errors")
            finally:
                process.terminate()


if __name__ == "__main__":
    main()
