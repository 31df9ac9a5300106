"""What the runtime costs on top of the bare engine: ``python scripts/bench.py``.

Everything is measured side by side in one run, alternating, so that a machine that is busy or
throttled strikes both sides. The figures are medians, and the ratio is the median of the ratios of
neighbours: a busy spell that covers more rounds of one side than of the other does not bend it.
A ratio of 1.00 is the bare engine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runtime import LlamaClient, LLMChatParams, LLMError, ModelStore, ServerConfig, ServerManager
from runtime.inference import payload, wishes
from runtime.server.plan import new_key, plan_launch

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT = "Explain in a few sentences why the sky is blue."


@dataclass(frozen=True, slots=True)
class Run:
    """One streamed answer: seconds until its first token, and tokens a second after that."""

    first_token_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the same thing on the bare engine and through the runtime."""

    name: str
    unit: str
    bare: float
    ours: float
    ratio: float


class Raw:
    """The least one can do: http.client and a loop over lines."""

    def __init__(self, base_url: str, api_key: str | None, body: dict[str, object]) -> None:
        self._address = urlsplit(base_url).netloc
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {api_key}"}
        self._body = json.dumps(body).encode()

    def __call__(self) -> Run:
        """Stream one answer."""
        begun = time.perf_counter()
        connection = http.client.HTTPConnection(self._address)
        connection.request("POST", "/v1/chat/completions", self._body, self._headers)
        times: list[float] = []
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    times.append(time.perf_counter())
        connection.close()
        return run_of(begun, times)


class Ours:
    """The same through the client."""

    def __init__(self, client: LlamaClient, params: LLMChatParams) -> None:
        self._client = client
        self._params = params

    def __call__(self) -> Run:
        """Stream one answer."""
        begun = time.perf_counter()
        times = [
            time.perf_counter()
            for event in self._client.stream_chat(PROMPT, params=self._params)
            if event.kind == "delta"
        ]
        return run_of(begun, times)


def run_of(begun: float, times: list[float]) -> Run:
    """What the arrival times of the pieces say."""
    return Run(times[0] - begun, (len(times) - 1) / (times[-1] - times[0]))


def alternate(
    left: Callable[[], float], right: Callable[[], float], rounds: int
) -> tuple[list[float], list[float]]:
    """Measure both, taking turns at going first."""
    lefts: list[float] = []
    rights: list[float] = []
    for number in range(rounds):
        if number % 2:
            rights.append(right())
            lefts.append(left())
        else:
            lefts.append(left())
            rights.append(right())
    return lefts, rights


def measure_streams(client: LlamaClient, *, rounds: int, tokens: int, at_once: int) -> list[Row]:
    """Time to the first token and speed after it, ``at_once`` streams at a time."""
    params = LLMChatParams(
        temperature=0,
        max_tokens=tokens,
        provider_options={"ignore_eos": True, "seed": 1},
    )
    server = client.server
    if server is None:
        raise LLMError("The benchmark needs a managed server.")
    endpoint = server.wait_ready()
    wish = wishes.from_chat(PROMPT, model=None, params=params)
    body, _ = payload.body(wish, endpoint, seed=1, stream=True)
    raw = Raw(endpoint.base_url, endpoint.api_key, body)
    ours = Ours(client, params)
    firsts: dict[str, list[float]] = {"bare": [], "ours": []}
    speeds: dict[str, list[float]] = {"bare": [], "ours": []}

    with ThreadPoolExecutor(at_once) as pool:

        def take(side: str, one: Callable[[], Run]) -> float:
            begun = time.perf_counter()
            runs = [each.result() for each in [pool.submit(one) for _ in range(at_once)]]
            firsts[side] += [run.first_token_s for run in runs]
            speeds[side].append(at_once * tokens / (time.perf_counter() - begun))
            return 0.0

        raw(), ours()  # both warm
        alternate(lambda: take("bare", raw), lambda: take("ours", ours), rounds)
    name = f"{at_once} at once"
    return [
        row(f"first token, {name}", "ms", firsts["bare"], firsts["ours"], 1000),
        row(f"throughput, {name}", "tok/s", speeds["bare"], speeds["ours"]),
    ]


def row(name: str, unit: str, bare: list[float], ours: list[float], scale: float = 1) -> Row:
    """The medians of both, and of their ratio in each round."""
    return Row(
        name,
        unit,
        bare=statistics.median(bare) * scale,
        ours=statistics.median(ours) * scale,
        ratio=statistics.median(b / a for a, b in zip(bare, ours, strict=True)),
    )


def measure_start(config: ServerConfig, rounds: int) -> Row:
    """From nothing to ready: the engine's own process, and the manager around it."""
    model = ModelStore().pull(config.model)

    def bare() -> float:
        plan = plan_launch(config, model, api_key=new_key())
        begun = time.perf_counter()
        process = subprocess.Popen(
            plan.command.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **plan.command.env},
            start_new_session=True,
        )
        if process.stdin is None or process.stdout is None:
            raise LLMError("The engine has no pipes.")
        process.stdin.write(plan.command.stdin)
        process.stdin.flush()
        try:
            for line in process.stdout:
                facts = plan.choice.engine.read_line(line.decode("utf-8", "replace").rstrip())
                if facts and facts.base_url:
                    return time.perf_counter() - begun
            raise LLMError("The bare engine ended before it was ready.")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def ours() -> float:
        manager = ServerManager(config)
        begun = time.perf_counter()
        manager.start()
        seconds = time.perf_counter() - begun
        manager.stop()
        return seconds

    bare(), ours()  # the file is in the page cache for both
    return row("start to ready", "ms", *alternate(bare, ours, rounds), 1000)


def measure_import(rounds: int) -> Row:
    """`import runtime` on top of a bare interpreter."""

    def seconds(code: str) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - begun

    both = alternate(lambda: seconds("pass"), lambda: seconds("import runtime"), rounds)
    return row("interpreter, with import runtime", "ms", *both, 1000)


def table(rows: list[Row]) -> str:
    """The rows, fit for a terminal."""
    lines = [f"{'':34}{'bare':>10}{'ours':>10}{'ratio':>8}{'ours - bare':>14}"]
    lines += [
        f"{each.name:34}{each.bare:10.1f}{each.ours:10.1f}{each.ratio:8.3f}"
        f"{each.ours - each.bare:+10.2f} {each.unit}"
        for each in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and print; 0 when everything could be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="a model reference")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each measurement")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--json", type=Path, default=None, help="also write the rows there")
    options = parser.parse_args()
    settings = {
        name: value
        for name in ("model", "engine", "threads")
        if (value := getattr(options, name)) is not None
    }
    rows: list[Row] = []
    try:
        config = ServerConfig(**settings)
        rows.append(measure_import(options.rounds))
        rows.append(measure_start(config, options.rounds))
        with LlamaClient(config=config) as client:
            for at_once in (1, 4):
                rows += measure_streams(
                    client, rounds=options.rounds, tokens=options.tokens, at_once=at_once
                )
    except LLMError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    print(table(rows))
    if options.json:
        made = [asdict(each) for each in rows]
        options.json.write_text(json.dumps(made, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
