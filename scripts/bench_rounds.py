"""The rounds of the benchmark: everybody in turn, workload after workload."""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

import psutil
from bench_report import COLD, OURS, Sample

from runtime import LLMError
from runtime.tuning.running import run
from runtime.tuning.workloads import WorkloadName, last_question, workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench_competitors import Competitor, Standing
    from bench_report import Recording

    from runtime.tuning.running import Run
    from runtime.tuning.workloads import Workload

Plan = tuple[tuple[WorkloadName, int, float], ...]
"""Workload, conversations at once, and how long it is beside the others."""

# A process that has a client of ours and has used it: what the library takes in its owner.
_OWNER: Final = """
import sys
from runtime import LlamaClient, LLMChatParams, ServerConfig
settings = {name: int(value) if value.isdigit() else value
            for name, value in (word.split("=", 1) for word in sys.argv[1:])}
with LlamaClient(config=ServerConfig(**settings), use_gateway=False) as client:
    client.chat("Hello.", params=LLMChatParams(max_tokens=4))
    print("ready", flush=True)
    sys.stdin.read()
"""


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Tells how far the benchmark is and how long it may still take."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done = 0
        self._began = time.monotonic()

    def step(self, text: str) -> None:
        """One measurement is done."""
        self._done += 1
        spent = time.monotonic() - self._began
        left = spent / self._done * (self._steps - self._done)
        say(f"{self._done:4} of {self._steps}  about {left:4.0f} s left  {text}")


def values_of(done: Run) -> dict[str, float]:
    """What one run of a workload says."""
    answers = [each for said in done.answers for each in said]
    speeds = [each.tokens_per_s for each in answers if each.tokens_per_s is not None]
    found = {
        "wall_s": done.wall_s,
        "tokens_per_s": done.tokens_per_s,
        "completion_tokens": float(done.completion_tokens),
        "first_token_s": statistics.median(done.first_tokens_s),
        "last_first_token_s": statistics.median(said[-1].first_token_s for said in done.answers),
    }
    if speeds:
        found["decode_tokens_per_s"] = statistics.median(speeds)
    prompts = [each.prompt_tokens or 0 for each in answers]
    if all(each.cached_tokens is not None for each in answers) and sum(prompts) > 0:
        found["cached_share"] = sum(each.cached_tokens or 0 for each in answers) / sum(prompts)
    return found


def digests_of(done: Run) -> tuple[str, ...]:
    """A digest of each answer."""
    return tuple(
        hashlib.sha256(text.encode()).hexdigest()[:16] for said in done.texts for text in said
    )


