"""What the client costs on top of its own engine, asked directly: neighbours, in changing order."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bench_competitors import process
from bench_report import Overhead
from bench_talkers import HttpTalker

from runtime import LlamaClient, LLMError, ModelStore, ServerManager
from runtime.engines.inspection import clean_environment
from runtime.server.plan import new_key, plan_launch
from runtime.tuning.running import run
from runtime.tuning.talkers import ClientTalker
from runtime.tuning.workloads import workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime import ServerConfig
    from runtime.tuning.talkers import Talker


def overheads(config: ServerConfig, *, rounds: int, scale: float) -> list[Overhead]:
    """Import, start, first token and throughput, bare and through the client.

    Raises:
        LLMError: Something did not start, or did not answer.
    """
    found = [_import(rounds), _start(config, rounds)]
    with LlamaClient(config=config, use_gateway=False) as client:
        if client.server is None:
            raise LLMError("The client has no server of its own.")
        endpoint = client.server.wait_ready()
        bare = HttpTalker(endpoint.base_url, model=endpoint.model, api_key=endpoint.api_key)
        for at_once in (1, 4):
            found += _streams(bare, ClientTalker(client), rounds, scale, at_once)
    return found


def _alternate(
    left: Callable[[], float], right: Callable[[], float], rounds: int
) -> tuple[list[float], list[float]]:
    """Measure both, taking turns at going first."""
    lefts: list[float] = []
    rights: list[float] = []
    for number in range(rounds):
        for side in (lefts, rights) if number % 2 else (rights, lefts):
            side.append(left() if side is lefts else right())
    return lefts, rights


def _row(name: str, unit: str, bare: list[float], ours: list[float], factor: float = 1) -> Overhead:
    return Overhead(
        name=name,
        unit=unit,
        bare=statistics.median(bare) * factor,
        ours=statistics.median(ours) * factor,
        ratio=statistics.median(b / a for a, b in zip(bare, ours, strict=True)),
    )


def _import(rounds: int) -> Overhead:
    def seconds(code: str) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - begun

    both = _alternate(lambda: seconds("pass"), lambda: seconds("import runtime"), rounds)
    return _row("interpreter, with import runtime", "ms", *both, 1000)


def start_alone(config: ServerConfig) -> float:
    """Seconds that the engine of ``config`` takes to start by its command alone, without us."""
    plan = plan_launch(config, ModelStore().resolve(config.model), api_key=new_key())
    command, engine = plan.command, plan.choice.engine

    def address(line: str) -> str | None:
        facts = engine.read_line(line)
        return facts.base_url if facts else None

    begun = time.perf_counter()
    environment = clean_environment(command.env)
    with process(command.argv, address, env=environment, stdin=command.stdin):
        return time.perf_counter() - begun


def _start(config: ServerConfig, rounds: int) -> Overhead:
    def bare() -> float:
        return start_alone(config)

    def ours() -> float:
        begun = time.perf_counter()
        with ServerManager(config) as manager:
            manager.wait_ready()
            return time.perf_counter() - begun

    bare(), ours()  # the file is in the page cache for both
    return _row("start to ready", "ms", *_alternate(bare, ours, rounds), 1000)


def _streams(bare: Talker, ours: Talker, rounds: int, scale: float, at_once: int) -> list[Overhead]:
    """The same story again and again: what is measured is the way there, not the prompt."""
    story = workload("free-text", at_once=at_once, scale=scale / 2)
    firsts: dict[Talker, list[float]] = {bare: [], ours: []}

    def speed(talker: Talker) -> float:
        done = run(story, talker)
        firsts[talker] += done.first_tokens_s
        return done.tokens_per_s

    run(story, bare), run(story, ours)  # both warm
    both = _alternate(lambda: speed(bare), lambda: speed(ours), rounds)
    name = f"{at_once} at once"
    return [
        _row(f"first token, {name}", "ms", firsts[bare], firsts[ours], 1000),
        _row(f"throughput, {name}", "tok/s", *both),
    ]
