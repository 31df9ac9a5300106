"""Kill and stop engines under load, and compare every answer with the undisturbed one.

(a) Streams, four at once, at temperature 0 and at 0.8 with a fixed seed; each has the engine killed
one to three times at a token that chance chose. Then the same with JSON and tool calls.
(b) The engine is stopped by SIGSTOP in the middle of a stream.
(c) Many requests from many threads on a tiny model, with a kill every few seconds.
(d) With ``--pauses``: what a lone caller waits, with the default settings, over a kill at each
token of an answer, beside what the engine takes to start by its command alone.

Exits with 1 when an answer is lost, doubled or another one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from bench_overhead import start_alone

from runtime import (
    LlamaClient,
    LLMChatParams,
    LLMError,
    LLMMessage,
    LLMRequest,
    RestartPolicy,
    ToolSpec,
)
from runtime.testing.tiny_model import build_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable

TOPICS = ("a river", "the moon", "bread", "an old clock", "winter", "a lighthouse", "ants", "glass")
SETTLED_S = 2.5
RESTARTS = RestartPolicy(max_restarts=10**6, backoff_base_s=0.0)
PLACE: dict[str, object] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "kind": {"enum": ["city", "river", "hill"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
    },
    "required": ["name", "kind", "size"],
    "additionalProperties": False,
}
LOOK_UP = ToolSpec(
    name="look_up", description="Looks up a place.", input_schema=PLACE, output_schema={}
)


@dataclass(slots=True)
class Tally:
    """What became of the answers, and how long callers waited over breaks.

    Attributes:
        same: Answers that are the undisturbed ones.
        wrong: Answers that are lost, doubled or not what was streamed, each with what came.
        others: Answers that are whole, and not the undisturbed ones.
        breaks: How often answers broke off.
        engine_ms: Until there was an engine again, for each break.
        rest_ms: From then on until something new came.
        inexact: Answers that were continued and not replayed.
    """

    same: int = 0
    wrong: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    breaks: int = 0
    engine_ms: list[int] = field(default_factory=list)
    rest_ms: list[int] = field(default_factory=list)
    inexact: int = 0

    def take(self, raw: dict[str, Any]) -> None:
        """Count what a response says of its recovery."""
        recovery = raw.get("recovery")
        if recovery is None:
            return
        self.inexact += not recovery["exact"]
        self.breaks += recovery["count"]
        for each in recovery["interruptions"]:
            self.engine_ms.append(each["engine_ms"])
            self.rest_ms.append(each["pause_ms"] - each["engine_ms"])

    def row(self, name: str) -> str:
        """A line of the table."""
        whole = self.same + len(self.wrong) + len(self.others)
        text = f"{name:32}{self.same:>6} of {whole:<6}{self.breaks:>8}"
        if self.engine_ms:
            pauses = [a + b for a, b in zip(self.engine_ms, self.rest_ms, strict=True)]
            for values in (pauses, self.engine_ms, self.rest_ms):
                text += f"{statistics.median(values):>10.0f}{percentile(values, 95):>8.0f}"
        return text


HEADER = (
    f"{'':32}{'as undisturbed':>16}{'breaks':>8}"
    f"{'pause ms: median, p95':>24}{'engine':>12}{'rest':>18}"
)


def percentile(values: list[int], share: int) -> float:
    """The value below which so many percent lie."""
    return sorted(values)[min(len(values) - 1, len(values) * share // 100)]


class Killer:
    """Kills a client's engine; never one that is not ready."""

    def __init__(self, client: LlamaClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._killed: set[int] = set()

    def strike(self, number: int = signal.SIGKILL) -> bool:
        """Send the signal; False while there is no engine that is ready and was not struck yet."""
        server = self._client.server
        with self._lock:
            if server is None or server.base_url is None:
                return False
            pid = server.pid
            if pid is None or pid in self._killed:
                return False
            self._killed.add(pid)
            os.kill(pid, number)
            return True


def request_of(kind: str, number: int, tokens: int) -> LLMRequest:
    """The n-th request of a kind: always the same."""
    chance = random.Random(f"{kind}-{number}")
    topic = chance.choice(TOPICS)
    content = f"Write about {topic} and the number {number}."
    special: dict[str, Any] = {}
    if kind == "json":
        content = f"Describe a place that has to do with {topic}, as JSON."
        special["response_schema"] = PLACE
    elif kind == "tool":
        content = f"Look up a place that has to do with {topic}."
        special["tools"] = [LOOK_UP]
    options: dict[str, object] = {"seed": 1000 + number}
    if kind == "tool":
        options["tool_choice"] = "required"
    elif kind != "json":
        options["ignore_eos"] = True
    return LLMRequest(
        messages=[LLMMessage(role="user", content=content)],
        temperature=0.0 if kind == "cold" else 0.8,
        max_tokens=tokens if kind in {"cold", "warm"} else 160,
        provider_options=options,
        **special,
    )


def essence(response: Any) -> object:
    """What of an answer must be the same."""
    calls = [(call.name, call.arguments_json) for call in response.tool_calls]
    return response.text, calls, response.finish_reason, response.usage


def streamed(
    client: LlamaClient, request: LLMRequest, at_piece: Callable[[int], None], tally: Tally
) -> object:
    """The pieces of a stream put together, in the form of :func:`essence`."""
    if request.tools:
        return streamed_call(client, request, at_piece)
    params = LLMChatParams(
        temperature=request.temperature,
        max_tokens=request.max_tokens,
        response_schema=request.response_schema,
        provider_options=request.provider_options,
    )
    text = ""
    response: Any = None
    for number, event in enumerate(client.stream_chat(request.messages, params=params)):
        text += event.delta_text or ""
        response = event.response
        at_piece(number)
    tally.take(response.raw)
    return (
        essence(response) if text == response.text else f"not itself: {text!r}, {response.text!r}"
    )


def streamed_call(
    client: LlamaClient, request: LLMRequest, at_piece: Callable[[int], None]
) -> object:
    """The same of a stream of tool calls, which shows its pieces alone."""
    text, arguments = "", ""
    names: list[str] = []
    ids: set[str | None] = set()
    usages: list[object] = []
    for number, delta in enumerate(client.stream(request)):
        text += delta.text_delta or ""
        if call := delta.tool_call_delta:
            ids.add(call.call_id)
            names += [call.name] if call.name else []
            arguments += call.arguments_json_delta or ""
        usages += [delta.usage_delta] if delta.usage_delta else []
        at_piece(number)
    if not len(ids) == len(names) == len(usages) == 1:
        return f"not one call and one usage: {ids} {names} {usages}"
    return text, [(names[0], arguments)], "tool_calls", usages[0]


def compare(tally: Tally, name: str, expected: object, come: object) -> None:
    """Count an answer."""
    if come == expected:
        tally.same += 1
    else:
        kind = tally.wrong if isinstance(come, str) else tally.others
        kind.append(f"{name}: {come!r} instead of {expected!r}")


def recoveries(client: LlamaClient) -> int:
    """Answers of the client that went on after a break."""
    counters: Any = client.describe()["counters"]
    return int(counters["recoveries"])


def kill_streams(
    client: LlamaClient, kind: str, numbers: range, tokens: int, most_kills: int
) -> Tally:
    """(a): a stream for each number, four at once, each with one to ``most_kills`` kills."""
    tally, killer = Tally(), Killer(client)
    recovered_before = recoveries(client)
    requests = {number: request_of(kind, number, tokens) for number in numbers}
    with ThreadPoolExecutor(4) as pool:
        expected: dict[int, Any] = dict(
            zip(numbers, pool.map(client.generate, requests.values()), strict=True)
        )

        def one(number: int) -> object:
            chance = random.Random(f"kills-{kind}-{number}")
            length = max(2, (expected[number].usage.completion_tokens or 2) - 1)
            due = sorted(
                chance.sample(range(1, length + 1), min(length, chance.randint(1, most_kills)))
            )

            def at_piece(piece: int) -> None:
                while due and piece >= due[0] and killer.strike():
                    due.pop(0)

            try:
                return streamed(client, requests[number], at_piece, tally)
            except LLMError as exc:
                return f"{type(exc).__name__}: {exc.message}"

        for number, come in zip(numbers, pool.map(one, numbers), strict=True):
            compare(tally, f"{kind} {number}", essence(expected[number]), come)
    if kind == "tool":  # the pieces of a call do not tell of it
        tally.breaks = recoveries(client) - recovered_before
    return tally


def stop_streams(client: LlamaClient, count: int, tokens: int) -> Tally:
    """(b): SIGSTOP in the middle of ``count`` streams, one after another."""
    tally, killer = Tally(), Killer(client)
    for number in range(count):
        request = request_of("warm", number, tokens)
        expected = client.generate(request)
        at = random.Random(f"stop-{number}").randrange(1, tokens - 1)

        def at_piece(piece: int, at: int = at) -> None:
            if piece == at:
                killer.strike(signal.SIGSTOP)

        compare(
            tally, f"stop {number}", essence(expected), streamed(client, request, at_piece, tally)
        )
    return tally


def storm(
    model: Path, count: int, threads: int, kill_every_s: float, logs: Path, batch_size: int
) -> tuple[Tally, str]:
    """(c): ``count`` requests from ``threads`` threads, with a kill every few seconds."""
    kinds = [("cold", n) for n in range(8)] + [("warm", n) for n in range(24)]
    tally, failed, lock = Tally(), Counter[str](), threading.Lock()
    process = psutil.Process()
    levels: list[tuple[int, int]] = []
    with LlamaClient(
        str(model),
        ctx_size=256,
        parallel=8,
        restart=RESTARTS,
        threads=1,
        batch_size=batch_size,
        log_dir=logs,
    ) as client:
        expected = [essence(client.generate(request_of(k, n, 12))) for k, n in kinds]
        killer, over = Killer(client), threading.Event()

        def kill_on() -> None:
            while not over.wait(kill_every_s):
                killer.strike()

        def one(number: int) -> None:
            kind, n = kinds[number % len(kinds)]
            request = request_of(kind, n, 12)
            mine = Tally()
            try:
                if number % 2:
                    come = streamed(client, request, lambda _: None, mine)
                else:
                    response = client.generate(request)
                    mine.take(response.raw or {})
                    come = essence(response)
            except LLMError as exc:
                come = f"{type(exc).__name__}: {exc.message}"
            with lock:
                compare(tally, f"{kind} {n}", expected[number % len(kinds)], come)
                tally.breaks += mine.breaks
                tally.inexact += mine.inexact
                tally.engine_ms += mine.engine_ms
                tally.rest_ms += mine.rest_ms
                if number % max(1, count // 10) == 0:
                    levels.append((process.memory_info().rss >> 10, process.num_fds()))

        killing = threading.Thread(target=kill_on)
        killing.start()
        try:
            with ThreadPoolExecutor(threads) as pool:
                for each in pool.map(one, range(count)):
                    failed[str(each)] += 1
        finally:
            over.set()
            killing.join()
    warm = levels[len(levels) // 4 :] or levels
    return tally, (
        f"memory {warm[0][0] / 1024:.1f} to {warm[-1][0] / 1024:.1f} MiB, "
        f"descriptors {warm[0][1]} to {warm[-1][1]}, at most {max(n for _, n in levels)}"
    )


def pauses(model: str, tokens: int, rows: list[tuple[str, Tally]]) -> None:
    """(d): a kill at each token of an answer but the last, one at a time; and starts in between."""
    tallies = {"cold": Tally(), "warm": Tally()}
    starts_ms: list[float] = []
    with LlamaClient(model, restart=RESTARTS, use_gateway=False) as client:
        server, killer = client.server, Killer(client)
        if server is None:
            raise AssertionError("it has a server of its own")
        server.start()
        for place in range(1, tokens):
            for kind, tally in tallies.items():
                request = request_of(kind, place, tokens)
                expected = client.generate(request)
                starts_ms.append(start_alone(server.config) * 1000)
                time.sleep(SETTLED_S)  # a crash comes to an engine that has been there for a while

                def at_piece(piece: int, place: int = place) -> None:
                    if piece == place - 1:
                        killer.strike()

                come = streamed(client, request, at_piece, tally)
                compare(tally, f"{kind} {place}", essence(expected), come)
    show(rows, "(d) temperature 0", tallies["cold"])
    show(rows, "(d) temperature 0.8", tallies["warm"])
    waited = [
        a + b
        for tally in tallies.values()
        for a, b in zip(tally.engine_ms, tally.rest_ms, strict=True)
    ]
    print(
        f"{'':32}median of both {statistics.median(waited):.0f} ms; "
        f"the engine's start alone {statistics.median(starts_ms):.0f} ms"
    )


def show(rows: list[tuple[str, Tally]], name: str, tally: Tally) -> None:
    """Keep and print a line of the table."""
    rows.append((name, tally))
    print(tally.row(name), flush=True)


def main() -> int:
    """Run and print; 0 when every answer is the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="for (a) and (b); tiny: one made")
    parser.add_argument("--streams", type=int, default=100, help="of each temperature")
    parser.add_argument("--structured", type=int, default=50, help="JSON and tool streams together")
    parser.add_argument("--first", type=int, default=0, help="number of the first stream")
    parser.add_argument("--tokens", type=int, default=48, help="of each free answer")
    parser.add_argument("--kills", type=int, default=3, help="most kills for each stream")
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=32, help="threads of (c)")
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds")
    parser.add_argument("--pauses", action="store_true", help="also (d), which takes 8 minutes")
    parser.add_argument("--threads", type=int, default=None, help="of the engine")
    parser.add_argument(
        "--batch-size", type=int, default=32, help="of the engine; see docs/recovery.md"
    )
    parser.add_argument("--json", type=Path, default=None, help="also write the tallies there")
    options = parser.parse_args()
    rows: list[tuple[str, Tally]] = []
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny-chat.gguf"
        build_tiny_model(tiny)
        model = str(tiny) if options.model == "tiny" else options.model
        settings: dict[str, Any] = {
            "ctx_size": 1024,
            "parallel": 4,
            "restart": RESTARTS,
            "batch_size": options.batch_size,
        }
        if options.threads:
            settings["threads"] = options.threads
        began = time.monotonic()
        half = options.structured // 2
        plans = [
            ("(a) temperature 0", "cold", options.streams, options.kills),
            ("(a) temperature 0.8", "warm", options.streams, options.kills),
            ("(a) JSON", "json", options.structured - half, 1),
            ("(a) tool calls", "tool", half, 1),
        ]
        if any(count for _, _, count, _ in plans):
            with LlamaClient(model, **settings) as client:
                for name, kind, count, kills in plans:
                    if count:
                        numbers = range(options.first, options.first + count)
                        tally = kill_streams(client, kind, numbers, options.tokens, kills)
                        show(rows, name, tally)
        if options.stops:
            with LlamaClient(model, wedge_timeout_s=2.0, **settings) as client:
                show(rows, "(b) SIGSTOP", stop_streams(client, options.stops, options.tokens))
        if options.requests:
            tally, note = storm(
                tiny,
                options.requests,
                options.at_once,
                options.kill_every,
                Path(folder),
                options.batch_size,
            )
            show(rows, "(c) requests", tally)
            print(f"{'':32}{note}")
        if options.pauses:
            pauses(model, options.tokens, rows)
        took = time.monotonic() - began
    print(f"{took:.0f} s; continued instead of replayed: {sum(t.inexact for _, t in rows)}")
    wrong = [each for _, tally in rows for each in tally.wrong]
    others = [each for _, tally in rows for each in tally.others]
    for each in (wrong + others)[:10]:
        print(each[:600], file=sys.stderr)
    if options.json:
        made = {
            name: {
                "same": t.same,
                "wrong": len(t.wrong),
                "others": len(t.others),
                "breaks": t.breaks,
                "inexact": t.inexact,
            }
            for name, t in rows
        }
        options.json.write_text(json.dumps(made, indent=2) + "\n", "utf-8")
    return 1 if wrong or others else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