class Bench:
    """A benchmark while it is measured.

    Attributes:
        recording: What was found so far.
    """

    def __init__(
        self, recording: Recording, rivals: Sequence[Competitor], plan: Plan, keep: Path | None
    ) -> None:
        self.recording = recording
        self._rivals = rivals
        self._plan = plan
        self._keep = keep
        self._scale = recording.scale

    def rounds(self, count: int, owner: Sequence[str]) -> None:
        """Measure until there are so many rounds."""
        kept = self.recording.samples
        # Memory comes last in a round: one that was broken off before is measured again.
        begun = 1 + max((each.round for each in kept if each.measure == "memory"), default=-1)
        whole = tuple(each for each in kept if each.round < begun)
        self.recording = replace(self.recording, samples=whole)
        left = range(begun, count)
        crowds = len([at_once for _, at_once, _ in self._plan if at_once > 1])
        few = len([each for each in self._rivals if each.crowds_only])
        many = len(self._rivals) - few
        a_round = 1 + many * (len(self._plan) + 2) + few * (crowds + 1)
        progress = Progress(len(left) * a_round)
        if not left:
            return
        with contextlib.ExitStack() as alive:
            for number in left:
                self._starts(number, progress)
            standing = {each.name: self._up(each, alive) for each in self._rivals}
            beside = alive.enter_context(_owner(owner))
            for number in left:
                self._round(number, standing, beside, progress)

    def _starts(self, number: int, progress: Progress) -> None:
        for each in self._turns(number):
            if each.crowds_only:
                continue
            begun = time.perf_counter()
            try:
                with each.start() as standing:
                    ready_s = time.perf_counter() - begun
                    asked = workload("free-text", number=number, scale=0.0).conversations[0][0]
                    answer = standing.talker.ask(asked)
            except LLMError as exc:
                self._failed(each.name, "start", exc)
                continue
            values = {"ready_s": ready_s, "first_token_s": ready_s + answer.first_token_s}
            self._add(Sample(round=number, competitor=each.name, measure="start", values=values))
            progress.step(f"{each.name}: ready after {ready_s:.2f} s")

    def _up(self, each: Competitor, alive: contextlib.ExitStack) -> Standing | None:
        try:
            standing = alive.enter_context(each.start())
            run(workload("free-text", number=9999, scale=0.0), standing.talker)
        except LLMError as exc:
            self._failed(each.name, "start", exc)
            return None
        return standing

    def _round(
        self,
        number: int,
        standing: dict[str, Standing | None],
        owner: psutil.Process,
        progress: Progress,
    ) -> None:
        for place, (name, at_once, length) in enumerate(self._plan):
            scale = self._scale * length
            asked = workload(name, at_once=at_once, number=number, scale=scale)
            for each in self._turns(number + place):
                if (up := standing[each.name]) and (at_once > 1 or not each.crowds_only):
                    self._measure(number, each, up, name, asked, progress)
        cold = _cold(workload("agent-loop", number=5000 + number, scale=self._scale))
        for each in self._rivals:
            if (up := standing[each.name]) and each.name == OURS:
                self._measure(number, each, up, COLD, cold, progress)
        for each in self._rivals:
            if up := standing[each.name]:
                beside = sum(map(_proportional_bytes, map(psutil.Process, up.beside_pids)))
                if each.name == OURS:
                    beside += _proportional_bytes(owner)
                engine = psutil.Process(up.engine_pid).memory_info().rss
                values = {"engine_bytes": float(engine), "beside_bytes": float(beside)}
                self._add(
                    Sample(round=number, competitor=each.name, measure="memory", values=values)
                )
                progress.step(f"{each.name}: engine {engine >> 20} MiB, beside {beside >> 20} MiB")

    def _measure(
        self,
        number: int,
        each: Competitor,
        up: Standing,
        measure: str,
        asked: Workload,
        progress: Progress,
    ) -> None:
        try:
            done = run(asked, up.talker)
        except LLMError as exc:
            self._failed(each.name, measure, exc)
            return
        values = values_of(done)
        sample = Sample(
            round=number,
            competitor=each.name,
            measure=measure,
            at_once=asked.at_once,
            values=values,
            digests=digests_of(done),
        )
        self._add(sample)
        progress.step(
            f"round {number + 1}, {measure} x {asked.at_once}, {each.name}: "
            f"{values['tokens_per_s']:.1f} tok/s, first token "
            f"{1000 * values['first_token_s']:.0f} ms"
        )

    def _turns(self, number: int) -> list[Competitor]:
        """All of them, another first each time."""
        first = number % len(self._rivals)
        return [*self._rivals[first:], *self._rivals[:first]]

    def _add(self, sample: Sample) -> None:
        self.recording = replace(self.recording, samples=(*self.recording.samples, sample))
        if self._keep:
            text = json.dumps(asdict(self.recording), indent=1)
            self._keep.write_text(text + "\n", "utf-8")

    def _failed(self, name: str, measure: str, exc: LLMError) -> None:
        told = f"{name}, {measure}: {str(exc).splitlines()[0]}"
        say(f"failed: {told}")
        if told not in self.recording.failures:
            self.recording = replace(self.recording, failures=(*self.recording.failures, told))


def _cold(of: Workload) -> Workload:
    """The last turn with its whole history at once, for its first token's sake."""
    last = last_question(of)
    short = tuple(
        tuple(replace(each, max_tokens=2) for each in questions) for questions in last.conversations
    )
    return replace(last, conversations=short)


@contextlib.contextmanager
def _owner(settings: Sequence[str]) -> Iterator[psutil.Process]:
    """A process of its own that has a client; the benchmark's own has imported more."""
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, *settings], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        try:
            if child.stdout is None or child.stdout.readline() != b"ready\n":
                raise LLMError("The process that owns a client did not start.")
            yield psutil.Process(child.pid)
        finally:
            child.communicate()


def _proportional_bytes(process: psutil.Process) -> int:
    """Memory of a process, what it shares counted in part where the system tells."""
    told = process.memory_full_info()
    return int(getattr(told, "pss", told.rss))
