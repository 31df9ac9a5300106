"""Watching one engine process: that its start gets on, and that it serves.

Both watches live in the supervisor's thread and only tell what they see; the supervisor decides.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from runtime.server import probe
from runtime.server.diagnosis import TEMPLATE_HINT
from runtime.server.templates import LOOK_S, TemplateGuard, fingerprint
from runtime.server.watchdog import Watchdog, latest_task, slots_at_work, slowest_token_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.engines.base import Endpoint
    from runtime.server.launcher import EngineProcess
    from runtime.server.loop import Timers
    from runtime.server.plan import LaunchPlan
    from runtime.server.watchdog import Verdict

STALL_CHECK_S = 1.0
WATCH_IDLE_S = 5.0
WATCH_WORKING_S = 1.0
LOOK_TIMEOUT_S = 0.5
CPU_PROGRESS_S = 0.05
BATCH_TOKENS = 2048  # llama.cpp's default logical batch: prompts move by it


class StartWatch:
    """A start may take any time, as long as something moves: output, or processor time.

    The chat template, a program from a stranger, is the exception: its own limits hold.
    """

    def __init__(
        self,
        timers: Timers,
        process: EngineProcess,
        *,
        stall_timeout_s: float,
        on_hopeless: Callable[[str, str, str], None],
    ) -> None:
        """Begin; its timers are the watch.

        Args:
            timers: Where it runs.
            process: What is watched.
            stall_timeout_s: How long nothing may move.
            on_hopeless: Told the diagnosis, what was seen and what to do, when it will never be
                ready.
        """
        self._timers = timers
        self._process = process
        self._stall_timeout_s = stall_timeout_s
        self._on_hopeless = on_hopeless
        self._progress_s = time.monotonic()
        self._cpu_s = 0.0
        self._check_again()

    def heard(self) -> None:
        """It printed something."""
        self._progress_s = time.monotonic()

    def _check_again(self) -> None:
        self._timers.after(STALL_CHECK_S, "stall", self._check)

    def _check(self) -> None:
        if self._process.pid is None:
            self._check_again()
            return
        cpu_s = _cpu_seconds(self._process.pid)
        if cpu_s - self._cpu_s > CPU_PROGRESS_S:
            self._cpu_s = cpu_s
            self._progress_s = time.monotonic()
        silence_s = time.monotonic() - self._progress_s
        if silence_s < self._stall_timeout_s:
            self._check_again()
            return
        self._on_hopeless(
            "stalled",
            f"The engine printed nothing and used no processor time for {silence_s:.0f} s while "
            "starting.",
            "The log has its last words; raise startup_stall_timeout_s if its disk is that slow.",
        )

    def at_template(self, plan: LaunchPlan) -> None:
        """From here to listening the engine is at its chat template, which may be anything."""
        pid = self._process.pid
        if pid is None:
            return
        # Contexts of a draft model are made for each slot after that line.
        more = plan.spec.draft_model is not None or plan.spec.mmproj is not None
        guard = TemplateGuard(
            cpu_s=_cpu_seconds(pid),
            rss_bytes=_rss_bytes(pid),
            expected_bytes=plan.memory.resident_bytes if more else 0,
        )

        def look() -> None:
            wrong = guard.look(cpu_s=_cpu_seconds(pid), rss_bytes=_rss_bytes(pid))
            if wrong is None:
                self._timers.after(LOOK_S, "template", look)
            else:
                self._on_hopeless("bad_template", f"{_template_name(plan)} {wrong}.", TEMPLATE_HINT)

        self._timers.after(LOOK_S, "template", look)

    def past_template(self) -> None:
        """It listens: the template is behind it."""
        self._timers.cancel("template")


class ServiceWatch:
    """Do tokens move while a slot is at work?

    Attributes:
        endpoint: The server that is watched.
        has_answered: Whether it took up a request of a caller's since it was ready. An engine that
            does not show it is trusted.
    """

    def __init__(
        self,
        timers: Timers,
        process: EngineProcess,
        plan: LaunchPlan,
        endpoint: Endpoint,
        *,
        floor_s: float,
        on_verdict: Callable[[Verdict, str], None],
    ) -> None:
        """Begin, before anyone can send it a request.

        Args:
            timers: Where it runs.
            process: What is watched.
            plan: How it was launched.
            endpoint: Where it answers.
            floor_s: Least time that tokens may stand still.
            on_verdict: Told what each look gave, and for how long nothing has moved in words. After
                ``"stuck"`` there are no more looks.
        """
        self._timers = timers
        self._process = process
        self._floor_s = floor_s
        self._on_verdict = on_verdict
        self.endpoint = endpoint
        self.has_answered = not endpoint.capabilities.slots
        if not endpoint.capabilities.slots:
            return  # this engine does not show its progress: the client's own deadlines remain
        # A GPU may be at work while every thread waits for it.
        self._on_cpu = plan.spec.gpu_layers == 0
        # What it was tried with before it was ready is no answer to anyone.
        self._tasks_before = latest_task(self._ask_slots().body)
        self._watchdog = Watchdog(
            floor_s=floor_s,
            token_s=slowest_token_s(parameters=plan.facts.parameters, threads=plan.spec.threads),
            batch=plan.spec.logical_batch or plan.spec.physical_batch or BATCH_TOKENS,
            threads=plan.spec.threads,
            now_s=time.monotonic(),
        )
        self._look_again()

    def _ask_slots(self) -> probe.Reply:
        return probe.ask(
            self.endpoint.base_url,
            "/slots",
            api_key=self.endpoint.api_key,
            timeout_s=LOOK_TIMEOUT_S,
        )

    def at_work(self) -> bool:
        """Whether a slot is at work now; False where the engine does not show it."""
        return self.endpoint.capabilities.slots is True and bool(
            slots_at_work(self._ask_slots().body)
        )

    def _look_again(self) -> None:
        pause_s = WATCH_WORKING_S if self._watchdog.working else WATCH_IDLE_S
        self._timers.after(min(pause_s, self._floor_s / 4), "watch", self._look)

    def _look(self) -> None:
        if self._process.pid is None:
            return
        dog = self._watchdog
        # Before the question: whoever answers it is awake for that alone.
        asleep = _sleeps(self._process.pid) if self._on_cpu else None
        reply = self._ask_slots()
        self.has_answered |= latest_task(reply.body) > self._tasks_before
        now = time.monotonic()
        verdict = dog.look(
            now_s=now,
            cpu_s=_cpu_seconds(self._process.pid),
            slots=slots_at_work(reply.body),
            asleep=asleep,
        )
        if verdict != "stuck":
            self._look_again()
        self._on_verdict(
            verdict,
            dog.reason(now),
        )


def _template_name(plan: LaunchPlan) -> str:
    if plan.spec.chat_template is not None:
        return "The chat template given in the settings"
    mark = fingerprint(plan.facts.chat_template)
    return "The model's chat template" + (f" (sha256 {mark[:12]}…)" if mark else "")


def _rss_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _sleeps(pid: int) -> bool | None:
    """Whether no thread runs, wants to, or waits for a disk; None where that cannot be seen.

    The states are those of proc_pid_stat(5): R is runnable, also while others have the processor,
    and D a wait for a disk, as for a page of the model.
    """
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        states = [(task / "stat").read_text("utf-8", "replace") for task in tasks]
    except OSError:
        return None
    return all(text.rpartition(") ")[2][:1] in "STt" for text in states)


def _cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
